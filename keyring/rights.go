package keyring

import (
	"context"
	"slices"
	"strings"

	"claviger"
	"claviger/audit"
	"claviger/authz"
)

// request is one request that was let in: who asks, and by which rules. The
// rules stay the same to its end even where the file changes meanwhile.
type request struct {
	ring   *Ring
	caller *claviger.Caller
	policy *authz.Policy
	op     audit.Op
	did    work
}

// work is what the audit log is told of a request beside Hadoop's line.
type work struct {
	version string   // that was used, made or asked for
	from    []string // versions that EDEKs were re-encrypted from
	edeks   int
	sources []string // URIs of the sources that answered; none: the primary did
}

// askedOf notes that a source did the work, or a part of it.
func (w *work) askedOf(uri string) {
	if !slices.Contains(w.sources, uri) {
		w.sources = append(w.sources, uri)
	}
}

// enter asks the operation-level rules, then has the attempt recorded where that
// must be. Any one of rights will do. key is what messages and the audit line
// name; nil where the operation has none.
func (r *Ring) enter(ctx context.Context, c *claviger.Caller, op audit.Op, key *string, rights ...authz.Op) (request, error) {
	q, err := r.enterUnasked(c, op, deref(key))
	if err != nil {
		return q, err
	}
	if err := q.need(ctx, key, rights...); err != nil {
		return q, err
	}
	return q, q.begin(ctx, deref(key))
}

// enterUnasked is enter without its rules and its record.
func (r *Ring) enterUnasked(c *claviger.Caller, op audit.Op, key string) (request, error) {
	if r.closed.Load() {
		return request{}, claviger.E("keyring."+string(op), claviger.Closed, key, nil)
	}
	return request{ring: r, caller: c, op: op, policy: r.cfg.Policy()}, nil
}

// begin has the attempt recorded where that must be before anything is done.
func (q *request) begin(ctx context.Context, key string) error {
	if q.ring.guard == nil {
		return nil
	}
	return q.ring.guard.Begin(ctx, audit.Event{Op: q.op, Key: key, Caller: *q.caller, Provider: q.ring.PrimaryURI()})
}

// need is Hadoop's KMSACLs.assertAccess.
func (q *request) need(ctx context.Context, key *string, rights ...authz.Op) error {
	for _, right := range rights {
		if q.has(right) {
			return nil
		}
	}
	name := deref(key)
	q.log(ctx, audit.Unauthorized, q.op, name, "")
	if key == nil {
		return claviger.Errorf("keyring.access", claviger.Denied, "", "User:%s not allowed to do '%s'", q.caller.Short, q.op)
	}
	return claviger.Errorf("keyring.access", claviger.Denied, name, "User:%s not allowed to do '%s' on '%s'", q.caller.Short, q.op, name)
}

// has is need without consequences.
func (q *request) has(right authz.Op) bool {
	return q.policy.May(right, q.caller.Principal, q.ring.cfg.Groups)
}

// needKey is Hadoop's KeyAuthorizationKeyProvider.doAccessCheck: the key-level
// rules under the name that the key's metadata gives. A key without metadata
// does not exist, and is not guarded.
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

// hasKey is mayKey with an audit line for each right that the rules refuse, also
// where ALL then says yes, as in Hadoop.
func (q *request) hasKey(ctx context.Context, aclName string, right authz.KeyOp) bool {
	return q.policy.MayKey(aclName, right, q.caller.Principal, q.ring.cfg.Groups, func(op authz.KeyOp) {
		q.ring.cfg.Audit.Log(ctx, audit.Event{
			Status: audit.Unauthorized, Op: audit.Op(op), KeyRight: true, Key: aclName, Caller: *q.caller,
		})
	})
}

// mayManage is mayKey of MANAGEMENT.
func (q *request) mayManage(aclName string) bool { return q.mayKey(aclName, authz.KeyManagement) }

// mayKey is needKey without consequences.
func (q *request) mayKey(aclName string, right authz.KeyOp) bool {
	return !q.ring.cfg.KeyAuthorization ||
		q.policy.MayKey(aclName, right, q.caller.Principal, q.ring.cfg.Groups, nil)
}

// ok leaves the audit line of a request that was served. Lines of kind ERROR
// name method and URL and are therefore left by the face that knows them.
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
