package hsm_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	p11 "github.com/miekg/pkcs11"
	"golang.org/x/sync/errgroup"

	"claviger"
	"claviger/internal/pgtest"
	"claviger/metastore"
	"claviger/metastore/sqlite"
	"claviger/pkcs11"
	"claviger/provider"
	"claviger/provider/hsm"
)

// beside returns another site for the same token, with data as a copy of the store.
func (b *testSite) beside(t *testing.T, data []byte) *testSite {
	t.Helper()
	c := newSiteAt(t, b.token)
	if err := os.WriteFile(c.db, data, 0o600); err != nil {
		t.Fatal(err)
	}
	return c
}

// wantStale demands that every access that serves or changes keys is refused to b's store, and that the error names the
// copy that has the token.
func wantStale(t *testing.T, b, by *testSite) {
	t.Helper()
	for _, access := range []hsm.Access{hsm.Serve, hsm.Read, hsm.Journal, hsm.Destroy} {
		b.access = access
		p, err := b.open(t.Context())
		if err == nil {
			mustClose(t, p)
		}
		if !hsm.IsStale(err) || !hsm.IsMisfit(err) {
			t.Errorf("access %d: %v", access, err)
			continue
		}
		for _, want := range []string{b.db, by.db, b.token.Serial, "claviger metastore accept", "claviger hsm adopt"} {
			if !strings.Contains(err.Error(), want) {
				t.Errorf("%q is not in %v", want, err)
			}
		}
	}
	b.access = hsm.Serve
}

// acceptCopy decides, as an operator does, that a stale copy stays in use.
func acceptCopy(t *testing.T, b *testSite) {
	t.Helper()
	b.access = hsm.Repair
	p := b.mustOpen(t)
	if err := p.CheckNotStale(t.Context()); !hsm.IsStale(err) {
		t.Errorf("before: %v", err)
	}
	if list, err := p.Candidates(t.Context()); err != nil {
		t.Error(err)
	} else if len(list) > 0 {
		if err := p.Adopt(t.Context(), list[0], hsm.Adoption{}); !hsm.IsStale(err) {
			t.Errorf("adopted: %v", err)
		}
		if err := p.SetAside(t.Context(), list[0], hsm.Adoption{}); !hsm.IsStale(err) {
			t.Errorf("set aside: %v", err)
		}
	}
	if from, written, err := p.AcceptCopy(t.Context()); err != nil || !written ||
		!strings.HasPrefix(from, "sqlite:///") || strings.HasSuffix(from, b.db) {
		t.Fatal(from, err)
	}
	if err := p.CheckNotStale(t.Context()); err != nil {
		t.Errorf("afterwards: %v", err)
	}
	mustClose(t, p)
	b.access = hsm.Serve
}

// rebind gives the token to a site's store, as an operator decides, and gives up the keys that the token lacks.
func (b *testSite) rebind(t *testing.T) {
	t.Helper()
	b.access = hsm.Rebind
	p := b.mustOpen(t)
	if err := p.Rebind(t.Context()); err != nil {
		t.Fatal(err)
	}
	mustClose(t, p)
	b.access = hsm.Serve
}

// forgetWhole deletes a key. Later the token shows its object again.
func (b *testSite) forgetWhole(t *testing.T, p *hsm.Provider, key string) {
	t.Helper()
	b.meter.Fail("DestroyObject", 1, errKilled)
	if err := p.Delete(t.Context(), key); err != nil {
		t.Fatal(err)
	}
	b.withStore(t, func(s metastore.Store) {
		if err := s.Drop(t.Context(), key); err != nil {
			t.Fatal(err)
		}
	})
}

