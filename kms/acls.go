package kms

import (
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"

	"claviger/authz"
	"claviger/console"
	"claviger/hadoopconf"
)

// blacklistDecrypt is the property that decides about HDFS' superusers, where it
// is set.
const blacklistDecrypt = "hadoop.kms.blacklist.DECRYPT_EEK"

// ACLFile is where the rules are.
func ACLFile(conf *hadoopconf.Conf) string { return filepath.Join(conf.Dir(), "kms-acls.xml") }

// readACLs reads kms-acls.xml, alone, as Hadoop does. A value whose variables
// can't be expanded is an error: the file takes effect as a whole or not at all.
func readACLs(path string) ([]authz.Property, []string, error) {
	c := hadoopconf.New(filepath.Dir(path), nil)
	if err := c.AddFile(path, false); err != nil {
		return nil, nil, err
	}
	if err := c.Check(); err != nil {
		return nil, nil, err
	}
	var props []authz.Property
	for name, value := range c.All() {
		p, _ := c.Lookup(name)
		props = append(props, authz.Property{Name: name, Value: value, Where: p.Where()})
	}
	return props, c.Warnings(), nil
}

// aclDefaults are the rules that hold where kms-acls.xml sets none: a superuser of
// HDFS can read every EDEK and every encrypted byte, so that he must not get the
// DEKs, too.
func aclDefaults(conf *hadoopconf.Conf) []authz.Property {
	p, _ := conf.Lookup(hadoopconf.HDFSSuperusers)
	return []authz.Property{{
		Name:  blacklistDecrypt,
		Value: conf.Under(hadoopconf.HDFSSuperusers)[""], // not trimmed: a leading blank makes groups of the names
		Where: hadoopconf.HDFSSuperusers + ", " + p.Where(),
	}}
}

// aclMetrics shows what became of kms-acls.xml.
func aclMetrics(m *console.Metrics, w *authz.Watcher) {
	m.Counter("claviger_acl_loads_total", "Times that kms-acls.xml took effect.",
		func() float64 { return float64(w.Status().Loads) })
	m.Counter("claviger_acl_failures_total", "Changes of kms-acls.xml that could not take effect.",
		func() float64 { return float64(w.Status().Failures) })
	m.Gauge("claviger_acl_loaded_seconds", "When the rules in force were loaded, in seconds since 1970.",
		func() float64 { return float64(w.Status().Loaded.UnixMilli()) / 1000 })
}

// LoadPolicy reads the rules as a server does at its start, without a word on a
// log. warnings are what is odd about them.
func LoadPolicy(conf *hadoopconf.Conf) (policy *authz.Policy, warnings, notes []string, err error) {
	file := ACLFile(conf)
	props, odd, err := readACLs(file)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		notes = append(notes, "there is no "+file+": these are the rules of an empty file")
	case err != nil:
		return nil, nil, nil, fmt.Errorf("%w (a running server keeps the rules that it has loaded before)", err)
	}
	policy, warnings = authz.Parse(authz.WithDefaults(props, aclDefaults(conf)))
	return policy, append(odd, warnings...), notes, nil
}
