package pkcs11

import (
	"bytes"
	"context"
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"errors"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	p11 "github.com/miekg/pkcs11"

	"claviger"
	"claviger/internal/softhsm/softhsmtest"
	"claviger/secret"
)

// operation is a call of a method of Token. prepare makes the objects that it needs.
type operation struct {
	name    string
	prepare func(t *testing.T, tok *Token) // nil: nothing
	run     func(ctx context.Context, tok *Token) (result any, err error)
}

var (
	operationKey  = []byte{5}
	operationData = Data{"claviger", "store a", []byte("v")}
)

// haveKey makes sure that the token has one key, with the id operationKey.
func haveKey(t *testing.T, tok *Token) {
	t.Helper()
	if list, err := tok.List(t.Context()); err == nil && len(list) == 1 && bytes.Equal(list[0].ID, operationKey) {
		return
	}
	removeKey(t, tok)
	if err := tok.GenerateKey(t.Context(), operationKey, "k@5", 256); err != nil {
		t.Fatal(err)
	}
}

// removeKey makes sure that the token has no key with the id operationKey.
func removeKey(t *testing.T, tok *Token) {
	t.Helper()
	if err := errors.Join(tok.Destroy(t.Context(), operationKey, "k@5"), tok.Destroy(t.Context(), operationKey,
		"k@6")); err != nil {
		t.Fatal(err)
	}
}

// haveTwoKeys makes sure that the token has two keys with the id operationKey, the second with that label.
func haveTwoKeys(label string) func(t *testing.T, tok *Token) {
	return func(t *testing.T, tok *Token) {
		t.Helper()
		haveKey(t, tok)
		makeSecondKey(t, tok, operationKey, label)
	}
}

