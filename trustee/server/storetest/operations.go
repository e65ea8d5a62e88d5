package storetest

import (
	"context"
	"time"

	"claviger/trustee"
	"claviger/trustee/server"
)

// Operation is a call of a method of a store.
type Operation struct {
	Name string
	Do   func(ctx context.Context, s server.Store) error
}

// Reads returns calls of all methods that change no record. They succeed after Fill.
func Reads() []Operation {
	return []Operation{
		{"Orgs", func(ctx context.Context, s server.Store) error { _, err := s.Orgs(ctx); return err }},
		{"Org", func(ctx context.Context, s server.Store) error { _, err := s.Org(ctx, Org); return err }},
		{"Client", func(ctx context.Context, s server.Store) error { _, err := s.Client(ctx, Owner); return err }},
		{"Clients", func(ctx context.Context, s server.Store) error { _, err := s.Clients(ctx, Org); return err }},
		{"Get", func(ctx context.Context, s server.Store) error { _, err := s.Get(ctx, "u2"); return err }},
		{"Find", func(ctx context.Context, s server.Store) error {
			_, err := s.Find(ctx, Owner, Row(2).Label)
			return err
		}},
		{"List", func(ctx context.Context, s server.Store) error {
			_, err := s.List(ctx, Owner, trustee.ListArgs{Limit: 9})
			return err
		}},
		{"Export", func(ctx context.Context, s server.Store) error {
			return s.Export(ctx, func(server.Record) error { return nil })
		}},
		{"Role", func(ctx context.Context, s server.Store) error { _, err := s.Role(ctx); return err }},
		{"Check", func(ctx context.Context, s server.Store) error { return s.Check(ctx) }},
		{"CheckWrites", func(ctx context.Context, s server.Store) error { return s.CheckWrites(ctx) }},
	}
}

// Changes returns calls of all methods that change records. After Fill, they succeed in this order.
func Changes() []Operation {
	return []Operation{
		{"AddOrg", func(ctx context.Context, s server.Store) error {
			return s.AddOrg(ctx, server.Org{Name: "NEW", UUID: "n"})
		}},
		{"SetAuth", func(ctx context.Context, s server.Store) error { return s.SetAuth(ctx, "NEW", "x") }},
		{"AddClient", func(ctx context.Context, s server.Store) error {
			_, err := s.AddClient(ctx, server.Client{Fingerprint: "EE", Org: "NEW", PublicKey: []byte{2},
				State: server.Pending}, Request("n1"))
			return err
		}},
		{"SetState", func(ctx context.Context, s server.Store) error { return s.SetState(ctx, "EE", server.Active) }},
		{"Put", func(ctx context.Context, s server.Store) error { return s.Put(ctx, Row(10), "u0", Request("n2")) }},
		{"Delete", func(ctx context.Context, s server.Store) error {
			return s.Delete(ctx, Owner, []string{"u2", "u10"}, at, Request("n3"))
		}},
		{"Undelete", func(ctx context.Context, s server.Store) error {
			return s.Undelete(ctx, Owner, []string{"u10"}, Request("n4"))
		}},
		{"Purge", func(ctx context.Context, s server.Store) error {
			return s.Purge(ctx, Owner, []string{"u1", "u2"}, Request("n5"))
		}},
		{"Forget", func(ctx context.Context, s server.Store) error { return s.Forget(ctx, at.Add(2*time.Hour)) }},
		{"Import", func(ctx context.Context, s server.Store) error {
			return s.Import(ctx, NextOf([]server.Record{{Org: &server.Org{Name: Org, UUID: "o", Created: at}},
				{Client: &server.Client{Fingerprint: Owner, Org: Org, PublicKey: []byte{1}, State: server.Active,
					Created: at}}}))
		}},
	}
}
