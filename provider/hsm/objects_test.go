package hsm_test

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"maps"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"claviger"
	"claviger/metastore"
	"claviger/pkcs11"
	"claviger/provider"
	"claviger/provider/hsm"
)

// generate makes keys on a site's token that the store does not know. Each gets a CKA_ID of its own, or that of its
// label, if the label has the old form NAME@CKA_ID.
func (b *testSite) generate(t *testing.T, labels ...string) {
	t.Helper()
	b.withToken(t, func(tok *pkcs11.Token) {
		for _, label := range labels {
			_, last, _ := strings.Cut(label, "@")
			id, err := hex.DecodeString(last)
			if err != nil || len(id) != 8 {
				sum := sha256.Sum256([]byte(label))
				id = sum[:8]
			}
			if err := tok.GenerateKey(t.Context(), id, label, 256); err != nil {
				t.Fatal(err)
			}
		}
	})
}

// forget removes a key from the store as if it had been destroyed, and leaves its objects on the token.
func (b *testSite) forget(t *testing.T, key string) {
	t.Helper()
	b.withStore(t, func(s metastore.Store) {
		i, err := s.Remove(t.Context(), key)
		for _, ref := range i.Refs {
			err = errors.Join(err, s.SetSetting(t.Context(), "hsm.destroyed."+ref.Object, key+"@"+ref.ID))
		}
		if err == nil {
			err = s.Drop(t.Context(), key)
		}
		if err != nil {
			t.Fatal(err)
		}
	})
}

