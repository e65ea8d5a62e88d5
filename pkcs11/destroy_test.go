package pkcs11

import (
	"errors"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	p11 "github.com/miekg/pkcs11"

	"claviger"
	"claviger/internal/faultmodule"
)

// TestOneDestroyObject: destroy is the only function that calls C_DestroyObject, apart from those that pass it on.
func TestOneDestroyObject(t *testing.T) {
	files, err := filepath.Glob("*.go")
	if err != nil {
		t.Fatal(err)
	}
	var callers []string
	for _, name := range files {
		if strings.HasSuffix(name, "_test.go") {
			continue
		}
		f, err := parser.ParseFile(token.NewFileSet(), name, nil, 0)
		if err != nil {
			t.Fatal(err)
		}
		for _, d := range f.Decls {
			in, ok := d.(*ast.FuncDecl)
			if !ok || in.Name.Name == "DestroyObject" {
				continue
			}
			ast.Inspect(in, func(n ast.Node) bool {
				if sel, ok := n.(*ast.SelectorExpr); ok && sel.Sel.Name == "DestroyObject" {
					callers = append(callers, in.Name.Name)
				}
				return true
			})
		}
	}
	if !slices.Equal(callers, []string{"destroy"}) {
		t.Errorf("C_DestroyObject is called by %v, want destroy alone", callers)
	}
}

// exchangeTest is an operation during which the handles of an object of it and of a bystander change places.
type exchangeTest struct {
	name   string
	object string // the label of the object
	before func(*testing.T, *Token)
	run    func(*testing.T, *Token) error
	after  func(*testing.T, *Token) // if run returned nil
}

var exchangeTests = []exchangeTest{
	{
		name: "create", object: "new",
		run: func(t *testing.T, tok *Token) error { return tok.GenerateKey(t.Context(), []byte{9}, "new", 256) },
		after: func(t *testing.T, tok *Token) {
			if k, err := tok.Find(t.Context(), []byte{9}); err != nil || k == nil || k.Label != "new" {
				t.Errorf("the new key: %+v, %v", k, err)
			}
		},
	},
	{
		name: "destroy", object: "old",
		before: func(t *testing.T, tok *Token) {
			if err := tok.GenerateKey(t.Context(), []byte{9}, "old", 256); err != nil {
				t.Fatal(err)
			}
		},
		run: func(t *testing.T, tok *Token) error { return tok.Destroy(t.Context(), []byte{9}, "old") },
		after: func(t *testing.T, tok *Token) {
			if k, err := tok.Find(t.Context(), []byte{9}); err != nil || k != nil {
				t.Errorf("the destroyed key: %+v, %v", k, err)
			}
		},
	},
	{
		name: "put data", object: "store", before: putFirst,
		run: func(t *testing.T, tok *Token) error {
			return tok.PutData(t.Context(), Data{"claviger", "store", []byte("second")})
		},
		after: func(t *testing.T, tok *Token) { wantData(t, tok, "second") },
	},
	{
		name: "put the same data", object: "store", before: putFirst,
		run: func(t *testing.T, tok *Token) error {
			return tok.PutData(t.Context(), Data{"claviger", "store", []byte("first")})
		},
		after: func(t *testing.T, tok *Token) { wantData(t, tok, "first") },
	},
	{
		name: "destroy data", object: "store", before: putFirst,
		run:   func(t *testing.T, tok *Token) error { return tok.DestroyData(t.Context(), "claviger", "store") },
		after: func(t *testing.T, tok *Token) { wantData(t, tok) },
	},
}

func putFirst(t *testing.T, tok *Token) {
	t.Helper()
	if err := tok.PutData(t.Context(), Data{"claviger", "store", []byte("first")}); err != nil {
		t.Fatal(err)
	}
}

func wantData(t *testing.T, tok *Token, want ...string) {
	t.Helper()
	list, err := tok.ListData(t.Context(), "claviger")
	var got []string
	for _, d := range list {
		got = append(got, string(d.Value))
	}
	if err != nil || !slices.Equal(got, want) {
		t.Errorf("the data objects are %q, %v; want %q", got, err, want)
	}
}

// TestExchangedHandles: while an operation runs, the handles of its object and of a key change places, after each call
// of it in turn. No key is lost. Only an exchange between the two calls of destroy can destroy the key, and then the
// operation returns an error that says so.
func TestExchangedHandles(t *testing.T) {
	for _, c := range exchangeTests {
		t.Run(c.name, func(t *testing.T) {
			m, tok, keys := openFaulty(t, nil)
			exchanges, late := 0, 0
			for _, f := range []faultmodule.Function{faultmodule.GenerateKey, faultmodule.CreateObject,
				faultmodule.FindObjectsInit, faultmodule.FindObjects, faultmodule.FindObjectsFinal,
				faultmodule.GetAttributeValue, faultmodule.DestroyObject} {
				for skip := range 12 {
					if c.before != nil {
						c.before(t, tok)
					}
					m.ExchangeLabels(c.object, keys[0].label)
					done, calls := m.Done(f), m.Calls(f)
					m.Order(f, faultmodule.Order{Action: faultmodule.Exchange, Skip: skip})
					err := c.run(t, tok)
					m.Heal()
					exchanges += m.Done(f) - done
					c.ends(t, tok, fmt.Sprintf("exchange after call %d of function %d", skip, f), err)
					if keys[0].gone(t, tok) {
						late++
						if f != faultmodule.GetAttributeValue || err == nil ||
							!strings.Contains(err.Error(), "may have been destroyed") {
							t.Errorf("after call %d of function %d a key is gone, and the error is %v", skip, f, err)
						}
						keys[0] = makeKey(t, tok, byte(20+late))
					}
					c.clean(t, tok)
					if m.Calls(f)-calls < skip {
						break
					}
				}
			}
			t.Logf("%d exchanges, %d in the moment before C_DestroyObject", exchanges, late)
			if err := keys[1].encrypts(tok, t, 1); err != nil {
				t.Error(err)
			}
			if exchanges < 5 {
				t.Errorf("only %d exchanges", exchanges)
			}
		})
	}
}

