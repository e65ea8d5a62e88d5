package hsm_test

import (
	"bytes"
	"fmt"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"claviger/internal/pgtest"
	"claviger/provider/hsm"
)

// tokenWatch opens providers and watches whether the token gets a new incarnation.
type tokenWatch struct {
	b     *testSite
	value []byte    // of the token's data object, when changed was last called
	began time.Time // when open was last called
}

// changed reports whether the token's data object has changed since the last call.
func (w *tokenWatch) changed(t *testing.T) bool {
	before := w.value
	w.value = bound(t, w.b)[0].Value
	return !bytes.Equal(w.value, before)
}

// open begins to open a provider.
func (w *tokenWatch) open(t *testing.T) chan *hsm.Provider {
	w.began = time.Now()
	opened := make(chan *hsm.Provider, 1)
	go func() {
		p, err := w.b.open(t.Context())
		if err != nil {
			t.Error(err)
		}
		opened <- p
	}()
	return opened
}

// wait waits for the provider that open opens, and demands that the token has a new incarnation within limit.
func (w *tokenWatch) wait(t *testing.T, opened chan *hsm.Provider, limit time.Duration) *hsm.Provider {
	t.Helper()
	p := <-opened
	if p == nil {
		t.FailNow()
	}
	if took := time.Since(w.began); took > limit {
		t.Errorf("the start took %v", took)
	}
	if !w.changed(t) {
		t.Error("the token has nothing new")
	}
	return p
}

// TestFailoverAfterAStart: a start writes an incarnation to the token once the standby that follows has it, so that a
// standby which takes over right afterwards lacks nothing. The start waits a limited time for a standby that stays
// behind, and does not wait for one that does not answer.
func TestFailoverAfterAStart(t *testing.T) {
	primary := pgtest.StartReplicated(t)
	b := newSite(t)
	b.pg = primary.Database(t)
	b.create(t, "k")
	standby := primary.Standby(t)
	b.closeStores(t)
	u, err := url.Parse(b.pg)
	if err != nil {
		t.Fatal(err)
	}
	b.pg = fmt.Sprintf("postgresql://%s@%s,%s%s?sslmode=disable", pgtest.Superuser, primary.Addr, standby.Addr, u.Path)
	w := &tokenWatch{b: b}
	w.changed(t)
	conn, err := pgx.Connect(t.Context(), primary.URI(pgtest.Superuser, strings.TrimPrefix(u.Path, "/")))
	if err != nil {
		t.Fatal(err)
	}
	history := func() (list string) {
		const read = `SELECT value FROM setting WHERE name = 'store.incarnations'`
		if err := conn.QueryRow(t.Context(), read).Scan(&list); err != nil {
			t.Fatal(err)
		}
		return list
	}

	const follow = 5 * time.Second // a start that waits for a standby that does not answer takes longer
	standby.Stop(t)
	mustClose(t, w.wait(t, w.open(t), follow))
	standby.Start(t)
	standby.CatchUp(t, primary)
	mustClose(t, w.wait(t, w.open(t), follow))

	standby.Pause()
	mustClose(t, w.wait(t, w.open(t), 15*time.Second))
	standby.Resume()
	standby.CatchUp(t, primary)

	standby.Pause()
	before := history()
	opened := w.open(t)
	for history() == before {
		if time.Since(w.began) > 15*time.Second {
			t.Fatal("the store has nothing new")
		}
		time.Sleep(20 * time.Millisecond)
	}
	time.Sleep(time.Second) // nothing must happen meanwhile
	if w.changed(t) {
		t.Error("the token has an incarnation that the standby lacks")
	}
	standby.Resume()
	p := w.wait(t, opened, 15*time.Second)
	_ = conn.Close(t.Context()) // the server is killed next
	primary.Kill(t)
	standby.Promote(t)
	mustClose(t, p)
	p = b.mustOpen(t)
	keystream(t, p, "k@0")
	create(t, p, "new")
	mustClose(t, p)
	b.closeStores(t)
}
