package server

import (
	"context"
	"strings"
	"time"

	"claviger"
	"claviger/trustee"
)

func (s *Server) put(ctx context.Context, req *trustee.Request) (any, error) {
	const op = "server.put"
	var a trustee.PutArgs
	if err := req.ReadArgs(&a); err != nil {
		return nil, err
	}
	now := s.now()
	a.Deposit.Deleted = nil
	d, err := a.Deposit.Read(req.Client, now)
	if err != nil {
		return nil, err
	}
	switch {
	case len(d.Content) == 0:
		return nil, claviger.Errorf(op, claviger.Invalid, "", "the deposit is empty")
	case !d.Expires.IsZero() && !d.Expires.After(now):
		return nil, claviger.Errorf(op, claviger.Invalid, "", "the deposit has already expired, at %s",
			d.Expires.UTC().Format(time.RFC3339))
	}
	c, err := s.store.Client(ctx, req.Client.Fingerprint())
	if err != nil {
		return nil, err
	}
	access := make([]string, len(d.Access))
	for i, f := range d.Access {
		access[i] = strings.ToUpper(f)
	}
	row := Row{UUID: d.UUID, Owner: c.Fingerprint, Org: c.Org, Label: d.Label, Access: access, Expires: d.Expires,
		Sealed: a.Deposit}
	if s.keeper != nil {
		if row.Sealed.Content, err = s.keeper.Wrap(ctx, d.UUID, d.Content); err != nil {
			return nil, err
		}
		row.Wrapped = true
	}
	return nil, s.store.Put(ctx, row, a.Replaces, once(req))
}

func (s *Server) get(ctx context.Context, req *trustee.Request) (any, error) {
	const op = "server.get"
	var a trustee.GetArgs
	if err := req.ReadArgs(&a); err != nil {
		return nil, err
	}
	row, err := s.store.Get(ctx, a.UUID)
	if err != nil {
		return nil, err
	}
	c, err := s.store.Client(ctx, req.Client.Fingerprint())
	if err != nil {
		return nil, err
	}
	mayRead := row.Owner == c.Fingerprint
	for _, f := range row.Access {
		mayRead = mayRead || f == c.Fingerprint && row.Org == c.Org
	}
	if !mayRead || s.expired(&row) { // a client without access must not learn that the deposit exists
		return nil, claviger.E(op, claviger.KeyNotFound, a.UUID, nil)
	}
	return s.opened(ctx, &row)
}

func (s *Server) expired(r *Row) bool { return !r.Expires.IsZero() && !s.now().Before(r.Expires) }

func (s *Server) find(ctx context.Context, req *trustee.Request) (any, error) {
	var a trustee.FindArgs
	if err := req.ReadArgs(&a); err != nil {
		return nil, err
	}
	row, err := s.store.Find(ctx, req.Client.Fingerprint(), a.Label)
	if err != nil {
		return nil, err
	}
	if s.expired(&row) {
		return nil, claviger.E("server.find", claviger.KeyNotFound, a.Label, nil)
	}
	return s.opened(ctx, &row)
}

// opened returns a deposit as the owner sent it, so unwrapped.
func (s *Server) opened(ctx context.Context, row *Row) (any, error) {
	if !row.Wrapped {
		return row.Sealed, nil
	}
	if s.keeper == nil {
		return nil, claviger.Errorf("server.opened", claviger.Unavailable, "",
			"deposit %s is wrapped by a Key HSM, and this server was started without --keyhsm", row.UUID)
	}
	content, err := s.keeper.Unwrap(ctx, row.UUID, row.Sealed.Content)
	if claviger.Is(err, claviger.Invalid) {
		// The Key HSM of the other server may have the key, or the deposit may be undamaged there.
		return nil, claviger.Errorf("server.opened", claviger.Unavailable, "",
			"deposit %s cannot be unwrapped here: %w", row.UUID, err)
	}
	if err != nil {
		return nil, err
	}
	sealed := row.Sealed
	sealed.Content = content
	return sealed, nil
}

func (s *Server) list(ctx context.Context, req *trustee.Request) (any, error) {
	var a trustee.ListArgs
	if err := req.ReadArgs(&a); err != nil {
		return nil, err
	}
	if a.Limit < 1 || a.Limit > trustee.MaxPage {
		return nil, claviger.Errorf("server.list", claviger.Invalid, "", "a page has 1 to %d deposits, not %d",
			trustee.MaxPage, a.Limit)
	}
	rows, err := s.store.List(ctx, req.Client.Fingerprint(), a)
	if err != nil {
		return nil, err
	}
	list := make([]trustee.Sealed, 0, len(rows))
	size := 0
	for i := range rows {
		if size += len(rows[i].Sealed.Statement) + len(rows[i].Sealed.Signature); size > pageBytes && i > 0 {
			break
		}
		list = append(list, rows[i].Sealed)
	}
	return list, nil
}

// named returns the uuids of a request.
func named(req *trustee.Request) ([]string, error) {
	var a trustee.UUIDArgs
	if err := req.ReadArgs(&a); err != nil {
		return nil, err
	}
	if len(a.UUIDs) == 0 || len(a.UUIDs) > maxUUIDs {
		return nil, claviger.Errorf("server."+req.Verb, claviger.Invalid, "",
			"1 to %d uuids can be named at once, not %d", maxUUIDs, len(a.UUIDs))
	}
	return a.UUIDs, nil
}

func (s *Server) delete(ctx context.Context, req *trustee.Request) (any, error) {
	uuids, err := named(req)
	if err != nil {
		return nil, err
	}
	return nil, s.store.Delete(ctx, req.Client.Fingerprint(), uuids, s.now(), once(req))
}

func (s *Server) undelete(ctx context.Context, req *trustee.Request) (any, error) {
	uuids, err := named(req)
	if err != nil {
		return nil, err
	}
	return nil, s.store.Undelete(ctx, req.Client.Fingerprint(), uuids, once(req))
}

func (s *Server) purge(ctx context.Context, req *trustee.Request) (any, error) {
	uuids, err := named(req)
	if err != nil {
		return nil, err
	}
	return nil, s.store.Purge(ctx, req.Client.Fingerprint(), uuids, once(req))
}
