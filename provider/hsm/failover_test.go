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

// TestFailoverAfterAStart: a start gives the token an incarnation once the standby that follows has it,
// so that a standby which takes over right afterwards lacks nothing. One that stays behind is not waited
// for without end, and one that is away not at all.
func TestFailoverAfterAStart(t *testing.T) {
	primary := pgtest.StartReplicated(t)
	b := newBacking(t)
	b.pg = primary.Database(t)
	b.create(t, "k")
	standby := primary.Standby(t)
	b.closeStores(t)
	u, err := url.Parse(b.pg)
	if err != nil {
		t.Fatal(err)
	}
	b.pg = fmt.Sprintf("postgresql://%s@%s,%s%s?sslmode=disable", pgtest.Superuser, primary.Addr, standby.Addr, u.Path)
	var token []byte
	taken := func() bool {
		was := token
		token = bound(t, b)[0].Value
		return !bytes.Equal(token, was)
	}
	taken()
	began := time.Now()
	open := func() chan *hsm.Provider {
		began = time.Now()
		opened := make(chan *hsm.Provider, 1)
		go func() {
			p, err := b.open(t.Context())
			if err != nil {
				t.Error(err)
			}
			opened <- p
		}()
		return opened
	}
	done := func(opened chan *hsm.Provider, most time.Duration) *hsm.Provider {
		t.Helper()
		p := <-opened
		if p == nil {
			t.FailNow()
		}
		if took := time.Since(began); took > most {
			t.Errorf("the start took %v", took)
		}
		if !taken() {
			t.Error("the token has nothing new")
		}
		return p
	}

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

	const follow = 5 * time.Second // and longer, if it waited for a standby that is away
	standby.Stop(t)
	mustClose(t, done(open(), follow))
	standby.Start(t)
	standby.CatchUp(t, primary)
	mustClose(t, done(open(), follow))

	standby.Pause()
	mustClose(t, done(open(), 15*time.Second))
	standby.Resume()
	standby.CatchUp(t, primary)

	standby.Pause()
	was := history()
	opened := open()
	for history() == was {
		if time.Since(began) > 15*time.Second {
			t.Fatal("the store has nothing new")
		}
		time.Sleep(20 * time.Millisecond)
	}
	time.Sleep(time.Second) // nothing is to happen meanwhile
	if taken() {
		t.Error("the token has what the standby lacks")
	}
	standby.Resume()
	p := done(opened, 15*time.Second)
	_ = conn.Close(t.Context()) // of a server that is killed
	primary.Kill(t)
	standby.Promote(t)
	mustClose(t, p)
	p = b.mustOpen(t)
	keystream(t, p, "k@0")
	create(t, p, "new")
	mustClose(t, p)
	b.closeStores(t)
}
