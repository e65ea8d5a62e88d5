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

// parted are a Key Trustee Server and one that was a copy of it, each changed by a KMS
// since.
type parted struct {
	*site
	p, q  *keytrustee.Provider // the KMS at the one, and at the copy
	other server.Store
	// folder of the KMS. One that is opened from it remembers its changes; p and q do not.
	folder string
	ahead  time.Duration // of p's clock
	made   map[string]string
}

// part makes keys, copies the server and parts the two.
func part(t *testing.T) *parted {
	t.Helper()
	s := &parted{site: newSite(t), made: map[string]string{}}
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
	s.p = open(s.web.URL, func() time.Time { return time.Now().Add(s.ahead) })
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

func (s *parted) create(p *keytrustee.Provider, name, as string, bits int) {
	s.t.Helper()
	v, err := p.Create(s.t.Context(), provider.Spec{Name: name, Cipher: claviger.DefaultCipher, BitLength: bits})
	must(s.t, err)
	s.made[name+as] = v.Name
	v.Material.Wipe()
}

func (s *parted) roll(p *keytrustee.Provider, name string) string {
	s.t.Helper()
	v, err := p.Roll(s.t.Context(), name, nil)
	must(s.t, err)
	v.Material.Wipe()
	return v.Name
}

func (s *parted) recover(revive ...string) *replica.Recovered {
	s.t.Helper()
	r, err := replica.Recover(s.t.Context(), s.store, s.other, replica.RecoverOptions{Revive: revive})
	must(s.t, err)
	return r
}

// opens encrypts a block with a version: EDEKs of it open.
func (s *parted) opens(version string) error {
	return s.p.EncryptBlocks(s.t.Context(), version, make([]byte, 16))
}

// TestRecoverKeys: a key that was deleted stays deleted, versions of keys that are there
// are kept, survive a roll much later, and open once they are adopted.
func TestRecoverKeys(t *testing.T) {
	s := part(t)
	ctx := t.Context()
	must(t, s.p.Delete(ctx, "deleted"))
	must(t, s.p.Delete(ctx, "purged"))
	must(t, s.p.Purge(ctx, "purged", s.made["purged"]))
	s.roll(s.p, "rolled")
	s.create(s.p, "both", "", 256)
	s.create(s.p, "length", "", 128)
	rolled, idle := s.roll(s.q, "rolled"), s.roll(s.q, "idle")
	s.create(s.q, "both", " there", 256)
	s.create(s.q, "length", " there", 256)
	s.create(s.q, "new", "", 256)
	aside := []string{rolled, idle, s.made["both there"], s.made["length there"]}

	r := s.recover()
	slices.Sort(aside)
	slices.Sort(r.Aside)
	if !slices.Equal(r.Aside, aside) || !slices.Equal(r.Names, []string{`key "new"`}) || r.Added.Deposits != 2 {
		t.Errorf("aside %q, not %q; added %q, %v", r.Aside, aside, r.Names, &r.Added)
	}
	left := strings.Join(r.Left, "\n")
	for _, text := range []string{`REVIVED key "deleted"`, `REVIVED key "purged"`,
		`key "both": the store has another`} {
		if !strings.Contains(left, text) {
			t.Errorf("%q is not said: %s", text, left)
		}
	}
	names, err := s.p.Keys(ctx)
	if want := []string{"both", "idle", "length", "new", "rolled"}; err != nil || !slices.Equal(names, want) {
		t.Errorf("%q, %v", names, err)
	}
	must(t, s.opens(s.made["new"]))
	if err := s.opens(rolled); !claviger.Is(err, claviger.VersionNotFound) {
		t.Errorf("a version that no key names: %v", err)
	}
	// A second time changes nothing and says the same.
	if r := s.recover(); !r.Added.None() || len(r.Aside) != 4 {
		t.Errorf("a second time: %+v", r)
	}

	s.ahead = 2 * time.Hour
	s.roll(s.p, "rolled")
	s.ahead = 0
	list, err := s.p.Aside(ctx)
	if err != nil || len(list) != 4 {
		t.Fatalf("%+v, %v", list, err)
	}
	current, err := s.p.Current(ctx, "rolled")
	must(t, err)
	for _, version := range []string{rolled, idle, s.made["both there"]} {
		must(t, s.p.Adopt(ctx, version))
		must(t, s.opens(version))
	}
	if now, err := s.p.Current(ctx, "rolled"); err != nil || now.Name != current.Name {
		t.Errorf("current is %s, not %s: %v", now.Name, current.Name, err)
	}
	if err := s.p.Adopt(ctx, s.made["length there"]); !claviger.Is(err, claviger.Invalid) {
		t.Errorf("a version of another length: %v", err)
	}
	if versions, err := s.p.Versions(ctx, "length"); err != nil || len(versions) != 1 {
		t.Errorf("after it: %d versions, %v", len(versions), err)
	}
	if err := s.p.Adopt(ctx, rolled); !claviger.Is(err, claviger.VersionNotFound) {
		t.Errorf("a second time: %v", err)
	}
	if list, err := s.p.Aside(ctx); err != nil || len(list) != 1 || list[0].Version != s.made["length there"] {
		t.Errorf("%+v, %v", list, err)
	}
	// A later recovery leaves them, and a roll, too.
	s.recover()
	s.ahead = 2 * time.Hour
	s.roll(s.p, "rolled")
	fresh := s.site.must(s.folder) // it has no material yet
	defer fresh.Close()
	if v, err := fresh.Version(ctx, rolled); err != nil || v.Name != rolled {
		t.Errorf("after rolls: %v", err)
	}
	// The purge of a key leaves what is only kept.
	must(t, s.p.Delete(ctx, "length"))
	must(t, s.p.Purge(ctx, "length", s.made["length"]))
	if list, err := s.p.Aside(ctx); err != nil || len(list) != 1 {
		t.Errorf("after a purge: %+v, %v", list, err)
	}
}

// TestRecoverRevived: a deleted key that is brought back by name opens, and the purge of
// the deleted one takes nothing from it.
func TestRecoverRevived(t *testing.T) {
	s := part(t)
	ctx := t.Context()
	kms, ok := s.site.must(s.folder).(*keytrustee.Provider)
	if !ok {
		t.Fatal("another provider")
	}
	must(t, kms.Delete(ctx, "purged"))
	must(t, kms.Purge(ctx, "purged", s.made["purged"]))
	must(t, kms.Delete(ctx, "deleted"))
	late := s.roll(s.q, "deleted")
	if r := s.recover("deleted", "purged"); len(r.Left)+len(r.Aside) != 0 || len(r.Names) != 2 {
		t.Errorf("%+v", r)
	}
	must(t, kms.Purge(ctx, "deleted", s.made["deleted"]))
	must(t, kms.Close())
	fresh := s.site.must(s.folder) // it finds what it remembers, and has no material yet
	defer fresh.Close()
	if list, err := s.p.Deleted(ctx); err != nil || len(list) != 0 {
		t.Errorf("%+v, %v", list, err)
	}
	for _, version := range []string{s.made["deleted"], late, s.made["purged"]} {
		if v, err := fresh.Version(ctx, version); err != nil || v.Name != version {
			t.Errorf("%s: %v", version, err)
		}
	}
	must(t, s.p.Delete(ctx, "deleted"))
	must(t, s.p.Purge(ctx, "deleted", late))
	err := s.store.Export(ctx, func(r server.Record) error {
		if r.Deposit != nil && strings.Contains(r.Deposit.Label, "deleted@") {
			t.Errorf("%s is left of a key that was purged", r.Deposit.Label)
		}
		return nil
	})
	must(t, err)
}

// TestRecoverDeletedThere: what was deleted at the other alone stays, and what was made
// and deleted there comes back as a deleted key.
func TestRecoverDeletedThere(t *testing.T) {
	s := part(t)
	ctx := t.Context()
	must(t, s.q.Delete(ctx, "idle"))
	s.create(s.q, "short", "", 256)
	must(t, s.q.Delete(ctx, "short"))
	r := s.recover()
	if len(r.Left) != 1 || !strings.Contains(r.Left[0], `deleted key "idle": the store has a key of that name`) ||
		!slices.Equal(r.Names, []string{`deleted key "short"`}) {
		t.Errorf("%+v", r)
	}
	must(t, s.opens(s.made["idle"]))
	must(t, s.p.Undelete(ctx, "short", s.made["short"]))
	must(t, s.opens(s.made["short"]))
}
