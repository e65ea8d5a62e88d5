package location

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"path/filepath"
	"strings"
	"testing"

	"claviger/trustee/server"
	"claviger/trustee/server/sqlite"
	"claviger/trustee/server/storetest"
)

var errInjected = errors.New("injected fault")

// failing is a database of which one call fails.
type failing struct {
	*sqlite.Store
	role     server.Role
	calls    int
	fail     int // the number of the call that fails, from 1; 0: none
	promoted bool
	closed   bool
}

const failingURI = "postgresql://u@h/d"

// newFailing returns a database with the records of storetest.Fill.
func newFailing(t *testing.T, role server.Role) *failing {
	t.Helper()
	s, err := sqlite.Open(t.Context(), filepath.Join(t.TempDir(), FileName), true)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() }) // the test needs no more of it
	storetest.Fill(t, s)
	return &failing{Store: s, role: role}
}

func (f *failing) call() error {
	if f.calls++; f.calls == f.fail {
		return errInjected
	}
	return nil
}

func (f *failing) URI() string { return failingURI }

func (f *failing) Role(context.Context) (server.Role, error) { return f.role, f.call() }

func (f *failing) Deposits(ctx context.Context) (live, deleted int64, err error) {
	if err := f.call(); err != nil {
		return 0, 0, err
	}
	return f.Store.Deposits(ctx)
}

func (f *failing) Export(ctx context.Context, add func(server.Record) error) error {
	if err := f.call(); err != nil {
		return err
	}
	return f.Store.Export(ctx, add)
}

func (f *failing) Promote(context.Context) error {
	f.promoted = true
	return f.call()
}

func (f *failing) Close() error {
	f.closed = true
	return f.call()
}

// TestEachCallFails fails each call that an operation makes to a database. The operation must return that error, and
// must close the database.
func TestEachCallFails(t *testing.T) {
	for name, c := range map[string]struct {
		do     func(ctx context.Context, f *failing) error
		closes bool // also without an error
	}{
		"status": {func(ctx context.Context, f *failing) error {
			_, err := statusOf(ctx, f, true)
			return err
		}, true},
		"promote": {func(ctx context.Context, f *failing) error {
			_, err := promote(ctx, f, true)
			return err
		}, true},
		"logged": {func(ctx context.Context, f *failing) error {
			_, err := logStore(ctx, f, nil)
			return err
		}, false},
		"holdsRecords": {func(ctx context.Context, f *failing) error {
			_, err := holdsRecords(ctx, f)
			return err
		}, false},
	} {
		f := newFailing(t, server.RolePassive)
		if err := c.do(t.Context(), f); err != nil || f.calls == 0 || f.closed != c.closes {
			t.Errorf("%s: %v, after %d calls, closed: %t", name, err, f.calls, f.closed)
		}
		for n, last := 1, f.calls; n <= last; n++ {
			f.calls, f.fail, f.closed = 0, n, false
			if err := c.do(t.Context(), f); !errors.Is(err, errInjected) || !f.closed {
				t.Errorf("%s: call %d of %d fails: %v, closed: %t", name, n, last, err, f.closed)
			}
		}
	}
}

// TestStatusOf checks that a status has a digest only on request.
func TestStatusOf(t *testing.T) {
	for _, role := range []server.Role{server.RoleActive, server.RolePassive} {
		f := newFailing(t, role)
		want := DatabaseStatus{Role: role, Store: failingURI, Deposits: 4, Deleted: 1}
		for _, digest := range []bool{false, true} {
			if digest {
				want.Digest = storetest.Digest(t, f)
			}
			if got, err := statusOf(t.Context(), f, digest); err != nil || got != want {
				t.Errorf("digest %t: %+v, %v; want %+v", digest, got, err, want)
			}
		}
	}
}

// TestPromote checks that only a standby is promoted, and only by force.
func TestPromote(t *testing.T) {
	for _, c := range []struct {
		role    server.Role
		force   bool
		refusal string
	}{
		{server.RoleActive, false, "is a primary"},
		{server.RoleActive, true, "is a primary"},
		{server.RolePassive, false, "promote --force"},
		{server.RolePassive, true, ""},
	} {
		f := newFailing(t, c.role)
		uri, err := promote(t.Context(), f, c.force)
		if c.refusal == "" {
			if err != nil || uri != failingURI || !f.promoted {
				t.Errorf("%+v: %s, %v, promoted: %t", c, uri, err, f.promoted)
			}
			continue
		}
		if err == nil || !strings.Contains(err.Error(), c.refusal) || uri != "" || f.promoted {
			t.Errorf("%+v: %s, %v, promoted: %t", c, uri, err, f.promoted)
		}
	}
}

// TestLogged checks that the log says where the deposits are, and whether the database accepts changes.
func TestLogged(t *testing.T) {
	for role, standby := range map[server.Role]string{server.RoleActive: "standby=false",
		server.RolePassive: "standby=true"} {
		f := newFailing(t, role)
		var log bytes.Buffer
		s, err := logStore(t.Context(), f, slog.New(slog.NewTextHandler(&log, nil)))
		if err != nil || s != server.Store(f) || !strings.Contains(log.String(), standby) ||
			!strings.Contains(log.String(), failingURI) {
			t.Errorf("%s: %v, log %q", role, err, &log)
		}
	}
}
