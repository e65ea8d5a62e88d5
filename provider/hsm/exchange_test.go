package hsm_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	p11 "github.com/miekg/pkcs11"

	"claviger"
	"claviger/internal/faultmodule"
	"claviger/pkcs11"
	"claviger/provider"
	"claviger/provider/hsm"
)

// TestExchangedSteps: while a key is created, rolled or deleted, the handles of its newest object and of another key
// change places. The other key is not lost, and no key gets the check value of another: each opens what it has closed,
// also after the exchange is undone.
func TestExchangedSteps(t *testing.T) {
	b, m, _ := faultySite(t)
	b.create(t, "bystander")
	p := b.mustOpen(t)
	closed := keystream(t, p, "bystander@0")
	n := 0
	for _, f := range []faultmodule.Function{faultmodule.GenerateKey, faultmodule.FindObjects,
		faultmodule.FindObjectsFinal, faultmodule.EncryptInit, faultmodule.Encrypt, faultmodule.DestroyObject} {
		for skip := range 3 {
			key := fmt.Sprintf("k%d", n)
			n++
			for i, step := range []func() error{
				func() error { return tryCreate(t, p, key) },
				func() error { _, err := p.Roll(t.Context(), key, nil); return err },
				func() error { return p.Delete(t.Context(), key) },
			} {
				version := fmt.Sprintf("%s@%d", key, i%2) // the deletion begins with the oldest
				m.ExchangeLabels(version, "bystander@0")
				m.Order(f, faultmodule.Order{Action: faultmodule.Exchange, Skip: skip})
				err := step()
				m.Heal()
				what := fmt.Sprintf("step %d, exchange after call %d of function %d", i, skip, f)
				if err != nil {
					t.Errorf("%s: %v", what, err)
					continue
				}
				var first []byte
				if i < 2 {
					first = keystream(t, p, version)
				}
				m.UndoExchange()
				if i < 2 && !bytes.Equal(keystream(t, p, version), first) {
					t.Errorf("%s: %s encrypts with two keys", what, version)
				}
				if !bytes.Equal(keystream(t, p, "bystander@0"), closed) {
					t.Fatalf("%s: the other key is gone", what)
				}
			}
		}
	}
	for _, o := range objects(t, p) {
		if o.Mark != hsm.InUse {
			t.Errorf("%+v is left", o)
		}
	}
	mustClose(t, p)
}

// TestUnprovedKey: a token computes another check value for a new key each time. The creation fails, and the new key is
// destroyed. The next one works.
func TestUnprovedKey(t *testing.T) {
	b, m, _ := faultySite(t)
	p := b.mustOpen(t)
	m.Order(faultmodule.Encrypt, faultmodule.Order{Action: faultmodule.Flip, Times: faultmodule.Always})
	if err := tryCreate(t, p, "k"); !claviger.Is(err, claviger.Unavailable) || !errors.Is(err, pkcs11.ErrUnproved) {
		t.Errorf("%v", err)
	}
	m.Heal()
	if list := objects(t, p); len(list) != 0 {
		t.Errorf("%+v is left", list)
	}
	if err := tryCreate(t, p, "k"); err != nil {
		t.Error(err)
	}
	mustClose(t, p)
}

// oneKeyForAll is a library that encrypts with the same key, whatever key is asked for.
type oneKeyForAll struct {
	pkcs11.Boundary
	key *p11.ObjectHandle // 0: the key that is asked for
}

func (l oneKeyForAll) Encrypt(s p11.SessionHandle, m *p11.Mechanism, o p11.ObjectHandle, in []byte) ([]byte, error) {
	if *l.key == 0 {
		*l.key = o
	}
	return l.Boundary.Encrypt(s, m, *l.key, in)
}

// TestCheckValueOfAnotherKey: a token computes the check value of a new key with a key that is in use. The creation
// fails, and the new key is destroyed.
func TestCheckValueOfAnotherKey(t *testing.T) {
	b := newSite(t)
	version := b.create(t, "used")
	var key p11.ObjectHandle
	on := false
	b.wrap = func(c pkcs11.Boundary) pkcs11.Boundary { return switched{c, oneKeyForAll{c, &key}, &on} }
	p := b.mustOpen(t)
	on = true
	keystream(t, p, version)
	_, err := p.Create(context.WithoutCancel(t.Context()), provider.Spec{Name: "new", Cipher: claviger.DefaultCipher,
		BitLength: 256})
	if !claviger.Is(err, claviger.Unavailable) || !errors.Is(err, pkcs11.ErrUnproved) {
		t.Errorf("%v", err)
	}
	on = false
	if list := objects(t, p); len(list) != 1 || list[0].Label != version {
		t.Errorf("%+v", list)
	}
	mustClose(t, p)
}

// switched is a library that encrypts as another one while it is on.
type switched struct {
	pkcs11.Boundary
	other pkcs11.Boundary
	on    *bool
}

func (l switched) Encrypt(s p11.SessionHandle, m *p11.Mechanism, o p11.ObjectHandle, in []byte) ([]byte, error) {
	if *l.on {
		return l.other.Encrypt(s, m, o, in)
	}
	return l.Boundary.Encrypt(s, m, o, in)
}