// closeStores closes the stores of closed providers, so that the file contains everything.
func (b *testSite) closeStores(t *testing.T) {
	t.Helper()
	for _, s := range b.stores {
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
	b.stores = nil
}

func marks(t *testing.T, p *hsm.Provider) map[string]hsm.Mark {
	t.Helper()
	m := map[string]hsm.Mark{}
	for _, o := range objects(t, p) {
		m[o.Label] = o.Mark
	}
	return m
}

func wantMarks(t *testing.T, p *hsm.Provider, want map[string]hsm.Mark) {
	t.Helper()
	if got := marks(t, p); !maps.Equal(got, want) {
		t.Errorf("the objects are %v, want %v", got, want)
	}
}

func create(t *testing.T, p *hsm.Provider, key string) string {
	t.Helper()
	v, err := p.Create(t.Context(), provider.Spec{Name: key, Cipher: claviger.DefaultCipher, BitLength: 256})
	if err != nil {
		t.Fatal(err)
	}
	return v.Name
}

// setAside sets aside the versions of a key on the token, as an operator does.
func (b *testSite) setAside(t *testing.T, key string) {
	t.Helper()
	was := b.access
	b.access = hsm.Repair
	p := b.mustOpen(t)
	list, err := p.Candidates(t.Context())
	at := slices.IndexFunc(list, func(c hsm.Candidate) bool { return c.Key == key })
	if err != nil || at < 0 {
		t.Fatalf("%+v, %v", list, err)
	}
	if err := p.SetAside(t.Context(), list[at], hsm.Adoption{}); err != nil {
		t.Fatal(err)
	}
	mustClose(t, p)
	b.access = was
}

// TestMarks: objects on the token get the right marks. Prune destroys only objects that this store has destroyed
// before, that nothing refers to, and that are old enough.
func TestMarks(t *testing.T) {
	b := newSite(t)
	b.soft = "true"
	p := b.mustOpen(t)
	for _, key := range []string{"k", "deleted", "gone", "noted"} {
		create(t, p, key)
	}
	if err := p.Delete(t.Context(), "deleted"); err != nil {
		t.Fatal(err)
	}
	b.meter.Fail("Encrypt", 20, errKilled)
	if _, err := p.Create(t.Context(), provider.Spec{Name: "half", Cipher: claviger.DefaultCipher,
		BitLength: 256}); err == nil {
		t.Fatal("created")
	}
	b.meter.Heal()
	mustClose(t, p)
	b.forget(t, "gone")
	b.forget(t, "noted")
	b.withStore(t, func(s metastore.Store) {
		if err := s.Put(t.Context(), "migration-1", "noted", []byte(`{"targetVersions":["noted@0"]}`)); err != nil {
			t.Fatal(err)
		}
	})
	b.generate(t, "k@1", "k@00000000000000aa", "other@7", "somebody's", "k@00", "k@01", "k@4294967296")
	b.access = hsm.Destroy
	p = b.mustOpen(t)
	all := map[string]hsm.Mark{
		"k@0": hsm.InUse, "deleted@0": hsm.Deleted, "half@0": hsm.Pending, "gone@0": hsm.Orphan, "noted@0": hsm.Unknown,
		"k@1": hsm.Unknown, "k@00000000000000aa": hsm.Unknown, "other@7": hsm.Unknown,
		"somebody's": hsm.Foreign, "k@00": hsm.Foreign, "k@01": hsm.Foreign, "k@4294967296": hsm.Foreign,
	}
	wantMarks(t, p, all)
	young, err := p.Prunable(t.Context(), time.Hour)
	if err != nil || len(young.Orphans) != 0 || len(young.Recent) != 1 || len(young.Unknown) != 4 {
		t.Errorf("young: %+v, %v", young, err)
	}
	list, err := p.Prunable(t.Context(), 0)
	if err != nil || len(list.Orphans) != 1 || list.Orphans[0].Label != "gone@0" || list.Digest == young.Digest ||
		list.Orphans[0].Since == nil {
		t.Fatalf("%+v, %v", list, err)
	}
	// An object that has changed since it was listed is not destroyed.
	doctored := slices.Clone(list.Orphans)
	for label := range all {
		if label != "gone@0" {
			o := objects(t, p)[slices.IndexFunc(objects(t, p), func(o hsm.Object) bool { return o.Label == label })]
			doctored = append(doctored, o)
		}
	}
	gone, err := p.Prune(t.Context(), doctored)
	if err != nil || len(gone) != 1 || gone[0].Label != "gone@0" {
		t.Errorf("destroyed %+v, %v", gone, err)
	}
	delete(all, "gone@0")
	wantMarks(t, p, all)
	mustClose(t, p)
}

// TestNameOfADeletedKey: an object with the version name of a deleted key is not an orphan, even if this store has had
// that object destroyed.
func TestNameOfADeletedKey(t *testing.T) {
	b := newSite(t)
	b.soft = "true"
	p := b.mustOpen(t)
	create(t, p, "k")
	if err := p.Delete(t.Context(), "k"); err != nil {
		t.Fatal(err)
	}
	mustClose(t, p)
	b.generate(t, "k@0")
	sum := sha256.Sum256([]byte("k@0"))
	b.setting(t, "hsm.destroyed."+hex.EncodeToString(sum[:8]), "k@0")
	b.access = hsm.Destroy
	p = b.mustOpen(t)
	list, err := p.Prunable(t.Context(), 0)
	if err != nil || len(list.Orphans) != 0 || len(list.Unknown) != 1 || len(objects(t, p)) != 2 {
		t.Errorf("%+v, %v", list, err)
	}
	mustClose(t, p)
}

// TestOrphanAge: the time since when an object is an orphan is stored.
func TestOrphanAge(t *testing.T) {
	b := newSite(t)
	b.create(t, "k")
	b.create(t, "gone")
	b.forget(t, "gone")
	mustClose(t, b.mustOpen(t)) // the start surveys the token
	b.withStore(t, func(s metastore.Store) {
		text, _, err := s.Setting(t.Context(), "hsm.orphans")
		if err != nil {
			t.Fatal(err)
		}
		times := map[string]int64{}
		if err := json.Unmarshal([]byte(text), &times); err != nil || len(times) != 1 {
			t.Fatalf("remembered: %q, %v", text, err)
		}
		for id := range times {
			times[id] -= 48 * time.Hour.Milliseconds()
		}
		data, _ := json.Marshal(times)
		if err := s.SetSetting(t.Context(), "hsm.orphans", string(data)); err != nil {
			t.Fatal(err)
		}
	})
	b.access = hsm.Destroy
	p := b.mustOpen(t)
	for age, want := range map[time.Duration]int{72 * time.Hour: 0, 24 * time.Hour: 1} {
		if list, err := p.Prunable(t.Context(), age); err != nil || len(list.Orphans) != want ||
			len(list.Recent) != 1-want {
			t.Errorf("older than %v: %+v, %v", age, list, err)
		}
	}
	mustClose(t, p)
}

// TestEmptyStore: a store that is new, or older than all keys, is refused at a token with keys, and the error names the
// keys. No file is made. Inspect is not refused.
func TestEmptyStore(t *testing.T) {
	b := newSite(t)
	mustClose(t, b.mustOpen(t))
	b.closeStores(t)
	old, err := os.ReadFile(b.db)
	if err != nil {
		t.Fatal(err)
	}
	b.create(t, "k")
	known := b.db
	for _, c := range []string{"new", "old copy"} {
		b.db = known + "." + strings.ReplaceAll(c, " ", "")
		if c == "old copy" {
			if err := os.WriteFile(b.db, old, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		for _, access := range []hsm.Access{hsm.Serve, hsm.Read, hsm.Destroy, hsm.Journal} {
			b.access = access
			p, err := b.open(t.Context())
			if err == nil {
				mustClose(t, p)
			}
			if !claviger.Is(err, claviger.Invalid) {
				t.Errorf("%s, access %d: %v", c, access, err)
				continue
			}
			for _, want := range []string{"k@0", b.db, b.token.Serial, "claviger.metastore.uri",
				"claviger hsm adopt"} {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("%s: %q is not in %v", c, want, err)
				}
			}
		}
		if _, err := os.Stat(b.db); c == "new" && !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s: a store was made: %v", c, err)
		}
	}
	b.access = hsm.Inspect
	p := b.mustOpen(t)
	wantMarks(t, p, map[string]hsm.Mark{"k@0": hsm.Unknown})
	mustClose(t, p)
	b.access, b.db = hsm.Serve, known
	p = b.mustOpen(t)
	wantMarks(t, p, map[string]hsm.Mark{"k@0": hsm.InUse})
	mustClose(t, p)
}

// TestDamagedObjects: SoftHSM was killed while it made a key. The object that it leaves is damaged; a complete key is
// not. If a version of the store has such an object it is refused, and others are served.
func TestDamagedObjects(t *testing.T) {
	b := newSite(t)
	p := b.mustOpen(t)
	create(t, p, "k")
	file := b.made(t, func() { create(t, p, "half") })
	mustClose(t, p)
	missing := []uint64{0x11, 0x103, 0x161} // CKA_VALUE, CKA_SENSITIVE, CKA_VALUE_LEN
	rewrite(t, file, func(attribute uint64) bool { return !slices.Contains(missing, attribute) })
	p = b.mustOpen(t)
	damaged := map[string]bool{}
	for _, o := range objects(t, p) {
		damaged[o.Label] = o.Damaged
	}
	if len(damaged) != 2 || damaged["k@0"] || !damaged["half@0"] {
		t.Errorf("%v", damaged)
	}
	keystream(t, p, "k@0")
	if err := p.EncryptBlocks(t.Context(), "half@0", make([]byte, 16)); !errors.Is(err, provider.ErrUnusable) {
		t.Errorf("used: %v", err)
	}
}

// rewrite removes the attributes of the types that are not kept from a SoftHSM object file. The file has a generation
// (8 bytes), and then for each attribute its type, the kind of its value, and the value: 1 is a byte, 2 a number,
// others a length and that many bytes. All numbers have 8 bytes, big-endian.
func rewrite(t *testing.T, file string, kept func(attribute uint64) bool) {
	t.Helper()
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	out := slices.Clone(data[:8])
	for rest := data[8:]; len(rest) > 0; {
		n := map[uint64]int{1: 1, 2: 8}[binary.BigEndian.Uint64(rest[8:])]
		if n == 0 {
			n = 8 + int(binary.BigEndian.Uint64(rest[16:])) //nolint:gosec // of a file of this test
		}
		if kept(binary.BigEndian.Uint64(rest)) {
			out = append(out, rest[:16+n]...)
		}
		rest = rest[16+n:]
	}
	if err := os.WriteFile(file, out, 0o600); err != nil {
		t.Fatal(err)
	}
}

// TestDestroyedComesBack: the token shows an object again that was destroyed (a backup was restored), after any number
// of starts. It is an orphan: prune names it, and adopt does not offer it.
func TestDestroyedComesBack(t *testing.T) {
	b := newSite(t)
	version := b.create(t, "k")
	id, label := b.object(t, version)
	p := b.mustOpen(t)
	create(t, p, "other")
	if err := p.Delete(t.Context(), "k"); err != nil {
		t.Fatal(err)
	}
	wantMarks(t, p, map[string]hsm.Mark{"other@0": hsm.InUse})
	mustClose(t, p)
	for range 3 {
		mustClose(t, b.mustOpen(t))
	}
	b.withToken(t, func(tok *pkcs11.Token) {
		if err := tok.GenerateKey(t.Context(), id, label, 256); err != nil {
			t.Fatal(err)
		}
	})
	p = b.mustOpen(t)
	wantMarks(t, p, map[string]hsm.Mark{"other@0": hsm.InUse, "k@0": hsm.Orphan})
	if list, err := p.Candidates(t.Context()); err != nil || len(list) != 0 {
		t.Errorf("adopt offers %+v, %v", list, err)
	}
	mustClose(t, p)
}