// TestKilledBetweenTheWrites: a start is killed before, between or after the writes of its incarnation. That does no
// harm, even if a version is lost. A copy that was made before is refused once the token has a new incarnation.
func TestKilledBetweenTheWrites(t *testing.T) {
	for _, c := range []struct {
		name    string
		fault   func(*testSite, *settingFails)
		written bool // whether the token has the incarnation
	}{
		{"before the history", func(_ *testSite, s *settingFails) { s.at = 1 }, false},
		{"before the token", func(b *testSite, _ *settingFails) { b.meter.Fail("CreateObject", 1000, errKilled) },
			false},
		{"before the old object is destroyed", func(b *testSite,
			_ *settingFails) {
			b.meter.Fail("DestroyObject", 1, nil) // of the key that tries the mechanisms
			b.meter.Fail("DestroyObject", 1, errKilled)
		}, true},
		{"before the note", func(_ *testSite, s *settingFails) { s.at = 2 }, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			b := newSite(t)
			for _, key := range []string{"k", "k2", "k3", "lost"} {
				b.create(t, key)
			}
			b.destroyObjects(t, "lost@0")
			data := b.copyStore(t)
			fails := &settingFails{}
			b.around = func(s metastore.Store) metastore.Store { fails.Store = s; return fails }
			c.fault(b, fails)
			mustClose(t, b.mustOpen(t))
			b.meter.Heal()
			b.around = nil
			other := b.beside(t, data)
			if c.written {
				wantStale(t, other, b)
			} else {
				other.access = hsm.Read
				mustClose(t, other.mustOpen(t))
			}
			p := b.mustOpen(t)
			create(t, p, "new")
			keystream(t, p, "k@0")
			mustClose(t, p)
			if list := bound(t, b); len(list) != 1 {
				t.Errorf("%d objects: %s", len(list), list)
			}
			wantStale(t, other, b)
		})
	}
}

// settingFails is a store that is killed at the n-th write of the history. All later writes fail too.
type settingFails struct {
	metastore.Store
	at, n int
}

func (f *settingFails) SetSetting(ctx context.Context, name, value string) error {
	if name == "store.incarnations" {
		if f.n++; f.at > 0 && f.n >= f.at {
			return errKilled
		}
	}
	return f.Store.SetSetting(ctx, name, value)
}

// TestTokenThatTakesNoIncarnation: a token without room is served. No key is made before it has taken an incarnation.
func TestTokenThatTakesNoIncarnation(t *testing.T) {
	b := newSite(t)
	b.create(t, "k")
	b.meter.Fail("CreateObject", 1000, errKilled)
	p := b.mustOpen(t)
	keystream(t, p, "k@0")
	if _, err := p.Create(t.Context(), provider.Spec{Name: "new", Cipher: claviger.DefaultCipher,
		BitLength: 256}); !errors.Is(err, errKilled) {
		t.Errorf("%v", err)
	}
	b.meter.Heal()
	create(t, p, "new")
	if err := p.CheckFit(t.Context()); err != nil {
		t.Error(err)
	}
}

// TestHistoryKeepsTheTokensOwn: neither refused changes nor failed starts push the token's incarnation out of the
// history, even if a process was killed before it recorded that the token has it.
func TestHistoryKeepsTheTokensOwn(t *testing.T) {
	ctx := t.Context()
	b := newSite(t)
	b.create(t, "k")
	type entry struct {
		ID     string `json:"id"`
		Serial string `json:"serial"`
		Put    bool   `json:"put,omitempty"`
	}
	read := func() (list []entry) {
		t.Helper()
		if err := json.Unmarshal([]byte(b.setting(t, "store.incarnations", "")), &list); err != nil {
			t.Fatal(err)
		}
		return list
	}
	list := read()
	last := &list[len(list)-1]
	if !last.Put || !strings.Contains(string(bound(t, b)[0].Value), last.ID) {
		t.Fatal(list)
	}
	last.Put = false
	data, err := json.Marshal(list)
	if err != nil {
		t.Fatal(err)
	}
	b.setting(t, "store.incarnations", string(data))
	b.meter.Fail("CreateObject", 10000, errKilled)
	p := b.mustOpen(t)
	for range 520 { // more entries than the history keeps
		if _, err := p.Create(ctx, provider.Spec{Name: "x", Cipher: claviger.DefaultCipher,
			BitLength: 256}); !errors.Is(err, errKilled) {
			t.Fatal(err)
		}
	}
	mustClose(t, p)
	if now := read(); len(now) > len(list)+1 {
		t.Errorf("%d entries, before %d", len(now), len(list))
	}
	for range 20 {
		mustClose(t, b.mustOpen(t))
	}
	if now := read(); len(now) > len(list)+16 {
		t.Errorf("%d entries after starts that failed, before %d", len(now), len(list))
	}
	b.meter.Heal()
	p = b.mustOpen(t)
	create(t, p, "x")
	mustClose(t, p)
	mustClose(t, b.mustOpen(t))
}

