package keyring

import (
	"context"
	"slices"
	"strings"

	"claviger"
	"claviger/audit"
	"claviger/authz"
)

// request is one request: its caller, and the rules that decide about it. The rules stay the same until its end, even
// if their file changes.
type request struct {
	ring   *Ring
	caller *claviger.Caller
	policy *authz.Policy
	op     audit.Op
	did    work
}

// work has the facts about a request that the audit log records in addition to Hadoop's line.
type work struct {
	version string   // the version that was used, made or named by the request
	from    []string // the versions of the EDEKs before a re-encryption
	edeks   int
	sources []string // URIs of the sources that did the work; none: the primary did
}

// addSource records that a source did the work, or a part of it.
func (w *work) addSource(uri string) {
	if !slices.Contains(w.sources, uri) {
		w.sources = append(w.sources, uri)
	}
}

// enter checks the operation-level rules, then records the attempt if the audit trail demands that. One of the rights
// is enough. key is the name in messages and in the audit line; nil if the operation has none.
func (r *Ring) enter(ctx context.Context, c *claviger.Caller, op audit.Op, key *string,
	rights ...authz.Op) (request, error) {
	q, err := r.admit(c, op, deref(key))
	if err != nil {
		return q, err
	}
	if err := q.needRight(ctx, key, rights...); err != nil {
		return q, err
	}
	return q, q.begin(ctx, deref(key))
}

// admit is enter without the rules and the record.
func (r *Ring) admit(c *claviger.Caller, op audit.Op, key string) (request, error) {
	if r.closed.Load() {
		return request{}, claviger.E("keyring."+string(op), claviger.Closed, key, nil)
	}
	return request{ring: r, caller: c, op: op, policy: r.cfg.Policy()}, nil
}

// begin records the attempt, if the audit trail demands a record before anything is done.
func (q *request) begin(ctx context.Context, key string) error {
	if q.ring.guard == nil {
		return nil
	}
	return q.ring.guard.Begin(ctx, audit.Event{Op: q.op, Key: key, Caller: *q.caller, Provider: q.ring.PrimaryURI()})
}

// needRight is Hadoop's KMSACLs.assertAccess.
func (q *request) needRight(ctx context.Context, key *string, rights ...authz.Op) error {
	for _, right := range rights {
		if q.has(right) {
			return nil
		}
	}
	name := deref(key)
	q.log(ctx, audit.Unauthorized, q.op, name, "")
	if key == nil {
		return claviger.Errorf("keyring.access", claviger.Denied, "", "User:%s not allowed to do '%s'",
			q.caller.Short, q.op)
	}
	return claviger.Errorf("keyring.access", claviger.Denied, name, "User:%s not allowed to do '%s' on '%s'",
		q.caller.Short, q.op, name)
}

// has is needRight without an audit line.
func (q *request) has(right authz.Op) bool {
	return q.policy.May(right, q.caller.Principal, q.ring.cfg.Groups)
}

// needKey is Hadoop's KeyAuthorizationKeyProvider.doAccessCheck: the key-level rules under the ACL name in the key's
// metadata. A key without metadata does not exist, and no rule guards it.
func (q *request) needKey(ctx context.Context, m *claviger.Metadata, right authz.KeyOp) error {
	if m == nil || !q.ring.cfg.KeyAuthorization {
		return nil
	}
	aclName := m.ACLName()
	if q.hasKey(ctx, aclName, right) {
		return nil
	}
	return claviger.Errorf("keyring.access", claviger.KeyDenied, m.Name,
		"User [%s] is not authorized to perform [%s] on key with ACL name [%s]!!", q.caller.Short, right, aclName)
}

// hasKey is mayKey with an audit line for each right that the rules refuse, even if the right ALL then allows the
// operation, as in Hadoop.
func (q *request) hasKey(ctx context.Context, aclName string, right authz.KeyOp) bool {
	return q.policy.MayKey(aclName, right, q.caller.Principal, q.ring.cfg.Groups, func(op authz.KeyOp) {
		q.ring.cfg.Audit.Log(ctx, audit.Event{
			Status: audit.Unauthorized, Op: audit.Op(op), KeyRight: true, Key: aclName, Caller: *q.caller,
		})
	})
}

// mayManage is mayKey of MANAGEMENT.
func (q *request) mayManage(aclName string) bool { return q.mayKey(aclName, authz.KeyManagement) }

// mayKey is needKey without an audit line.
func (q *request) mayKey(aclName string, right authz.KeyOp) bool {
	return !q.ring.cfg.KeyAuthorization ||
		q.policy.MayKey(aclName, right, q.caller.Principal, q.ring.cfg.Groups, nil)
}

// ok writes the audit line of a request that was served. Package kmsapi writes the lines ERROR, because it knows method
// and URL.
func (q *request) ok(ctx context.Context, key, message string) {
	q.log(ctx, audit.OK, q.op, key, message)
}

func (q *request) log(ctx context.Context, status audit.Status, op audit.Op, key, message string) {
	provider := q.ring.PrimaryURI()
	if len(q.did.sources) > 0 {
		provider = strings.Join(q.did.sources, " ")
	}
	q.ring.cfg.Audit.Log(ctx, audit.Event{
		Status: status, Op: op, Key: key, Caller: *q.caller, Message: message,
		Version: q.did.version, From: q.did.from, EDEKs: q.did.edeks, Provider: provider,
	})
}

func deref(s *string) string {
	if s == nil {
		return ""
	}
	return *s
}
