package keytrustee_test

import (
	"net/http/httptest"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"claviger"
	"claviger/provider"
	"claviger/provider/keytrustee"
	"claviger/trustee"
	"claviger/trustee/replica"
	"claviger/trustee/server"
	"claviger/trustee/server/sqlite"
)

// diverged has a Key Trustee Server and a copy of it. A KMS changes each of them.
type diverged struct {
	*site
	p, q  *keytrustee.Provider // the KMS at the server, and at the copy
	other server.Store         // of the copy
	// folder is the folder of the KMS. A provider that is opened from it remembers its changes; p and q do not.
	folder     string
	clockAhead time.Duration     // how far p's clock is ahead
	first      map[string]string // the first version of each key at the server, by key name; see create, makeAside
}

// diverge makes keys, and copies the server.
func diverge(t *testing.T) *diverged {
	t.Helper()
	s := &diverged{site: newSite(t), first: map[string]string{}}
	s.folder = filepath.Join(t.TempDir(), ".keytrustee")
	must(t, s.site.must(s.folder).Close())
	f, err := trustee.LoadFolder(s.folder)
	must(t, err)
	conf, err := s.tls(s.env)
	must(t, err)
	open := func(url string, now func() time.Time) *keytrustee.Provider {
		box, err := trustee.NewClient(trustee.ClientConfig{Identity: f.Identity, TLS: conf,
			Servers: []trustee.Endpoint{{URL: url, Server: f.Servers[0]}}})
		must(t, err)
		t.Cleanup(box.Close)
		p := keytrustee.New(keytrustee.Config{URI: "keytrustee:", Box: box, Identity: f.Identity, SoftDelete: true,
			Now: now})
		t.Cleanup(func() { _ = p.Close() })
		return p
	}
	s.p = open(s.web.URL, func() time.Time { return time.Now().Add(s.clockAhead) })
	for _, name := range []string{"rolled", "deleted", "purged", "idle"} {
		s.create(s.p, name, "", 256)
	}
	name, err := s.store.(*sqlite.Store).Save(t.Context(), "dropped")
	must(t, err)
	if s.other, err = sqlite.Open(t.Context(), name, false); err != nil {
		t.Fatal(err)
	}
	web := httptest.NewTLSServer(server.New(server.Config{Identity: ids()[0], Store: s.other}))
	t.Cleanup(func() { web.Close(); _ = s.other.Close() })
	s.q = open(web.URL, time.Now)
	return s
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// create makes a key, and stores its version in first under name+suffix.
func (s *diverged) create(p *keytrustee.Provider, name, suffix string, bits int) {
	s.t.Helper()
	v, err := p.Create(s.t.Context(), provider.Spec{Name: name, Cipher: claviger.DefaultCipher, BitLength: bits})
	must(s.t, err)
	s.first[name+suffix] = v.Name
	v.Material.Wipe()
}

func (s *diverged) roll(p *keytrustee.Provider, name string) string {
	s.t.Helper()
	v, err := p.Roll(s.t.Context(), name, nil)
	must(s.t, err)
	v.Material.Wipe()
	return v.Name
}

func (s *diverged) recover(revive ...string) *replica.Recovered {
	s.t.Helper()
	r, err := replica.Recover(s.t.Context(), s.store, s.other, replica.RecoverOptions{Revive: revive})
	must(s.t, err)
	return r
}

// use encrypts a block with a version.
func (s *diverged) use(version string) error {
	return s.p.EncryptBlocks(s.t.Context(), version, make([]byte, 16))
}

// TestRecoverKeys checks what Recover adds to the server: new keys are added, deleted keys stay deleted, and new
// versions of existing keys are set aside.
func TestRecoverKeys(t *testing.T) {
	s := diverge(t)
	ctx := t.Context()
	must(t, s.p.Delete(ctx, "deleted"))
	must(t, s.p.Delete(ctx, "purged"))
	must(t, s.p.Purge(ctx, "purged", s.first["purged"]))
	aside := s.makeAside()
	s.create(s.q, "new", "", 256)

	r := s.recover()
	slices.Sort(aside)
	slices.Sort(r.Aside)
	if !slices.Equal(r.Aside, aside) || !slices.Equal(r.Names, []string{`key "new"`}) || r.Added.Deposits != 2 {
		t.Errorf("aside %q, not %q; added %q, %v", r.Aside, aside, r.Names, &r.Added)
	}
	left := strings.Join(r.NotAdded, "\n")
	for _, text := range []string{`REVIVED key "deleted"`, `REVIVED key "purged"`,
		`key "both": the store has another`} {
		if !strings.Contains(left, text) {
			t.Errorf("NotAdded lacks %q: %s", text, left)
		}
	}
	names, err := s.p.Keys(ctx)
	if want := []string{"both", "idle", "length", "new", "rolled"}; err != nil || !slices.Equal(names, want) {
		t.Errorf("keys %q, %v; want %q", names, err, want)
	}
	must(t, s.use(s.first["new"]))
	if err := s.use(s.first["rolled there"]); !claviger.Is(err, claviger.VersionNotFound) {
		t.Errorf("a version that no document names: %v", err)
	}
	// The second recovery changes nothing, and returns the same.
	if r := s.recover(); !r.Added.None() || len(r.Aside) != 4 {
		t.Errorf("second recovery: %+v", r)
	}
}

// makeAside makes versions at the copy that Recover sets aside, and returns them. The map first has each of them under
// the key's name and " there".
func (s *diverged) makeAside() []string {
	s.t.Helper()
	s.roll(s.p, "rolled")
	s.create(s.p, "both", "", 256)
	s.create(s.p, "length", "", 128)
	s.first["rolled there"], s.first["idle there"] = s.roll(s.q, "rolled"), s.roll(s.q, "idle")
	s.create(s.q, "both", " there", 256)
	s.create(s.q, "length", " there", 256)
	return []string{s.first["rolled there"], s.first["idle there"], s.first["both there"], s.first["length there"]}
}

// rollLater rolls a key two hours later, so that clean removes unused versions.
func (s *diverged) rollLater(name string) {
	s.t.Helper()
	s.clockAhead = 2 * time.Hour
	s.roll(s.p, name)
}

// TestAdopt checks that versions that were set aside survive changes, and can be used after Adopt.
func TestAdopt(t *testing.T) {
	s := diverge(t)
	ctx := t.Context()
	s.makeAside()
	s.recover()
	rolled := s.first["rolled there"]
	s.rollLater("rolled")
	s.clockAhead = 0
	list, err := s.p.Aside(ctx)
	if err != nil || len(list) != 4 {
		t.Fatalf("%+v, %v", list, err)
	}
	current, err := s.p.Current(ctx, "rolled")
	must(t, err)
	for _, version := range []string{rolled, s.first["idle there"], s.first["both there"]} {
		must(t, s.p.Adopt(ctx, version))
		must(t, s.use(version))
	}
	if now, err := s.p.Current(ctx, "rolled"); err != nil || now.Name != current.Name {
		t.Errorf("current is %s, not %s: %v", now.Name, current.Name, err)
	}
	if err := s.p.Adopt(ctx, s.first["length there"]); !claviger.Is(err, claviger.Invalid) {
		t.Errorf("a version of another length: %v", err)
	}
	if versions, err := s.p.Versions(ctx, "length"); err != nil || len(versions) != 1 {
		t.Errorf("after the refused Adopt: %d versions, %v", len(versions), err)
	}
	if err := s.p.Adopt(ctx, rolled); !claviger.Is(err, claviger.VersionNotFound) {
		t.Errorf("second Adopt: %v", err)
	}
	if list, err := s.p.Aside(ctx); err != nil || len(list) != 1 || list[0].Version != s.first["length there"] {
		t.Errorf("%+v, %v", list, err)
	}
	// A later recovery and a later roll keep the adopted versions.
	s.recover()
	s.rollLater("rolled")
	fresh := s.site.must(s.folder) // without material in memory
	defer fresh.Close()
	if v, err := fresh.Version(ctx, rolled); err != nil || v.Name != rolled {
		t.Errorf("an adopted version after rolls: %v", err)
	}
	// The purge of a key keeps its versions that are set aside.
	must(t, s.p.Delete(ctx, "length"))
	must(t, s.p.Purge(ctx, "length", s.first["length"]))
	if list, err := s.p.Aside(ctx); err != nil || len(list) != 1 {
		t.Errorf("after a purge: %+v, %v", list, err)
	}
}

// TestRecoverRevived checks that Recover brings back deleted keys that are named in Revive, and that a purge of the
// deleted key removes no version of the revived one.
func TestRecoverRevived(t *testing.T) {
	s := diverge(t)
	ctx := t.Context()
	kms, ok := s.site.must(s.folder).(*keytrustee.Provider)
	if !ok {
		t.Fatal("another provider")
	}
	must(t, kms.Delete(ctx, "purged"))
	must(t, kms.Purge(ctx, "purged", s.first["purged"]))
	must(t, kms.Delete(ctx, "deleted"))
	late := s.roll(s.q, "deleted")
	if r := s.recover("deleted", "purged"); len(r.NotAdded)+len(r.Aside) != 0 || len(r.Names) != 2 {
		t.Errorf("%+v", r)
	}
	must(t, kms.Purge(ctx, "deleted", s.first["deleted"]))
	must(t, kms.Close())
	fresh := s.site.must(s.folder) // its remembered changes are intact; it has no material in memory
	defer fresh.Close()
	if list, err := s.p.Deleted(ctx); err != nil || len(list) != 0 {
		t.Errorf("%+v, %v", list, err)
	}
	for _, version := range []string{s.first["deleted"], late, s.first["purged"]} {
		if v, err := fresh.Version(ctx, version); err != nil || v.Name != version {
			t.Errorf("%s: %v", version, err)
		}
	}
	must(t, s.p.Delete(ctx, "deleted"))
	must(t, s.p.Purge(ctx, "deleted", late))
	err := s.store.Export(ctx, func(r server.Record) error {
		if r.Deposit != nil && strings.Contains(r.Deposit.Label, "deleted@") {
			t.Errorf("deposit %s of a purged key is left", r.Deposit.Label)
		}
		return nil
	})
	must(t, err)
}

// TestRecoverDeletedThere checks that Recover keeps a key that was deleted at the copy only, and adds a key that was
// made and deleted at the copy as a deleted key.
func TestRecoverDeletedThere(t *testing.T) {
	s := diverge(t)
	ctx := t.Context()
	must(t, s.q.Delete(ctx, "idle"))
	s.create(s.q, "short", "", 256)
	must(t, s.q.Delete(ctx, "short"))
	r := s.recover()
	if len(r.NotAdded) != 1 || !strings.Contains(r.NotAdded[0],
		`deleted key "idle": the store has a key of that name`) ||
		!slices.Equal(r.Names, []string{`deleted key "short"`}) {
		t.Errorf("%+v", r)
	}
	must(t, s.use(s.first["idle"]))
	must(t, s.p.Undelete(ctx, "short", s.first["short"]))
	must(t, s.use(s.first["short"]))
}