// TestTokenThatReplacesNoObjects: the policy of a token forbids to replace its data object. Keys are made anyway.
// Another copy of the store is noticed if it could replace the object.
func TestTokenThatReplacesNoObjects(t *testing.T) {
	b := newSite(t)
	b.create(t, "k")
	before := bound(t, b)
	other := b.beside(t, b.copyStore(t))
	b.meter.Fail("CreateObject", 1000, p11.Error(p11.CKR_ACTION_PROHIBITED))
	var p *hsm.Provider
	for i := range 2 {
		p = b.mustOpen(t)
		create(t, p, fmt.Sprint("of", i))
		if err := p.CheckFit(t.Context()); err != nil {
			t.Error(err)
		}
		if i == 0 {
			mustClose(t, p)
		}
	}
	if now := bound(t, b); len(now) != 1 || !bytes.Equal(now[0].Value, before[0].Value) {
		t.Errorf("%s, before %s", now, before)
	}
	mustClose(t, other.mustOpen(t))
	wantStopped(t, p, "k", "is a copy of the metastore", other.db)
}

// TestIncarnationOfOlderPrograms: an object without an incarnation is taken over once.
func TestIncarnationOfOlderPrograms(t *testing.T) {
	b := newSite(t)
	b.create(t, "k")
	data := b.copyStore(t)
	b.withToken(t, func(tok *pkcs11.Token) {
		list, err := tok.ListData(t.Context(), "claviger")
		if err != nil || len(list) != 1 {
			t.Fatal(list, err)
		}
		var object map[string]any
		if err := json.Unmarshal(list[0].Value, &object); err != nil || object["incarnation"] == nil {
			t.Fatal(object, err)
		}
		delete(object, "incarnation")
		delete(object, "served")
		list[0].Value, _ = json.Marshal(object)
		if err := tok.PutData(t.Context(), list[0]); err != nil {
			t.Fatal(err)
		}
	})
	b.setting(t, "store.incarnations", "[]")
	p := b.mustOpen(t)
	create(t, p, "new")
	mustClose(t, p)
	wantStale(t, b.beside(t, data), b)
}

// TestCopyFromBeforeChanges: a copy was made while the store was served. It is refused if keys were changed since, once
// the server has ended or an hour has passed. Otherwise it is not refused.
func TestCopyFromBeforeChanges(t *testing.T) {
	ctx := t.Context()
	b := newSite(t)
	b.soft = "true"
	b.create(t, "k")
	for name, c := range map[string]struct {
		change func(*hsm.Provider) error
		end    func(*hsm.Provider) error
	}{
		"nothing": {func(*hsm.Provider) error { return nil }, (*hsm.Provider).Close},
		"roll": {func(p *hsm.Provider) error {
			_, err := p.Roll(ctx, "k", nil)
			return err
		}, (*hsm.Provider).Close},
		"deletion and undeletion": {func(p *hsm.Provider) error {
			return errors.Join(p.Delete(ctx, "k"), p.Undelete(ctx, "k", "k@0"))
		}, (*hsm.Provider).Close},
		"an hour": {func(p *hsm.Provider) error {
			_, err := p.Roll(ctx, "k", nil)
			return err
		}, func(p *hsm.Provider) error {
			err := p.SurveyNow(ctx)
			t.Cleanup(func() { _ = p.Close() })
			return err
		}},
	} {
		t.Run(name, func(t *testing.T) {
			p := b.mustOpen(t)
			copied := filepath.Join(t.TempDir(), "copy.db")
			if _, err := sqlite.Backup(ctx, b.db, copied); err != nil {
				t.Fatal(err)
			}
			if err := errors.Join(c.change(p), c.end(p)); err != nil {
				t.Fatal(err)
			}
			data, err := os.ReadFile(copied)
			if err != nil {
				t.Fatal(err)
			}
			other := b.beside(t, data)
			if name != "nothing" {
				wantStale(t, other, b)
				return
			}
			other.access = hsm.Read
			mustClose(t, other.mustOpen(t))
		})
	}
}

