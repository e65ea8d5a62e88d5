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

// blacklistDecrypt is the property with the users who may not decrypt. If it is
// not set, aclDefaults puts HDFS' superusers there.
const blacklistDecrypt = "hadoop.kms.blacklist.DECRYPT_EEK"

// ACLFile returns the path of the file with the rules.
func ACLFile(conf *hadoopconf.Conf) string { return filepath.Join(conf.Dir(), "kms-acls.xml") }

// readACLs reads kms-acls.xml, and no other file, as Hadoop does. If the variables
// of a value cannot be expanded, the whole file is an error: no part of it takes
// effect.
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

// aclDefaults returns the rules for properties that kms-acls.xml does not set. A
// superuser of HDFS can read every EDEK and every encrypted byte, so superusers
// must not get DEKs.
func aclDefaults(conf *hadoopconf.Conf) []authz.Property {
	p, _ := conf.Lookup(hadoopconf.HDFSSuperusers)
	return []authz.Property{{
		Name:  blacklistDecrypt,
		Value: conf.WithPrefix(hadoopconf.HDFSSuperusers)[""], // not trimmed: a leading blank makes groups of the names
		Where: hadoopconf.HDFSSuperusers + ", " + p.Where(),
	}}
}

// aclMetrics adds the metrics about loads of kms-acls.xml.
func aclMetrics(m *console.Metrics, w *authz.Watcher) {
	m.Counter("claviger_acl_loads_total", "Times that kms-acls.xml took effect.",
		func() float64 { return float64(w.Status().Loads) })
	m.Counter("claviger_acl_failures_total", "Changes of kms-acls.xml that could not take effect.",
		func() float64 { return float64(w.Status().Failures) })
	m.Gauge("claviger_acl_loaded_seconds", "When the rules in force were loaded, in seconds since 1970.",
		func() float64 { return float64(w.Status().Loaded.UnixMilli()) / 1000 })
}

// LoadPolicy reads the rules as a server does at its start, but logs nothing.
// warnings are about rules that are probably wrong.
func LoadPolicy(conf *hadoopconf.Conf) (policy *authz.Policy, warnings, notes []string, err error) {
	file := ACLFile(conf)
	props, fileWarnings, err := readACLs(file)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		notes = append(notes, "there is no "+file+": these are the rules of an empty file")
	case err != nil:
		return nil, nil, nil, fmt.Errorf("%w (a running server keeps the rules that it loaded before)", err)
	}
	policy, warnings = authz.Parse(authz.WithDefaults(props, aclDefaults(conf)))
	return policy, append(fileWarnings, warnings...), notes, nil
}
