// Package acls explains the rules of kms-acls.xml to an operator: whether a user may do something, and which rule
// decides (Explain); and which rules have no effect, or probably not the intended one (Check). It reads the
// configuration files and the metastore, not the running server.
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

// Question is the input of Explain: may this user do this request?
type Question struct {
	User    string
	Real    string   // the user who impersonates User; "" for none
	Groups  []string // of User; nil: use the configured group mapping
	Request authz.Request
	Key     string // "" for none
	ACLName string // of the key; "": read it from the metastore
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
		notes = append(notes, fmt.Sprintf("warnings about the file: %d; `claviger acl check` shows them",
			len(warnings)))
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

// aclName returns the ACL name whose rules apply; "" if no rule of a key applies, and then it adds a note with the
// reason. byKey is hadoop.kms.key.authorization.enable.
func (x *Explanation) aclName(ctx context.Context, conf *hadoopconf.Conf, q Question, byKey bool) (string, error) {
	switch {
	case q.Request.Key == "" && q.Key != "":
		x.addNote("%s uses no rule of a key", q.Request.Name)
	case q.Request.Key == "":
	case !byKey && q.Request.Key != authz.KeyMigrate:
		p, _ := conf.Lookup("hadoop.kms.key.authorization.enable")
		x.addNote("hadoop.kms.key.authorization.enable is false (%s): the rules of keys are not used", p.Where())
	case q.Key == "":
		x.addNote("no key is named: the rules of keys, which the server also checks, were not used")
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

func (x *Explanation) addNote(format string, args ...any) {
	x.Notes = append(x.Notes, fmt.Sprintf(format, args...))
}

// findACLName reads the key's ACL name from the metastore. Without a metastore it returns the key's own name, which
// is the ACL name of nearly all keys. If the metastore cannot be read, it returns an error.
func (x *Explanation) findACLName(ctx context.Context, conf *hadoopconf.Conf, r authz.Request) (string, error) {
	var key *metastore.Key
	var names []string // of all keys, if this key does not exist
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
		return "", fmt.Errorf("it is not known which rules protect key %s, because the metastore cannot be read: %w; "+
			"run this command as the server's user, or pass the key's attribute key.acl.name as --acl-name", x.Key, err)
	case err != nil:
		x.addNote("key %s could not be looked up (%v): its own name is used as its ACL name; if it has another "+
			"ACL name, pass --acl-name", x.Key, err)
	case key == nil && r.Name == "CREATE_KEY":
	case key == nil && r.Key == authz.KeyMigrate:
		x.addNote("key %s is not here yet: its own name is used as its ACL name; if it has another ACL name at the "+
			"source, pass --acl-name", x.Key)
	case key == nil:
		x.addNote("the metastore has no key %s: its own name is used as its ACL name; if it has another ACL name, "+
			"pass --acl-name%s", x.Key, typo.DidYouMean(x.Key, names, claviger.Printable))
	default:
		return key.ACLName(), nil
	}
	return x.Key, nil
}