// TestStartsSideBySide: nodes that start at the same time have each other's incarnations in their history.
func TestStartsSideBySide(t *testing.T) {
	b := newSite(t)
	b.create(t, "k")
	var g errgroup.Group
	nodes := make([]*hsm.Provider, 4)
	for i := range nodes {
		g.Go(func() (err error) {
			nodes[i], err = b.open(t.Context())
			return err
		})
	}
	if err := g.Wait(); err != nil {
		t.Fatal(err)
	}
	for i, p := range nodes {
		create(t, p, fmt.Sprint("of", i))
		if err := p.Watch(t.Context()); err != nil {
			t.Error(err)
		}
	}
	for _, p := range nodes {
		mustClose(t, p)
	}
}

// TestTwoDatabases is TestTwoCopies for nodes on PostgreSQL, with a dump that was restored into another database.
func TestTwoDatabases(t *testing.T) {
	ctx := t.Context()
	server := pgtest.Shared(t)
	b := newSite(t)
	b.pg = server.Database(t)
	b.create(t, "k")
	b.closeStores(t)
	u, err := url.Parse(b.pg)
	if err != nil {
		t.Fatal(err)
	}
	name := strings.TrimPrefix(u.Path, "/")
	server.Exec(t, "postgres", "CREATE DATABASE "+name+"_copy TEMPLATE "+name)
	c := newSiteAt(t, b.token)
	c.pg = strings.Replace(b.pg, "/"+name, "/"+name+"_copy", 1)

	nodes := make([]*hsm.Provider, 2)
	var g errgroup.Group
	for i := range nodes {
		g.Go(func() (err error) {
			nodes[i], err = b.open(ctx)
			return err
		})
	}
	if err := g.Wait(); err != nil {
		t.Fatal(err)
	}
	for i, p := range nodes {
		create(t, p, fmt.Sprint("of", i))
	}
	if p, err := c.open(ctx); !hsm.IsStale(err) || !strings.Contains(err.Error(), name) {
		if err == nil {
			mustClose(t, p)
		}
		t.Errorf("the restored dump is used: %v", err)
	}
	c.access = hsm.Repair
	p := c.mustOpen(t)
	if _, _, err := p.AcceptCopy(ctx); err != nil {
		t.Fatal(err)
	}
	mustClose(t, p)
	for _, p := range nodes {
		if err := p.CheckFit(ctx); !hsm.IsStale(err) {
			t.Errorf("before the other has started: %v", err)
		}
	}
	c.access = hsm.Serve
	other := c.mustOpen(t)
	create(t, other, "new")
	for _, p := range nodes {
		wantStopped(t, p, "k", "is a copy of the metastore", name+"_copy")
		keystream(t, p, "k@0")
		mustClose(t, p)
	}
	mustClose(t, other)
	// The server cannot drop a database that is in use.
	b.closeStores(t)
	c.closeStores(t)
}

// TestHistoryIsBounded: the oldest incarnations leave the history, except the newest of each token.
func TestHistoryIsBounded(t *testing.T) {
	b := newSite(t)
	b.create(t, "k")
	type entry struct {
		ID, Serial string
		Put        bool
		URI        string
	}
	list := []entry{{"01", "away", true, "a"}, {"02", "away", true, "b"}, {"03", "away", false, "c"}}
	for i := range 1000 {
		list = append(list, entry{fmt.Sprintf("%016x", i), "other", true, ""})
	}
	var now []entry
	if err := json.Unmarshal([]byte(b.setting(t, "store.incarnations", "")), &now); err != nil {
		t.Fatal(err)
	}
	data, _ := json.Marshal(append(list, now...))
	b.setting(t, "store.incarnations", string(data))
	mustClose(t, b.mustOpen(t))
	if err := json.Unmarshal([]byte(b.setting(t, "store.incarnations", "")), &now); err != nil {
		t.Fatal(err)
	}
	places := 0
	for _, e := range now {
		if e.Serial == b.token.Serial && e.URI != "" {
			places++
		}
	}
	if places != 1 {
		t.Errorf("%d entries of this token have a place", places)
	}
	if len(now) != 513 || now[0].ID != "02" || slices.ContainsFunc(now[1:],
		func(e entry) bool { return e.Serial == "away" }) {
		t.Errorf("%d entries, %+v", len(now), now[:2])
	}
}