// ends checks the state after an operation.
func (c *exchangeTest) ends(t *testing.T, tok *Token, when string, err error) {
	t.Helper()
	if err != nil {
		if !claviger.Is(err, claviger.Unavailable) && !strings.Contains(err.Error(), "may have been destroyed") {
			t.Errorf("%s: %v", when, err)
		}
		return
	}
	c.after(t, tok)
}

// clean destroys what the operation and the preparation made.
func (c *exchangeTest) clean(t *testing.T, tok *Token) {
	t.Helper()
	if err := errors.Join(tok.Destroy(t.Context(), []byte{9}, c.object),
		tok.DestroyData(t.Context(), "claviger", "store")); err != nil {
		t.Fatal(err)
	}
}

// gone reports whether the token has lost the key. A key that is there must encrypt as itself.
func (k *provedKey) gone(t *testing.T, tok *Token) bool {
	t.Helper()
	err := k.encrypts(tok, t, 1)
	if claviger.Is(err, claviger.KeyNotFound) {
		return true
	}
	if err != nil {
		t.Error(err)
	}
	return false
}

// makeKey makes a key and what proves it.
func makeKey(t *testing.T, tok *Token, n byte) *provedKey {
	t.Helper()
	k := &provedKey{zero: make([]byte, blockSize)}
	k.id, k.label = generate(t, tok, n, 256)
	var err error
	if k.check, err = tok.CheckValue(t.Context(), k.id, k.label); err != nil {
		t.Fatal(err)
	}
	if err := tok.EncryptBlocks(t.Context(), k.id, k.label, k.check, k.zero); err != nil {
		t.Fatal(err)
	}
	return k
}

// TestDestroyRefuses: destroy destroys no object that shows other attributes, or not all of them.
func TestDestroyRefuses(t *testing.T) {
	tok, m := open(t)
	id, label := generate(t, tok, 1, 256)
	other := "other"
	for name, match := range map[string][]*p11.Attribute{
		"another label": keyTemplate(id, &other), "another id": keyTemplate([]byte{2}, &label),
		"a data object": dataTemplate("claviger", &label), "a session's key": sessionKeyMatch,
		"a public key": publicMatch(id), "a private key": privateMatch(id, &label),
		"an attribute that no key has": append(keyTemplate(id, &label), p11.NewAttribute(p11.CKA_APPLICATION, "a")),
	} {
		err := tok.do(t.Context(), "test", func(_ *login, s p11.SessionHandle) error {
			found, err := tok.find(s, id, &label)
			if err != nil || len(found) != 1 {
				return fmt.Errorf("%d keys, %w", len(found), err)
			}
			return tok.destroy(s, found[0], match)
		})
		if !errors.Is(err, errOtherObject) || m.Count("DestroyObject") != 0 {
			t.Errorf("%s: %v, %d objects destroyed", name, err, m.Count("DestroyObject"))
		}
	}
	if err := tok.Destroy(t.Context(), id, label); err != nil {
		t.Error(err)
	}
	if list, err := tok.List(t.Context()); err != nil || len(list) != 0 {
		t.Errorf("%d keys, %v", len(list), err)
	}
}

// TestDestroySearchesAgain: if the handle is that of another object once, the key is searched again and destroyed.
func TestDestroySearchesAgain(t *testing.T) {
	tok, m, reads, id, label := openOther(t, false)
	*reads = 1
	if err := tok.Destroy(t.Context(), id, label); err != nil || m.Count("DestroyObject") != 1 {
		t.Errorf("%v, %d objects destroyed", err, m.Count("DestroyObject"))
	}
	if k, err := tok.Find(t.Context(), id); k != nil || err != nil {
		t.Errorf("%+v, %v", k, err)
	}
}

// TestDestroyTheOthers: if the token does not destroy one copy of a key, the others are destroyed.
func TestDestroyTheOthers(t *testing.T) {
	tok, m := open(t)
	id, label := generate(t, tok, 1, 256)
	makeSecondKey(t, tok, id, label)
	m.Fail("DestroyObject", 1, p11.Error(p11.CKR_ACTION_PROHIBITED))
	if err := tok.Destroy(t.Context(), id, label); !errors.Is(err, p11.Error(p11.CKR_ACTION_PROHIBITED)) {
		t.Error(err)
	}
	if k, err := tok.Find(t.Context(), id); k == nil || err != nil {
		t.Errorf("%+v, %v", k, err)
	}
}