// TestExchangedPurges is TestExchangedSteps for a purge of a version and for a prune.
func TestExchangedPurges(t *testing.T) {
	b, m, _ := faultySite(t)
	b.create(t, "bystander")
	p := b.mustOpen(t)
	closed := keystream(t, p, "bystander@0")
	exchanged := func(p *hsm.Provider, version string, f faultmodule.Function, skip int, purge func() error) {
		t.Helper()
		m.ExchangeLabels(version, "bystander@0")
		m.Order(f, faultmodule.Order{Action: faultmodule.Exchange, Skip: skip})
		err := purge()
		m.Heal()
		m.UndoExchange()
		if err != nil {
			t.Errorf("%s, exchange after call %d of function %d: %v", version, skip, f, err)
		}
		if !bytes.Equal(keystream(t, p, "bystander@0"), closed) {
			t.Fatalf("%s, exchange after call %d of function %d: the other key is gone", version, skip, f)
		}
	}
	for _, f := range []faultmodule.Function{faultmodule.FindObjects, faultmodule.FindObjectsFinal} {
		for skip := range 2 {
			key := fmt.Sprintf("k%d%d", f, skip)
			if err := tryCreate(t, p, key); err != nil {
				t.Fatal(err)
			}
			if _, err := p.Roll(t.Context(), key, nil); err != nil {
				t.Fatal(err)
			}
			exchanged(p, key+"@0", f, skip, func() error { return p.PurgeVersion(t.Context(), key+"@0") })
			b.forgetWhole(t, p, key)
			mustClose(t, p)
			b.access = hsm.Destroy
			p = b.mustOpen(t)
			list, err := p.Prunable(t.Context(), 0)
			if err != nil || len(list.Orphans) != 1 {
				t.Fatalf("%+v, %v", list, err)
			}
			exchanged(p, key+"@1", f, skip, func() error { _, err := p.Prune(t.Context(), list.Orphans); return err })
			mustClose(t, p)
			b.access = hsm.Serve
			p = b.mustOpen(t)
			if list := objects(t, p); len(list) != 1 {
				t.Errorf("%s is left: %+v", key, list)
			}
		}
	}
	mustClose(t, p)
}

// TestRenumberedChecks: the handles of the token's objects change at random times while a server checks its token and
// makes, rolls and deletes keys. No key is reported as lost, and the object that binds the token to its metastore is
// not made again.
func TestRenumberedChecks(t *testing.T) {
	b, m, text := faultySite(t)
	want := map[string][]byte{}
	for _, key := range []string{"a", "b", "c"} {
		b.create(t, key)
	}
	p := b.mustOpen(t)
	for _, v := range []string{"a@0", "b@0", "c@0"} {
		want[v] = keystream(t, p, v)
	}
	var ended atomic.Bool
	done := make(chan struct{})
	go func() {
		defer close(done)
		for pause := time.Duration(0); !ended.Load(); pause = (pause + 17*time.Microsecond) % time.Millisecond {
			m.Renumber()
			time.Sleep(pause)
		}
	}()
	for n := range 15 {
		key := fmt.Sprint("k", n)
		steps := []error{p.Watch(t.Context()), p.SurveyNow(t.Context()), p.CheckFit(t.Context()),
			p.Sweep(t.Context(), 0), tryCreate(t, p, key)}
		if steps[len(steps)-1] == nil {
			_, err := p.Roll(t.Context(), key, nil)
			steps = append(steps, err, p.Delete(t.Context(), key))
		}
		for i, err := range steps {
			if err != nil && (!claviger.Is(err, claviger.Unavailable) || hsm.IsMisfit(err)) {
				t.Errorf("step %d: %v", i, err)
			}
		}
	}
	ended.Store(true)
	<-done
	if h := p.LastHoldings(); len(h.All()) != 0 {
		t.Errorf("lost: %v", h.Names())
	}
	for _, line := range []string{"was gone", "lost", "holds keys of claviger that", "no longer fit"} {
		if strings.Contains(text.String(), line) {
			t.Errorf("%q in the log:\n%s", line, text)
		}
	}
	for v, closed := range want {
		if !bytes.Equal(keystream(t, p, v), closed) {
			t.Errorf("%s is another key", v)
		}
	}
	mustClose(t, p)
}

// TestOtherObjectDestroyed: the handles of a key's object and of another key change places in the moment before
// C_DestroyObject, so that the other key is destroyed. The deletion returns an error that tells the caller to call an
// operator, the log names the key that is missing, and the other key is refused. The deleted key is gone, and a sweep
// destroys its object.
func TestOtherObjectDestroyed(t *testing.T) {
	b, m, _ := faultySite(t)
	b.create(t, "bystander")
	b.create(t, "third")
	p := b.mustOpen(t)
	lost := false
	for skip := 0; skip < 40 && !lost; skip++ {
		key := fmt.Sprint("k", skip)
		create(t, p, key)
		m.ExchangeLabels(key+"@0", "bystander@0")
		m.Order(faultmodule.GetAttributeValue, faultmodule.Order{Action: faultmodule.Exchange, Skip: skip})
		err := p.Delete(t.Context(), key)
		m.Heal()
		m.UndoExchange()
		if err == nil {
			continue
		}
		lost = true
		if !errors.Is(err, pkcs11.ErrOtherDestroyed) || !claviger.Is(err, claviger.Internal) ||
			!strings.Contains(err.Error(), "the token lacks these key versions: bystander@0") {
			t.Error(err)
		}
		if says := claviger.AnswerOf(err); !strings.Contains(says, "tell an operator") ||
			strings.Contains(says, "bystander") {
			t.Errorf("the caller sees %q", says)
		}
		if err := p.CheckKeys(t.Context()); err == nil || !strings.Contains(err.Error(), "bystander@0") {
			t.Errorf("readiness: %v", err)
		}
		if m, err := p.Metadata(t.Context(), key); err != nil || m[0] != nil {
			t.Errorf("%+v, %v", m, err)
		}
		if err := p.Sweep(t.Context(), 0); err != nil {
			t.Error(err)
		}
	}
	if !lost {
		t.Fatal("the other key was never destroyed")
	}
	wantMarks(t, p, map[string]hsm.Mark{"third@0": hsm.InUse})
	keystream(t, p, "third@0")
	mustClose(t, p)
}
