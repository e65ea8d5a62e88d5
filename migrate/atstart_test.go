package migrate_test

import (
	"strings"
	"testing"
	"time"

	"claviger"
	"claviger/internal/golden"
	"claviger/migrate"
)

// TestAtStart: AtStart waits while another process migrates, and Run is refused.
func TestAtStart(t *testing.T) {
	b := newTestMigration(t)
	ctx := t.Context()
	b.add(t, "k", 1)

	// Run is refused while another process migrates, and AtStart waits for that process.
	unlock, err := b.store.Lock(ctx, migrate.LockName)
	must(t, err)
	if _, err := b.engine(t).Run(ctx); !claviger.Is(err, claviger.Unavailable) ||
		!strings.Contains(err.Error(), "another process is migrating") {
		t.Errorf("run while another process migrates: %v", err)
	}
	done := make(chan error)
	go func() {
		_, err := b.engine(t).AtStart(ctx)
		done <- err
	}()
	select {
	case err := <-done:
		t.Fatalf("did not wait: %v", err)
	case <-time.After(50 * time.Millisecond):
	}
	unlock()
	must(t, <-done)
	b.sameMetadata(t, "k")

	// If the source stops answering after the migration, the server starts nevertheless.
	unreachable := claviger.Errorf("kmsclient.Keys", claviger.Unavailable, "",
		"dial tcp 192.0.2.1:16000: connect: connection refused")
	b.cfg.Source = &stub{Source: b.source, keysErr: unreachable}
	if r, err := b.engine(t).AtStart(ctx); err != nil || !r.Complete() || len(r.Keys) != 1 {
		t.Errorf("%+v, %v", r, err)
	}
	// Before the first migration is complete, the server does not start without the source.
	fresh := newTestMigration(t)
	fresh.cfg.Source = b.cfg.Source
	_, err = fresh.engine(t).AtStart(ctx)
	if !claviger.Is(err, claviger.SourceUnreachable) {
		t.Errorf("kind of %v", err)
	}
	golden.Compare(t, "testdata/unreachable.golden", err.Error()+"\n")

	fresh.cfg.Source = &stub{Source: b.source, keysErr: claviger.Errorf("kmsclient.Keys", claviger.Denied, "",
		"User:mig not allowed to do 'GET_KEYS'")}
	fresh.cfg.Probes.User = "mig"
	_, err = fresh.engine(t).AtStart(ctx)
	if !claviger.Is(err, claviger.SourceRefused) {
		t.Errorf("kind of %v", err)
	}
	golden.Compare(t, "testdata/refused.golden", err.Error()+"\n")

	fresh.cfg.Source = nil
	_, err = fresh.engine(t).AtStart(ctx)
	if !claviger.Is(err, claviger.Invalid) {
		t.Errorf("kind of %v", err)
	}
	golden.Compare(t, "testdata/no-source.golden", err.Error()+"\n")
	if runs, err := fresh.store.Runs(ctx); err != nil || len(runs) != 0 {
		t.Errorf("a start that failed wrote %q, %v", runs, err)
	}
}
