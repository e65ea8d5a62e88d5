package hsm_test

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	p11 "github.com/miekg/pkcs11"

	"claviger"
	"claviger/pkcs11"
	"claviger/provider"
	"claviger/provider/hsm"
)

// files returns the object files of the token. The name of its folder ends with its serial number.
func (b *testSite) files(t *testing.T) []string {
	t.Helper()
	list, err := filepath.Glob(filepath.Join(filepath.Dir(b.token.PINFile), "tokens", "*", "*.object"))
	if err != nil {
		t.Fatal(err)
	}
	return slices.DeleteFunc(list, func(path string) bool {
		folder := strings.ReplaceAll(filepath.Base(filepath.Dir(path)), "-", "")
		return filepath.Base(path) == "token.object" || !strings.HasSuffix(folder, b.token.Serial)
	})
}

// double gives the token a second object with the id and label of the object in a file: a copy of that object, or
// another key. A second attempt at a step makes such an object if SoftHSM hides the first one.
func (b *testSite) double(t *testing.T, file string, id []byte, label string, another bool) {
	t.Helper()
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	to := filepath.Join(filepath.Dir(file), "00000000-0000-0000-0000-0000000000ff.object")
	if another {
		to = file
		if err := os.Remove(file); err != nil {
			t.Fatal(err)
		}
		b.withToken(t, func(tok *pkcs11.Token) {
			if err := tok.GenerateKey(t.Context(), id, label, 256); err != nil {
				t.Fatal(err)
			}
		})
	}
	lock := strings.TrimSuffix(to, ".object") + ".lock"
	if err := errors.Join(os.WriteFile(to, data, 0o600), os.WriteFile(lock, nil, 0o600)); err != nil {
		t.Fatal(err)
	}
	b.withToken(t, func(tok *pkcs11.Token) {
		if list, err := tok.FindLabel(t.Context(), label); err != nil || len(list) != 2 {
			t.Fatalf("%d objects with label %s, %v", len(list), label, err)
		}
	})
}

// made returns the file of the one object that f makes.
func (b *testSite) made(t *testing.T, f func()) string {
	t.Helper()
	before := b.files(t)
	f()
	after := slices.DeleteFunc(b.files(t), func(path string) bool { return slices.Contains(before, path) })
	if len(after) != 1 {
		t.Fatalf("%d objects were made", len(after))
	}
	return after[0]
}

// TestCopies: of several objects with one id and label, the object with the right check value is used, also after a new
// login. A deletion destroys all of them.
func TestCopies(t *testing.T) {
	for name, another := range map[string]bool{"a restored backup": false, "another key": true} {
		t.Run(name, func(t *testing.T) {
			b := newSite(t)
			p := b.mustOpen(t) // makes the data object
			create(t, p, "first")
			file := b.made(t, func() { create(t, p, "k") })
			want := keystream(t, p, "k@0")
			mustClose(t, p)
			id, label := b.object(t, "k@0")
			b.double(t, file, id, label, another)

			p = b.mustOpen(t)
			if got := keystream(t, p, "k@0"); !bytes.Equal(got, want) {
				t.Error("another key was used")
			}
			b.meter.Fail("Encrypt", 1, p11.Error(p11.CKR_DEVICE_ERROR)) // ends the login
			if got := keystream(t, p, "k@0"); !bytes.Equal(got, want) {
				t.Error("another key was used after a new login")
			}
			if err := errors.Join(p.Check(t.Context()), p.CheckFit(t.Context()),
				p.CheckKeys(t.Context())); err != nil {
				t.Error(err)
			}
			if _, err := p.Roll(t.Context(), "k", nil); err != nil {
				t.Error(err)
			}
			if err := p.Delete(t.Context(), "k"); err != nil {
				t.Error(err)
			}
			if left := objects(t, p); len(left) != 1 || left[0].Key() != "first" {
				t.Errorf("%+v", left)
			}
		})
	}
}

// TestCopiesOfNone: if none of several objects has the right check value, none is used.
func TestCopiesOfNone(t *testing.T) {
	b := newSite(t)
	p := b.mustOpen(t)
	create(t, p, "first")
	file := b.made(t, func() { create(t, p, "k") })
	mustClose(t, p)
	id, label := b.object(t, "k@0")
	other := b.made(t, func() { b.double(t, file, id, label, true) })
	if err := os.Remove(file); err != nil { // the object with the right check value
		t.Fatal(err)
	}
	b.double(t, other, id, label, true)
	p = b.mustOpen(t)
	if err := p.EncryptBlocks(t.Context(), "k@0", make([]byte, 16)); !claviger.Is(err, claviger.Unavailable) ||
		!errors.Is(err, provider.ErrUnusable) {
		t.Errorf("%v", err)
	}
	if err := p.CheckKeys(t.Context()); err == nil || !strings.Contains(err.Error(), "k@0") {
		t.Errorf("%v", err)
	}
	keystream(t, p, "first@0")
}

