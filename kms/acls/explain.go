// Package acls answers questions of an operator about the rules of kms-acls.xml: whether a user may do something
// and which line decides (Explain), and which rules do nothing, or something else than probably meant (Check).
// It reads the configuration files and the metastore, and not the running server.
package acls

import (
	"context"
	"errors"
	"fmt"
	"log/slog"

	"claviger"
	"claviger/authz"
	"claviger/hadoopconf"
	"claviger/kms"
	"claviger/metastore"
	"claviger/metastore/location"
	"claviger/typo"
)

// Question is what Explain answers.
type Question struct {
	User    string
	Real    string   // the user who impersonates User; "" for none
	Groups  []string // of User; nil: the configured group mapping knows them
	Request authz.Request
	Key     string // "" for none
	ACLName string // of the key; "": the metastore knows it
}

// Explain finds whether the rules of a configuration allow a request.
func Explain(ctx context.Context, conf *hadoopconf.Conf, q Question) (*Explanation, error) {
	byKey, err := conf.Bool("hadoop.kms.key.authorization.enable")
	if err != nil {
		return nil, err
	}
	policy, warnings, notes, err := kms.LoadPolicy(conf)
	if err != nil {
		return nil, err
	}
	if len(warnings) > 0 {
		notes = append(notes, fmt.Sprintf("odd in the file: %d; `claviger acl check` names what", len(warnings)))
	}
	groups := func(string) []string { return q.Groups }
	if q.Groups == nil {
		mapping, err := kms.NewGroups(conf, slog.New(slog.DiscardHandler))
		if err != nil {
			return nil, err
		}
		groups = mapping.Of
	}
	caller := claviger.Principal{Name: q.User, Short: q.User}
	if q.Real != "" {
		caller.Real = &claviger.Principal{Name: q.Real, Short: q.Real}
	}
	x := &Explanation{User: q.User, Real: q.Real, Groups: append([]string{}, groups(q.User)...),
		Request: q.Request.Name,
		Key:     q.Key, File: kms.ACLFile(conf), Notes: notes}
	if x.ACLName, err = x.aclName(ctx, conf, q, byKey); err != nil {
		return nil, err
	}
	x.Decision = policy.Explain(q.Request, x.ACLName, caller, groups)
	if by, ok := x.Decision.DecidedBy(); ok {
		x.DecidedBy = &by
	}
	return x, nil
}

// aclName returns the ACL name whose rules count, "" where no rule of a key does; a note says why. byKey: rules
// of keys count at all.
func (x *Explanation) aclName(ctx context.Context, conf *hadoopconf.Conf, q Question, byKey bool) (string, error) {
	switch {
	case q.Request.Key == "" && q.Key != "":
		x.note("%s asks no rule of a key", q.Request.Name)
	case q.Request.Key == "":
	case !byKey && q.Request.Key != authz.KeyMigrate:
		p, _ := conf.Lookup("hadoop.kms.key.authorization.enable")
		x.note("hadoop.kms.key.authorization.enable is false (%s): the rules of keys are not asked", p.Where())
	case q.Key == "":
		x.note("no key is named: the rules of keys, which are asked as well, are left out")
	case q.ACLName != "":
		return q.ACLName, nil
	default:
		return x.findACLName(ctx, conf, q.Request)
	}
	return "", nil
}

// Explanation says whether a request is allowed, and why.
type Explanation struct {
	User    string   `json:"user"`
	Real    string   `json:"realUser,omitempty"`
	Groups  []string `json:"groups"`
	Request string   `json:"request"`
	Key     string   `json:"key,omitempty"`
	ACLName string   `json:"aclName,omitempty"`
	File    string   `json:"file"`
	authz.Decision
	DecidedBy *authz.Step `json:"decidedBy,omitempty"`
	Notes     []string    `json:"notes,omitempty"`
}

func (x *Explanation) note(format string, args ...any) {
	x.Notes = append(x.Notes, fmt.Sprintf(format, args...))
}

// findACLName reads the key's ACL name from the metastore. Where there is no metastore it returns the key's own
// name, which is the ACL name of nearly all keys. Where the metastore cannot be read there is no answer.
func (x *Explanation) findACLName(ctx context.Context, conf *hadoopconf.Conf, r authz.Request) (string, error) {
	var key *metastore.Key
	var names []string // of all keys, where this one is not among them
	err := location.Read(ctx, conf, func(s metastore.Store) error {
		found, err := s.Get(ctx, x.Key)
		if err != nil {
			return err
		}
		if key = found[0]; key == nil {
			names, err = s.Names(ctx)
		}
		return err
	})
	switch {
	case err != nil && !errors.Is(err, location.ErrNone):
		return "", fmt.Errorf("which rules guard key %s is not known, for the metastore cannot be read: %w; run "+
			"this command as the server's user, or tell the key's attribute key.acl.name by --acl-name", x.Key, err)
	case err != nil:
		x.note("key %s could not be looked up (%v): its ACL name is taken to be its own; --acl-name tells another",
			x.Key, err)
	case key == nil && r.Name == "CREATE_KEY":
	case key == nil && r.Key == authz.KeyMigrate:
		x.note("key %s is not here yet: its ACL name at the source, which counts, is taken to be its own; "+
			"--acl-name tells another", x.Key)
	case key == nil:
		x.note("the metastore has no key %s: its ACL name is taken to be its own; --acl-name tells another%s", x.Key,
			typo.DidYouMean(x.Key, names, claviger.Printable))
	default:
		return key.ACLName(), nil
	}
	return x.Key, nil
}
