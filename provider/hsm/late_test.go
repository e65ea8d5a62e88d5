package hsm_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"runtime"
	"strings"
	"testing"
	"time"

	p11 "github.com/miekg/pkcs11"

	"claviger"
	"claviger/internal/faultmodule"
	"claviger/internal/logtest"
	"claviger/metastore"
	"claviger/pkcs11"
	"claviger/provider"
	"claviger/provider/hsm"
)

// lateSite returns a site whose library makes faults, and whose provider waits only a moment for the HSM. The site has
// the key k, which was made without faults. zeros is a block of zeros, encrypted with its version k@0.
func lateSite(t *testing.T) (b *testSite, fault *faultmodule.Module, zeros []byte) {
	t.Helper()
	b = newSite(t)
	b.soft = "true"
	b.create(t, "k")
	p := b.mustOpen(t)
	zeros, err := block(t.Context(), p, "k@0")
	if err != nil || p.Missing() != nil || p.Arrived() != nil {
		t.Fatal(err, p.Missing())
	}
	mustClose(t, p)
	b.maxWait = 300 * time.Millisecond
	real := b.token.Module
	fault = faultmodule.New(t, real)
	b.token.Module = fault.Path
	b.change(t, real, fault.Path)
	return b, fault, zeros
}

// change replaces a text in the site's keystore file, and returns the content before.
func (b *testSite) change(t *testing.T, old, by string) (before string) {
	t.Helper()
	content, err := os.ReadFile(b.file)
	if err != nil {
		t.Fatal(err)
	}
	b.rewrite(t, strings.ReplaceAll(string(content), old, by))
	return string(content)
}