// TestCopiesOfOneStep: several attempts at one step left several objects. The object is made again, because no version
// uses any of them. If the token keeps no data objects, the store may be an old copy in which the step has not ended
// yet, so nothing is destroyed.
func TestCopiesOfOneStep(t *testing.T) {
	for name, keepsNone := range map[string]bool{"bound": false, "a token that keeps no data objects": true} {
		t.Run(name, func(t *testing.T) {
			b := newSite(t)
			fail := func() {
				if keepsNone {
					b.meter.Fail("CreateObject", 1000, p11.Error(p11.CKR_FUNCTION_NOT_SUPPORTED))
				}
			}
			fail()
			killed := errors.New("killed here")
			m := claviger.Metadata{Name: "moved", Cipher: claviger.DefaultCipher, BitLength: 256}
			step := func(s string) error {
				if s == "generated 1 of 1" {
					return killed
				}
				return nil
			}
			p := b.mustOpen(t)
			create(t, p, "k")
			file := b.made(t, func() {
				if _, err := p.Import(t.Context(), m, 1, 0, step); !errors.Is(err, killed) {
					t.Fatal(err)
				}
			})
			mustClose(t, p)
			var o pkcs11.KeyInfo
			b.withToken(t, func(tok *pkcs11.Token) {
				list, err := tok.FindLabel(t.Context(), "moved@0")
				if err != nil || len(list) != 1 {
					t.Fatalf("%+v, %v", list, err)
				}
				o = list[0]
			})
			b.double(t, file, o.ID, o.Label, true)
			fail()
			p = b.mustOpen(t)
			vs, err := p.Import(t.Context(), m, 1, 0, nil)
			if keepsNone {
				if !claviger.Is(err, claviger.Invalid) || !strings.Contains(err.Error(), "several objects") ||
					!strings.Contains(err.Error(), "moved@0") {
					t.Errorf("%v", err)
				}
				if list := objects(t, p); len(list) != 3 {
					t.Errorf("%+v", list)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			keystream(t, p, vs[0].Name)
			if list := objects(t, p); len(list) != 2 {
				t.Errorf("%+v", list)
			}
		})
	}
}

// TestDeletionThatCannotBeFinished: a deletion that cannot be finished does not prevent a server from serving the other
// keys. The next start tries again.
func TestDeletionThatCannotBeFinished(t *testing.T) {
	b := newSite(t)
	b.create(t, "other")
	b.create(t, "k")
	refused := p11.Error(p11.CKR_ACTION_PROHIBITED)
	p := b.mustOpen(t)
	b.meter.Fail("DestroyObject", 1, refused)
	if err := p.Delete(t.Context(), "k"); err != nil {
		t.Fatal(err)
	}
	mustClose(t, p)
	b.meter.Fail("DestroyObject", 2, nil) // of the key that tries the mechanisms, and of the data object before
	b.meter.Fail("DestroyObject", 1, refused)
	p = b.mustOpen(t)
	keystream(t, p, "other@0")
	wantMarks(t, p, map[string]hsm.Mark{"other@0": hsm.InUse, "k@0": hsm.Pending})
	mustClose(t, p)
	p = b.mustOpen(t)
	if list := objects(t, p); len(list) != 1 || list[0].Mark != hsm.InUse {
		t.Errorf("%+v", list)
	}
	if _, err := p.Create(t.Context(), provider.Spec{Name: "k", Cipher: claviger.DefaultCipher,
		BitLength: 256}); err != nil {
		t.Error(err)
	}
}

// TestDamagedToken: the error for a SoftHSM token whose token.object is empty says that it is damaged. It does not
// advise to make another token.
func TestDamagedToken(t *testing.T) {
	b := newSite(t)
	b.create(t, "k")
	objects := b.files(t)
	if len(objects) == 0 {
		t.Fatal("there is no object")
	}
	file := filepath.Join(filepath.Dir(objects[0]), "token.object")
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	restore := func() {
		if err := os.WriteFile(file, data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	defer restore()
	if err := os.Truncate(file, 0); err != nil {
		t.Fatal(err)
	}
	p, err := b.open(t.Context())
	if err == nil {
		mustClose(t, p)
		t.Fatal("the token was opened")
	}
	if !strings.Contains(err.Error(), "is damaged") || !strings.Contains(err.Error(), "make no new token") ||
		strings.Contains(err.Error(), "--init-token") {
		t.Error(err)
	}
	restore()
	keystream(t, b.mustOpen(t), "k@0")
}
