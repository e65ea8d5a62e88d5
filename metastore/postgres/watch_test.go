package postgres_test

import (
	"context"
	"errors"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"claviger/internal/pgtest"
	"claviger/metastore"
	"claviger/metastore/postgres"
)

// TestWatchBeginsWithoutServer checks that Watch waits for a server that cannot be reached yet.
func TestWatchBeginsWithoutServer(t *testing.T) {
	server := pgtest.Start(t)
	var log syncBuffer
	s := openConfig(t, postgres.Config{URI: server.Database(t), Log: slog.New(slog.NewTextHandler(&log, nil))})
	server.Stop(t)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	done := make(chan error, 1)
	go func() { done <- s.Watch(ctx, func(metastore.Notice) {}) }()
	eventually(t, "the log has the loss", func() bool { return strings.Contains(log.String(), "do not arrive") })
	server.Start(t)
	eventually(t, "the notices come", func() bool { return strings.Contains(log.String(), "arrive again") })
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

// TestWatchCannotBegin checks that Watch returns the error of a server that refuses LISTEN.
func TestWatchCannotBegin(t *testing.T) {
	f, s, _ := faultyStores(t)
	f.Skip = func(statement string, _ bool) bool { return !strings.HasPrefix(statement, "LISTEN") }
	for fault, err := range f.EachFails(func() error {
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		defer cancel()
		return s.Watch(ctx, func(metastore.Notice) {})
	}) {
		if fault.Number != 1 || err == nil {
			t.Errorf("%s: %v", fault, err)
		}
		break
	}
}

// TestWatchEndsLast checks that Watch returns after the last call of its function.
func TestWatchEndsLast(t *testing.T) {
	uri := emptyStore(t)
	s := openConfig(t, postgres.Config{URI: uri})
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	called, release, done := make(chan struct{}, 1), make(chan struct{}), make(chan error, 1)
	go func() {
		done <- s.Watch(ctx, func(metastore.Notice) {
			select {
			case called <- struct{}{}:
			default:
			}
			<-release
		})
	}()
	eventually(t, "the store reads the changes", func() bool { return !s.NoticesUntil().IsZero() })
	// No notice reports this change, so only a read of the changes does.
	exec(t, uri, `INSERT INTO change (id, key, change, at) VALUES ('a', 'k', 'rolled', 1)`)
	<-called
	cancel()
	select {
	case err := <-done:
		t.Errorf("Watch returns while its function runs: %v", err)
	case <-time.After(300 * time.Millisecond):
		close(release)
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
}

// TestNext checks that a connection without notifications is used on as long as it answers.
func TestNext(t *testing.T) {
	server := pgtest.Shared(t)
	proxy := pgtest.NewProxy(t, server.Addr)
	conn, err := pgx.Connect(t.Context(), strings.Replace(pgtest.Database(t), server.Addr, proxy.Addr, 1))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close(context.Background()) }() // an error does not matter
	if n, err := postgres.Next(t.Context(), conn, 20*time.Millisecond); n != nil || err != nil {
		t.Errorf("an idle connection: %v, %v", n, err)
	}
	for _, statement := range []string{"LISTEN x", "NOTIFY x, 'text'"} {
		if _, err := conn.Exec(t.Context(), statement); err != nil {
			t.Fatal(err)
		}
	}
	if n, err := postgres.Next(t.Context(), conn, time.Minute); n == nil || n.Payload != "text" || err != nil {
		t.Errorf("a notification: %v, %v", n, err)
	}
	proxy.Hang()
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	if n, err := postgres.Next(ctx, conn, 20*time.Millisecond); n != nil || !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("a connection that does not answer: %v, %v", n, err)
	}
	proxy.Pass()
}