// makeSecondKey makes a key even if the token has one with that id and label, which GenerateKey refuses.
func makeSecondKey(t *testing.T, tok *Token, id []byte, label string) {
	t.Helper()
	err := tok.do(t.Context(), "test", func(_ *login, s p11.SessionHandle) error {
		_, err := tok.b.GenerateKey(s, []*p11.Mechanism{p11.NewMechanism(p11.CKM_AES_KEY_GEN, nil)},
			[]*p11.Attribute{
				p11.NewAttribute(p11.CKA_CLASS, p11.CKO_SECRET_KEY), p11.NewAttribute(p11.CKA_KEY_TYPE, p11.CKK_AES),
				p11.NewAttribute(p11.CKA_VALUE_LEN, 32), p11.NewAttribute(p11.CKA_TOKEN, true),
				p11.NewAttribute(p11.CKA_ID, id), p11.NewAttribute(p11.CKA_LABEL, label),
				p11.NewAttribute(p11.CKA_ENCRYPT, true),
			})
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}

func keyOperations() []operation {
	return []operation{
		{"generate key", removeKey, func(ctx context.Context, tok *Token) (any, error) {
			return nil, tok.GenerateKey(ctx, operationKey, "k@5", 256)
		}},
		{"find", haveKey, func(ctx context.Context, tok *Token) (any, error) { return tok.Find(ctx, operationKey) }},
		{"find none", removeKey, func(ctx context.Context, tok *Token) (any, error) {
			return tok.Find(ctx, operationKey)
		}},
		{"find label", haveKey, func(ctx context.Context, tok *Token) (any, error) {
			return tok.FindLabel(ctx, "k@5")
		}},
		{"list", haveTwoKeys("k@6"), func(ctx context.Context, tok *Token) (any, error) {
			list, err := tok.List(ctx)
			slices.SortFunc(list, func(a, b KeyInfo) int { return strings.Compare(a.Label, b.Label) })
			return list, err
		}},
		{"start date", haveKey, func(ctx context.Context, tok *Token) (any, error) {
			return tok.StartDate(ctx, operationKey, "k@5")
		}},
		{"protection", haveKey, func(ctx context.Context, tok *Token) (any, error) {
			return tok.Protection(ctx, operationKey, "k@5")
		}},
		{"destroy", haveTwoKeys("k@5"), func(ctx context.Context, tok *Token) (any, error) {
			return nil, tok.Destroy(ctx, operationKey, "k@5")
		}},
		{"check value", haveKey, func(ctx context.Context, tok *Token) (any, error) {
			return tok.CheckValue(ctx, operationKey, "k@5")
		}},
		{"ping", nil, func(ctx context.Context, tok *Token) (any, error) { return nil, tok.Ping(ctx) }},
	}
}

func dataOperations() []operation {
	has := func(t *testing.T, tok *Token) {
		t.Helper()
		old := operationData
		old.Value = []byte("old")
		if err := errors.Join(tok.DestroyData(t.Context(), operationData.Application, operationData.Label),
			tok.PutData(t.Context(), old)); err != nil {
			t.Fatal(err)
		}
	}
	return []operation{
		{"list data", has, func(ctx context.Context, tok *Token) (any, error) {
			return tok.ListData(ctx, operationData.Application)
		}},
		{"put data", has, func(ctx context.Context, tok *Token) (any, error) {
			return nil, tok.PutData(ctx, operationData)
		}},
		{"destroy data", has, func(ctx context.Context, tok *Token) (any, error) {
			return nil, tok.DestroyData(ctx, operationData.Application, operationData.Label)
		}},
	}
}

// importedPair is a pair that was not made by a token. A token takes seconds to make a pair on a busy machine.
var importedPair = sync.OnceValues(func() (*rsa.PrivateKey, error) { return rsa.GenerateKey(rand.Reader, MinPairBits) })

// importPair stores importedPair on the token.
func importPair(t *testing.T, tok *Token, id []byte, label string) {
	t.Helper()
	err := tok.do(t.Context(), "test", func(_ *login, s p11.SessionHandle) error {
		_, _, err := importer{tok.b}.GenerateKeyPair(s, nil, publicTemplate(id, label, MinPairBits),
			privateTemplate(id, label))
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	tok.pairs.seen.Store(true) // as GeneratePair does
}

// storePair stores importedPair under a name, and describes it.
func storePair(t *testing.T, tok *Token) (id []byte, label string, k *PairInfo) {
	t.Helper()
	id, label = []byte{9}, "pair"
	importPair(t, tok, id, label)
	k, err := tok.FindPair(t.Context(), id)
	if err != nil {
		t.Fatal(err)
	}
	return id, label, k
}

// importer is a library that stores importedPair in place of a new pair, and reports that each RSA key was made on the
// token.
type importer struct{ Boundary }

func (l importer) GenerateKeyPair(s p11.SessionHandle, _ []*p11.Mechanism,
	public, private []*p11.Attribute) (p11.ObjectHandle, p11.ObjectHandle, error) {
	k, err := importedPair()
	if err != nil {
		return 0, 0, err
	}
	common := []*p11.Attribute{p11.NewAttribute(p11.CKA_KEY_TYPE, p11.CKK_RSA),
		p11.NewAttribute(p11.CKA_MODULUS, k.N.Bytes()), p11.NewAttribute(p11.CKA_PUBLIC_EXPONENT, []byte{1, 0, 1})}
	public = slices.DeleteFunc(slices.Clone(public), func(a *p11.Attribute) bool {
		return a.Type == p11.CKA_MODULUS_BITS || a.Type == p11.CKA_PUBLIC_EXPONENT
	})
	publicKey, err := l.CreateObject(s, slices.Concat(public, common, []*p11.Attribute{
		p11.NewAttribute(p11.CKA_CLASS, p11.CKO_PUBLIC_KEY)}))
	if err != nil {
		return 0, 0, err
	}
	privateKey, err := l.CreateObject(s, slices.Concat(private, common, []*p11.Attribute{
		p11.NewAttribute(p11.CKA_CLASS, p11.CKO_PRIVATE_KEY),
		p11.NewAttribute(p11.CKA_PRIVATE_EXPONENT, k.D.Bytes()),
		p11.NewAttribute(p11.CKA_PRIME_1, k.Primes[0].Bytes()), p11.NewAttribute(p11.CKA_PRIME_2, k.Primes[1].Bytes()),
		p11.NewAttribute(p11.CKA_EXPONENT_1, k.Precomputed.Dp.Bytes()),
		p11.NewAttribute(p11.CKA_EXPONENT_2, k.Precomputed.Dq.Bytes()),
		p11.NewAttribute(p11.CKA_COEFFICIENT, k.Precomputed.Qinv.Bytes()),
	}))
	return publicKey, privateKey, err
}

func (l importer) GetAttributeValue(s p11.SessionHandle, o p11.ObjectHandle,
	ask []*p11.Attribute) ([]*p11.Attribute, error) {
	list, err := l.Boundary.GetAttributeValue(s, o, ask)
	rsaKey := slices.ContainsFunc(list, func(a *p11.Attribute) bool { return a.Type == p11.CKA_MODULUS })
	for _, a := range list {
		if rsaKey && (a.Type == p11.CKA_LOCAL || a.Type == p11.CKA_NEVER_EXTRACTABLE) {
			a.Value = []byte{1}
		}
	}
	return list, err
}

// openWithImporter opens a new SoftHSM token as open does, with an importer between the Meter and the library.
func openWithImporter(t *testing.T) (*Token, *Meter) {
	t.Helper()
	m := new(Meter)
	c := config(softhsmtest.New(t))
	c.Wrap = func(b Boundary) Boundary { return m.Wrap(importer{b}) }
	tok := openBare(t, c)
	return tok, m
}

// pairOperations returns the operations on RSA pairs, for a token of openWithImporter.
func pairOperations() []operation {
	id, label := []byte{9, 5}, "pair-5"
	lacks := func(t *testing.T, tok *Token) {
		t.Helper()
		if err := tok.DestroyPair(t.Context(), id, label); err != nil {
			t.Fatal(err)
		}
	}
	has := func(t *testing.T, tok *Token) {
		t.Helper()
		k, err := tok.FindPair(t.Context(), id)
		if err != nil {
			t.Fatal(err)
		}
		if k == nil {
			importPair(t, tok, id, label)
		}
	}
	var sealed []byte
	want := secret.Bytes("0123456789abcdef")
	return []operation{
		{"find pair", has, func(ctx context.Context, tok *Token) (any, error) { return tok.FindPair(ctx, id) }},
		{"probe", has, func(ctx context.Context, tok *Token) (any, error) { return tok.ProbeOAEP(ctx, id, label) }},
		{"decrypt", func(t *testing.T, tok *Token) {
			t.Helper()
			has(t, tok)
			k, err := tok.FindPair(t.Context(), id)
			if err != nil {
				t.Fatal(err)
			}
			sealed = seal(t, k.Public, want)
		}, func(ctx context.Context, tok *Token) (any, error) {
			return tok.DecryptOAEP(ctx, id, label, crypto.SHA1, sealed)
		}},
		{"destroy pair", has, func(ctx context.Context, tok *Token) (any, error) {
			return nil, tok.DestroyPair(ctx, id, label)
		}},
		{"generate pair", lacks, func(ctx context.Context, tok *Token) (any, error) {
			return nil, tok.GeneratePair(ctx, id, label, MinPairBits)
		}},
	}
}

// setUp brings the token into the state in which each run of an operation begins: it has the operation's objects, one
// idle session and no cached handles, and waits for nothing before it connects again.
func (o operation) setUp(t *testing.T, tok *Token, m *Meter) {
	t.Helper()
	m.Heal()
	if o.prepare != nil {
		o.prepare(t, tok)
	}
	if err := tok.Ping(t.Context()); err != nil {
		t.Fatal(err)
	}
	tok.mu.Lock()
	tok.login.handles.Clear()
	tok.retryAt, tok.backoff = time.Time{}, 0
	tok.mu.Unlock()
	m.Reset()
}

// eachCall runs the operation once without a fault, and counts its calls of the library. Then, for each of these calls,
// it sets the operation up again and calls try with the name of the library's function, the number of the call among
// the calls of this function, and the result without a fault.
func (o operation) eachCall(t *testing.T, tok *Token, m *Meter, try func(call string, n int, want any)) {
	t.Helper()
	o.setUp(t, tok, m)
	want, err := o.run(t.Context(), tok)
	if err != nil {
		t.Fatalf("without a fault: %v", err)
	}
	counts := m.Counts()
	t.Log(counts)
	for _, call := range slices.Sorted(maps.Keys(counts)) {
		for n := 1; n <= counts[call]; n++ {
			o.setUp(t, tok, m)
			try(call, n, want)
		}
	}
}

// failNth makes the nth call of a function of the library fail, counted from now.
func failNth(m *Meter, call string, n int, err error) {
	m.Fail(call, n-1, nil)
	m.Fail(call, 1, err)
}

// callsThatMayFail are the calls that may fail although their operation succeeds, each with the reason. The keys are
// the operation, the library's function, and the number of the call.
var callsThatMayFail = map[string]string{
	"put data CloseSession 1":    "the session was only used to read",
	"check value CloseSession 1": "the session was only used to encrypt",
	"check value OpenSession 1":  "the HSM may allow no second session",
	"probe DecryptInit 1":        "the probe tries a second hash",
}

// TestEachCallFails: if a call of an operation fails, the operation fails with that error and has no result. Nothing
// that the operation leaves behind makes its repetition fail.
func TestEachCallFails(t *testing.T) {
	eachCallFails(t, slices.Concat(keyOperations(), dataOperations()), p11.CKR_DATA_INVALID)
}

// TestEachPairCallFails is TestEachCallFails for RSA pairs.
func TestEachPairCallFails(t *testing.T) {
	eachCallFails(t, pairOperations(), p11.CKR_ACTION_PROHIBITED)
}

// eachCallFails makes each call of the operations fail once with code, a result after which Token repeats no call.
func eachCallFails(t *testing.T, operations []operation, code uint) {
	t.Helper()
	tok, m := openWithImporter(t)
	for _, o := range operations {
		kind := claviger.Internal
		if o.name == "check value" {
			kind = claviger.Unavailable // doWithKey returns this kind
		}
		t.Run(o.name, func(t *testing.T) {
			o.eachCall(t, tok, m, func(call string, n int, want any) {
				sessions := sessionCounter(tok, m)
				failNth(m, call, n, p11.Error(code))
				got, err := o.run(t.Context(), tok)
				reason := callsThatMayFail[fmt.Sprintf("%s %s %d", o.name, call, n)]
				switch {
				case reason != "":
					if err != nil || !reflect.DeepEqual(got, want) {
						t.Errorf("%s %d fails: the result is %v, %v; want %v", call, n, got, err, want)
					}
				case !errors.Is(err, p11.Error(code)) || !claviger.Is(err, kind):
					t.Errorf("%s %d fails: %v", call, n, err)
				case got != nil && !reflect.ValueOf(got).IsZero():
					t.Errorf("%s %d fails: the result is %v", call, n, got)
				}
				open, idle := sessions(), idleSessions(tok)
				if call == "OpenSession" {
					open-- // the call that failed opened none
				}
				if open != 1+idle {
					t.Errorf("%s %d fails: %d sessions are open, and %d are idle", call, n, open, idle)
				}
				m.Heal()
				if got, err := o.run(t.Context(), tok); err != nil && !claviger.Is(err, claviger.KeyExists) {
					t.Errorf("%s %d fails: then the operation returns %v, %v", call, n, got, err)
				}
			})
		})
	}
}

// idleSessions returns the number of idle sessions of the current login.
func idleSessions(tok *Token) int {
	tok.mu.Lock()
	defer tok.mu.Unlock()
	return len(tok.login.idle)
}

// TestEachCallLosesTheToken: if the token or the login is lost at a call of an operation, or the session is broken, the
// operation succeeds nevertheless.
func TestEachCallLosesTheToken(t *testing.T) {
	eachCallLosesTheToken(t, slices.Concat(keyOperations(), dataOperations()), p11.CKR_DEVICE_REMOVED,
		p11.CKR_SESSION_HANDLE_INVALID, p11.CKR_OPERATION_ACTIVE, p11.CKR_HOST_MEMORY)
}

// TestEachPairCallLosesTheToken is TestEachCallLosesTheToken for RSA pairs.
func TestEachPairCallLosesTheToken(t *testing.T) {
	eachCallLosesTheToken(t, pairOperations(), p11.CKR_DEVICE_REMOVED)
}

func eachCallLosesTheToken(t *testing.T, operations []operation, codes ...uint) {
	t.Helper()
	tok, m := openWithImporter(t)
	for _, code := range codes {
		for _, o := range operations {
			t.Run(fmt.Sprintf("%v %s", p11.Error(code), o.name), func(t *testing.T) {
				o.eachCall(t, tok, m, func(call string, n int, want any) {
					failNth(m, call, n, p11.Error(code))
					if got, err := o.run(t.Context(), tok); err != nil || !reflect.DeepEqual(got, want) {
						t.Errorf("%s %d: %v, %v; want %v", call, n, got, err, want)
					}
				})
			})
		}
	}
}

// TestEachCallHangs: if a call of an operation hangs, the operation fails when its caller gives up, and has no result.
func TestEachCallHangs(t *testing.T) {
	eachCallHangs(t, slices.Concat(keyOperations(), dataOperations()))
}

// TestEachPairCallHangs is TestEachCallHangs for RSA pairs.
func TestEachPairCallHangs(t *testing.T) { eachCallHangs(t, pairOperations()) }

func eachCallHangs(t *testing.T, operations []operation) {
	t.Helper()
	tok, m := openWithImporter(t)
	for _, o := range operations {
		t.Run(o.name, func(t *testing.T) {
			o.eachCall(t, tok, m, func(call string, n int, _ any) {
				if n > 1 {
					return
				}
				release := m.Hang(call)
				defer release()
				ctx, cancel := context.WithCancel(t.Context())
				defer cancel()
				var result any
				failed := make(chan error, 1)
				go func() {
					var err error
					result, err = o.run(ctx, tok)
					failed <- err
				}()
				eventually(t, func() error {
					if m.Count(call) == 0 {
						return fmt.Errorf("%s has not been called", call)
					}
					return nil
				})
				cancel()
				err := <-failed
				if !claviger.Is(err, claviger.Unavailable) || !errors.Is(err, context.Canceled) ||
					result != nil && !reflect.ValueOf(result).IsZero() {
					t.Errorf("%s hangs: %v, %v", call, result, err)
				}
				release()
				eventually(t, func() error {
					if used, _ := tok.Sessions(); used > 0 {
						return fmt.Errorf("%d sessions are in use", used)
					}
					return nil
				})
			})
		})
	}
}