// rewrite writes the site's keystore file.
func (b *testSite) rewrite(t *testing.T, content string) {
	t.Helper()
	if err := os.WriteFile(b.file, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
}

// waitUntil waits until f returns nil.
func waitUntil(t *testing.T, what string, f func() error) {
	t.Helper()
	began := time.Now()
	for {
		err := f()
		if err == nil {
			t.Logf("%s: %v", what, time.Since(began).Round(time.Millisecond))
			return
		}
		if time.Since(began) > 30*time.Second {
			t.Fatalf("%s: not within 30 s: %v", what, err)
		}
		time.Sleep(5 * time.Millisecond)
	}
}

// block returns a block of zeros, encrypted with a version.
func block(ctx context.Context, p *hsm.Provider, version string) ([]byte, error) {
	b := make([]byte, 16)
	return b, p.EncryptBlocks(ctx, version, b)
}

// wantWithoutHSM checks what a provider without its token does: it reads from the store, fails all else with kind
// Unavailable, and changes nothing.
func wantWithoutHSM(t *testing.T, p *hsm.Provider) {
	t.Helper()
	ctx := t.Context()
	names, err := p.Keys(ctx)
	if err != nil || len(names) != 1 {
		t.Errorf("the keys: %q, %v", names, err)
	}
	m, err := p.Metadata(ctx, "k")
	if err != nil || len(m) != 1 || m[0] == nil || m[0].Versions != 1 {
		t.Errorf("the metadata: %v, %v", m, err)
	}
	if v, err := p.Current(ctx, "k"); err != nil || v.Name != "k@0" {
		t.Errorf("the current version: %v, %v", v.Name, err)
	}
	if none, err := p.Metadata(ctx, "other"); err != nil || none[0] != nil {
		t.Errorf("the metadata of a key that does not exist: %v, %v", none, err)
	}
	for what, f := range map[string]func() error{
		"an encryption": func() error { _, err := block(ctx, p, "k@0"); return err },
		"a creation": func() error {
			_, err := p.Create(ctx, provider.Spec{Name: "new", Cipher: claviger.DefaultCipher, BitLength: 256})
			return err
		},
		"a roll":                           func() error { _, err := p.Roll(ctx, "k", nil); return err },
		"a deletion":                       func() error { return p.Delete(ctx, "k") },
		"a purge":                          func() error { return p.Purge(ctx, "k", "k@0") },
		"the check":                        func() error { return p.Check(ctx) },
		"the check that both fit":          func() error { return p.CheckFit(ctx) },
		"the reason why there is no token": p.Missing,
	} {
		if err := f(); !claviger.Is(err, claviger.Unavailable) {
			t.Errorf("%s: %v", what, err)
		}
	}
	if err := errors.Join(p.CheckKeys(ctx), p.CheckWrites(ctx), p.CheckCurrent(ctx), p.CheckAny(ctx),
		p.CheckEncryptions(ctx)); err != nil {
		t.Errorf("a check of parts that are not known yet: %v", err)
	}
	if used, most := p.Sessions(); used != 0 || most != 0 {
		t.Errorf("%d of %d sessions", used, most)
	}
	if p.Info().Label == "" || p.Hidden() != nil {
		t.Errorf("%+v, %v", p.Info(), p.Hidden())
	}
	if again, err := p.Keys(ctx); err != nil || len(again) != len(names) {
		t.Errorf("the keys are %q now", again)
	}
}

// TestOpensLate: if the HSM does not answer when a provider is opened, whichever call fails or hangs, the provider
// serves without it what it can. When the HSM answers, the provider logs in once, and serves all.
func TestOpensLate(t *testing.T) {
	type row struct {
		f faultmodule.Function
		o faultmodule.Order
	}
	fail := func(f faultmodule.Function, code uint) row {
		return row{f, faultmodule.Order{Action: faultmodule.Fail, Value: code, Times: faultmodule.Always}}
	}
	hang := func(f faultmodule.Function) row { return row{f, faultmodule.Order{Action: faultmodule.Hang}} }
	for name, r := range map[string]row{
		"C_Initialize fails":   fail(faultmodule.Initialize, p11.CKR_DEVICE_ERROR),
		"C_Initialize hangs":   hang(faultmodule.Initialize),
		"C_GetSlotList fails":  fail(faultmodule.GetSlotList, p11.CKR_GENERAL_ERROR),
		"C_GetSlotList hangs":  hang(faultmodule.GetSlotList),
		"C_GetTokenInfo fails": fail(faultmodule.GetTokenInfo, p11.CKR_DEVICE_REMOVED),
		"C_OpenSession fails":  fail(faultmodule.OpenSession, p11.CKR_TOKEN_NOT_PRESENT),
		"C_OpenSession hangs":  hang(faultmodule.OpenSession),
		"C_Login fails":        fail(faultmodule.Login, p11.CKR_DEVICE_ERROR),
		"C_Login hangs":        hang(faultmodule.Login),
		"a search fails":       fail(faultmodule.FindObjectsInit, p11.CKR_DEVICE_ERROR),
		"C_Encrypt hangs":      hang(faultmodule.Encrypt),
	} {
		t.Run(name, func(t *testing.T) { opensLate(t, r.f, r.o) })
	}
}

func opensLate(t *testing.T, f faultmodule.Function, o faultmodule.Order) {
	b, fault, want := lateSite(t)
	fault.Order(f, o)
	p := b.mustOpen(t)
	called := make(chan struct{}, 1)
	p.OnFunction(func(pkcs11.Function) {
		select {
		case called <- struct{}{}:
		default:
		}
	})
	wantWithoutHSM(t, p)
	if _, came := p.Arrival(); came {
		t.Error("the token has arrived")
	}
	before := fault.Calls(faultmodule.Login)
	if o.Action == faultmodule.Hang && (f == faultmodule.Login || f == faultmodule.Encrypt) {
		before-- // the call that hangs goes on
	}
	fault.Heal()
	waitUntil(t, "served after the HSM's return", func() error {
		got, err := block(t.Context(), p, "k@0")
		if err == nil && !bytes.Equal(got, want) {
			t.Fatal("another key")
		}
		return err
	})
	<-p.Arrived()
	if n := fault.Calls(faultmodule.Login) - before; f != faultmodule.FindObjectsInit && n != 1 {
		t.Errorf("%d logins, want 1", n)
	}
	at, came := p.Arrival()
	if !came || at.Err != nil || p.Missing() != nil || p.Check(t.Context()) != nil || p.CheckFit(t.Context()) != nil {
		t.Errorf("%v %t, %v, %v, %v", at, came, p.Missing(), p.Check(t.Context()), p.CheckFit(t.Context()))
	}
	<-called // of OnFunction
	if _, err := p.Roll(t.Context(), "k", nil); err != nil {
		t.Error(err)
	}
	if err := p.CheckEncryptions(t.Context()); err != nil {
		t.Error("failures before the token came are kept:", err)
	}
}

// TestLateRefusals: a problem that a person must solve is an error of Open. If the problem shows only when the HSM
// comes after Open, the provider says so, sends a PIN once, and goes on when the problem is solved.
func TestLateRefusals(t *testing.T) {
	b, fault, _ := lateSite(t)
	right, err := os.ReadFile(b.token.PINFile)
	if err != nil {
		t.Fatal(err)
	}
	setPIN := func(pin []byte) {
		t.Helper()
		if err := os.WriteFile(b.token.PINFile, pin, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	refused := func(what, want string, is func(error) bool) {
		t.Helper()
		p, err := b.open(t.Context())
		if err == nil {
			mustClose(t, p)
		}
		if err == nil || claviger.IsUnreachable(err) || !is(err) || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", what, err)
		}
	}
	anything := func(error) bool { return true }
	setPIN([]byte("00001"))
	refused("a wrong PIN", "refuses the PIN", pkcs11.IsPINRefused)
	setPIN(right)
	for what, change := range map[string][2]string{
		"another token":     {b.token.Label, "another"},
		"a missing library": {b.token.Module, b.token.Module + ".none"},
	} {
		before := b.change(t, change[0], change[1])
		refused(what, "", anything)
		b.rewrite(t, before)
	}

	fault.Order(faultmodule.Initialize, faultmodule.Order{Action: faultmodule.Fail, Value: p11.CKR_DEVICE_ERROR,
		Times: faultmodule.Always})
	setPIN([]byte("00002"))
	p := b.mustOpen(t)
	before := fault.Calls(faultmodule.Login)
	fault.Heal()
	waitUntil(t, "the PIN is refused", func() error {
		if err := p.Missing(); !pkcs11.IsPINRefused(err) {
			return fmt.Errorf("the reason is %w", err)
		}
		return nil
	})
	if _, err := block(t.Context(), p, "k@0"); !claviger.Is(err, claviger.Unavailable) {
		t.Error(err)
	}
	if err := p.Check(t.Context()); err == nil || !strings.Contains(err.Error(), "refuses the PIN") {
		t.Error(err)
	}
	again := fault.Calls(faultmodule.GetSlotList)
	waitUntil(t, "the token is tried again", func() error {
		if fault.Calls(faultmodule.GetSlotList) < again+2 {
			return errors.New("not yet")
		}
		return nil
	})
	if n := fault.Calls(faultmodule.Login) - before; n != 1 {
		t.Errorf("the wrong PIN was sent %d times", n)
	}
	if err := p.Missing(); err == nil || !strings.Contains(err.Error(), "this server reads a corrected PIN file") {
		t.Errorf("the cure in a running server: %v", err)
	}
	setPIN(right)
	waitUntil(t, "served with the right PIN", func() error { _, err := block(t.Context(), p, "k@0"); return err })
}

// TestLateMisfit: a token that comes late and does not fit the metastore serves nothing.
func TestLateMisfit(t *testing.T) {
	b, fault, _ := lateSite(t)
	fault.Order(faultmodule.Initialize, faultmodule.Order{Action: faultmodule.Fail, Value: p11.CKR_DEVICE_ERROR,
		Times: faultmodule.Always})
	var log logtest.Buffer
	b.log = slog.New(slog.NewTextHandler(&log, nil))
	p := b.mustOpen(t)
	var serial string
	var check []byte
	b.withStore(t, func(s metastore.Store) {
		var err error
		if serial, _, err = s.Setting(t.Context(), "hsm.token.serial"); err != nil {
			t.Fatal(err)
		}
		check = setCheck(t, s, "another", bytes.Repeat([]byte{1}, 16))
	})
	fault.Heal()
	waitUntil(t, "the misfit is found", func() error {
		if err := p.Missing(); !hsm.IsMisfit(err) {
			return fmt.Errorf("the reason is %w", err)
		}
		return nil
	})
	if _, err := block(t.Context(), p, "k@0"); !claviger.Is(err, claviger.Unavailable) {
		t.Error(err)
	}
	if _, err := p.Roll(t.Context(), "k", nil); !claviger.Is(err, claviger.Unavailable) {
		t.Error(err)
	}
	if !strings.Contains(log.String(), "belongs to token") {
		t.Errorf("the log: %s", &log)
	}
	b.withStore(t, func(s metastore.Store) { setCheck(t, s, serial, check) })
	waitUntil(t, "served with the right metastore", func() error { _, err := block(t.Context(), p, "k@0"); return err })
	if err := p.CheckKeys(t.Context()); err != nil {
		t.Error(err)
	}
}

// setCheck changes the token's serial number that a store records, and the check value of version k@0. It returns the
// check value before.
func setCheck(t *testing.T, s metastore.Store, serial string, check []byte) (before []byte) {
	t.Helper()
	ctx := t.Context()
	list, err := s.Get(ctx, "k")
	if err != nil {
		t.Fatal(err)
	}
	k := *list[0]
	before = k.List[0].Check
	k.List[0].Check = check[:len(before)]
	_, err = s.Remove(ctx, "k")
	if err = errors.Join(err, s.Drop(ctx, "k"), s.Insert(ctx, k),
		s.SetSetting(ctx, "hsm.token.serial", serial)); err != nil {
		t.Fatal(err)
	}
	return before
}

// TestLateUnbound: a provider with a metastore that does not exist, or was never bound to a token, is not opened before
// the HSM answers. The metastore is not made before.
func TestLateUnbound(t *testing.T) {
	b, fault, _ := lateSite(t)
	b.db += ".new"
	fault.Order(faultmodule.Initialize, faultmodule.Order{Action: faultmodule.Fail, Value: p11.CKR_DEVICE_ERROR,
		Times: faultmodule.Always})
	for _, what := range []string{"missing", "unbound"} {
		exists := what == "unbound"
		if exists {
			b.withStore(t, func(metastore.Store) {})
		}
		_, err := b.open(t.Context())
		pause, ok := hsm.RetryPause(0, err)
		if !claviger.IsUnreachable(err) || !ok || pause > time.Second {
			t.Errorf("%s: %v; %v, %t", what, err, pause, ok)
		}
		if _, err := os.Stat(b.db); exists != (err == nil) {
			t.Errorf("%s: %v", what, err)
		}
	}
	fault.Heal()
	waitUntil(t, "the token of another metastore is refused", func() error {
		if _, err := b.open(t.Context()); !hsm.IsMisfit(err) {
			return fmt.Errorf("the error is %w", err)
		}
		return nil
	})
}

// TestLateClose: Close ends a provider whose HSM does not answer, also while a call hangs.
func TestLateClose(t *testing.T) {
	b, fault, _ := lateSite(t)
	for _, a := range []faultmodule.Action{faultmodule.Fail, faultmodule.Hang} {
		fault.Order(faultmodule.GetSlotList, faultmodule.Order{Action: a, Value: p11.CKR_DEVICE_ERROR,
			Times: faultmodule.Always})
		p := b.mustOpen(t)
		began := time.Now()
		mustClose(t, p)
		if took := time.Since(began); took > 5*time.Second {
			t.Errorf("Close took %v", took)
		}
		if _, err := p.Keys(t.Context()); !claviger.Is(err, claviger.Closed) {
			t.Error(err)
		}
		fault.Heal()
		waitUntil(t, "the attempt to open the token ends", func() error { // it writes into the token's folder
			stacks := make([]byte, 1<<20)
			if stacks = stacks[:runtime.Stack(stacks, true)]; bytes.Contains(stacks, []byte("claviger/pkcs11.")) {
				return errors.New("it runs")
			}
			return nil
		})
	}
}

// TestLateWorker: a library in a worker that crashes while it is opened, or hangs for ever, is opened in another
// worker.
func TestLateWorker(t *testing.T) {
	hsm.SetFirstLimit(t, time.Second)
	for name, a := range map[string]faultmodule.Action{"crash": faultmodule.Abort, "hang": faultmodule.Hang} {
		for _, f := range []faultmodule.Function{faultmodule.Initialize, faultmodule.OpenSession} {
			t.Run(fmt.Sprint(name, f), func(t *testing.T) {
				b, fault, _ := lateSite(t)
				b.change(t, "\nworker = no\n", "\nworker = yes\n")
				fault.Order(f, faultmodule.Order{Action: a, Times: faultmodule.Always})
				p := b.mustOpen(t)
				wantWithoutHSM(t, p)
				fault.Order(f, faultmodule.Order{Times: faultmodule.Always}) // a hanging call is not released
				waitUntil(t, "served by another worker", func() error {
					_, err := block(t.Context(), p, "k@0")
					return err
				})
				mustClose(t, p)
			})
		}
	}
}

// TestPauses: the pauses between attempts stay short for an HSM that does not answer, and rise for a problem that a
// person must solve and for a login that may have sent a wrong PIN.
func TestPauses(t *testing.T) {
	b, fault, _ := lateSite(t)
	b.maxWait = 0
	failing := func(f faultmodule.Function, code uint) error {
		fault.Order(f, faultmodule.Order{Action: faultmodule.Fail, Value: code, Times: faultmodule.Always})
		_, err := b.open(t.Context())
		if err == nil {
			t.Fatal("opened")
		}
		fault.Heal()
		return err
	}
	const short, long, vendors = 400 * time.Millisecond, 10 * time.Second, p11.CKR_VENDOR_DEFINED + 1
	for name, c := range map[string]struct {
		err  error
		most time.Duration
	}{
		"an HSM that does not answer": {failing(faultmodule.Initialize, p11.CKR_DEVICE_ERROR), short},
		"a vendor's code":             {failing(faultmodule.OpenSession, vendors), short},
		"a vendor's code at a login":  {failing(faultmodule.Login, vendors), long},
		"a refused login":             {failing(faultmodule.Login, p11.CKR_PIN_LOCKED), long},
	} {
		pause := hsm.NextPause(0, c.err)
		if pause != 100*time.Millisecond {
			t.Errorf("%s: the first pause is %v", name, pause)
		}
		for range 10 {
			pause = hsm.NextPause(pause, c.err)
		}
		if pause != c.most {
			t.Errorf("%s: the pauses rise to %v, want %v: %v", name, pause, c.most, c.err)
		}
	}
}
