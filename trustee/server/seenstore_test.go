package server_test

import (
	"context"
	"time"

	"claviger/trustee"
	"claviger/trustee/server"
)

// seenStore is the store of a tracedServer. Methods that are not here reach the store directly.
type seenStore struct {
	server.Store
	b *tracedServer
}

func (s *seenStore) Org(ctx context.Context, name string) (server.Org, error) {
	if err := s.b.call("Org"); err != nil {
		return server.Org{}, err
	}
	return s.Store.Org(ctx, name)
}

func (s *seenStore) AddClient(ctx context.Context, c server.Client, once server.Once) (server.Client, error) {
	if err := s.b.call("AddClient"); err != nil {
		return server.Client{}, err
	}
	return s.Store.AddClient(ctx, c, once)
}

func (s *seenStore) Client(ctx context.Context, fingerprint string) (server.Client, error) {
	if err := s.b.call("Client"); err != nil {
		return server.Client{}, err
	}
	return s.Store.Client(ctx, fingerprint)
}

func (s *seenStore) Clients(ctx context.Context, org string) ([]server.Client, error) {
	if err := s.b.call("Clients"); err != nil {
		return nil, err
	}
	return s.Store.Clients(ctx, org)
}

func (s *seenStore) Put(ctx context.Context, r server.Row, replaces string, once server.Once) error {
	if err := s.b.call("Put"); err != nil {
		return err
	}
	return s.Store.Put(ctx, r, replaces, once)
}

func (s *seenStore) Get(ctx context.Context, uuid string) (server.Row, error) {
	if err := s.b.call("Get"); err != nil {
		return server.Row{}, err
	}
	return s.Store.Get(ctx, uuid)
}

func (s *seenStore) Find(ctx context.Context, owner, label string) (server.Row, error) {
	if err := s.b.call("Find"); err != nil {
		return server.Row{}, err
	}
	return s.Store.Find(ctx, owner, label)
}

func (s *seenStore) List(ctx context.Context, owner string, a trustee.ListArgs) ([]server.Row, error) {
	if err := s.b.call("List"); err != nil {
		return nil, err
	}
	return s.Store.List(ctx, owner, a)
}

func (s *seenStore) Delete(ctx context.Context, owner string, uuids []string, at time.Time, once server.Once) error {
	if err := s.b.call("Delete"); err != nil {
		return err
	}
	return s.Store.Delete(ctx, owner, uuids, at, once)
}

func (s *seenStore) Undelete(ctx context.Context, owner string, uuids []string, once server.Once) error {
	if err := s.b.call("Undelete"); err != nil {
		return err
	}
	return s.Store.Undelete(ctx, owner, uuids, once)
}

func (s *seenStore) Purge(ctx context.Context, owner string, uuids []string, once server.Once) error {
	if err := s.b.call("Purge"); err != nil {
		return err
	}
	return s.Store.Purge(ctx, owner, uuids, once)
}

func (s *seenStore) Forget(ctx context.Context, now time.Time) error {
	if err := s.b.call("Forget"); err != nil {
		return err
	}
	return s.Store.Forget(ctx, now)
}

func (s *seenStore) Export(ctx context.Context, f func(server.Record) error) error {
	if err := s.b.call("Export"); err != nil {
		return err
	}
	return s.Store.Export(ctx, f)
}

func (s *seenStore) CheckWrites(ctx context.Context) error {
	if err := s.b.call("CheckWrites"); err != nil {
		return err
	}
	return s.Store.CheckWrites(ctx)
}
