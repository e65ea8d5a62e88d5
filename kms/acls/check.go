package acls

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"

	"claviger/authz"
	"claviger/hadoopconf"
	"claviger/kms"
	"claviger/metastore"
	"claviger/metastore/location"
)

// Findings are the rules that an operator should check.
type Findings struct {
	File     string   `json:"file"`
	Findings []string `json:"doubts"`
	Notes    []string `json:"notes,omitempty"`
	// Useless is the one of Findings that says why nobody may use any key, or everybody every key; "" if none does.
	Useless string `json:"-"`
}

// Check finds rules that are misspelled, rules that admit nobody, rules that exclude other operations of a key, and
// rules for keys that the metastore does not have.
func Check(ctx context.Context, conf *hadoopconf.Conf) (*Findings, error) {
	policy, warnings, notes, err := kms.LoadPolicy(conf)
	if err != nil {
		return nil, err
	}
	d := &Findings{File: kms.ACLFile(conf), Findings: append([]string{}, conf.MisplacedRules()...), Notes: notes}
	known, err := knownACLNames(ctx, conf)
	switch {
	case err != nil && !errors.Is(err, location.ErrNone):
		known = nil
		d.Findings = append(d.Findings, fmt.Sprintf("it was not checked whether rules name keys that do not exist, "+
			"because the metastore cannot be read: %v; run this command as the server's user", err))
	case len(known) == 0:
		known = nil // only an HSM's keys are in the metastore
		d.Notes = append(d.Notes,
			"the metastore has no keys: it was not checked whether rules name keys that do not exist")
	}
	if err := conf.CheckRules(); err != nil {
		d.Findings = append(d.Findings, err.Error())
	}
	if d.Useless = whyUseless(conf, policy); d.Useless != "" {
		d.Findings = append(d.Findings, d.Useless)
	}
	d.Findings = append(append(d.Findings, warnings...), policy.Lint(known)...)
	return d, nil
}

// whyUseless returns a text if the rules let nobody use any key, or everybody use every key; else "".
func whyUseless(conf *hadoopconf.Conf, policy *authz.Policy) string {
	file := kms.ACLFile(conf)
	if _, err := os.Stat(file); errors.Is(err, fs.ErrNotExist) {
		return noACLFile(conf)
	}
	if rulesByKey(conf) && !policy.AdmitsToKeys() {
		return file + ": no rule in it admits any user to a key, so nobody may use any key; " +
			"add default.key.acl.*, whitelist.key.acl.* or key.acl.* properties"
	}
	return ""
}

// knownACLNames returns the ACL names of the keys in the metastore.
func knownACLNames(ctx context.Context, conf *hadoopconf.Conf) (known []string, err error) {
	err = location.Read(ctx, conf, func(s metastore.Store) error {
		names, err := s.Names(ctx)
		if err != nil {
			return err
		}
		keys, err := s.Get(ctx, names...)
		for _, k := range keys {
			if k != nil { // nil: it was deleted since Names
				known = append(known, k.ACLName())
			}
		}
		return err
	})
	return slices.Compact(slices.Sorted(slices.Values(known))), err
}

// rulesByKey reports whether rules protect keys. A value that cannot be read stops the server, so it counts as true.
func rulesByKey(conf *hadoopconf.Conf) bool {
	byKey, err := conf.Bool("hadoop.kms.key.authorization.enable")
	return err != nil || byKey
}

// noACLFile returns a text that says what a missing kms-acls.xml means.
func noACLFile(conf *hadoopconf.Conf) string {
	if !rulesByKey(conf) {
		return "there is no " + kms.ACLFile(conf) + ": everybody may do everything with every key; write the file, " +
			"with hadoop.kms.acl.* properties"
	}
	return "there is no " + kms.ACLFile(conf) + ": nobody may use any key; write the file, with default.key.acl.* " +
		"or key.acl.* properties"
}
