package pkcs11

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	p11 "github.com/miekg/pkcs11"
	"go.uber.org/goleak"

	"claviger"
	"claviger/internal/softhsm"
	"claviger/internal/softhsm/softhsmtest"
	"claviger/pkcs11/worker"
)

func TestMain(m *testing.M) {
	worker.Main(os.Args)
	if os.Getenv(envOpen) != "" {
		os.Exit(openAndEnd())
	}
	goleak.VerifyTestMain(m)
}

// envWorker has the tests run with the library in a worker, where they do not say otherwise.
const envWorker = "CLAVIGER_TEST_WORKER"

// config names a SoftHSM token.
func config(tok softhsm.Token) Config {
	return Config{Module: tok.Module, TokenLabel: tok.Label, PIN: pinFile(tok.PINFile), PINSource: "file " +
		tok.PINFile, Profile: SoftHSM, Worker: testedMode()}
}

// testedMode returns where the library runs in a test that does not set it.
func testedMode() WorkerMode {
	if os.Getenv(envWorker) != "" {
		return WorkerYes
	}
	return WorkerNo
}

// open opens a new token, with a Meter before it.
func open(t *testing.T) (*Token, *Meter) {
	t.Helper()
	return openAs(t, config(softhsmtest.New(t)))
}

// openInProcess is open with the library in this process.
func openInProcess(t *testing.T) (*Token, *Meter) {
	t.Helper()
	c := config(softhsmtest.New(t))
	c.Worker = WorkerNo
	return openAs(t, c)
}

func openAs(t *testing.T, c Config) (*Token, *Meter) {
	t.Helper()
	m := new(Meter)
	c.Wrap = m.Wrap
	tok := openBare(t, c)
	m.Reset()
	return tok, m
}

// openBare opens a token with the boundary of its configuration, and closes it at the end of the test.
func openBare(t *testing.T, c Config) *Token {
	t.Helper()
	tok, err := Open(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := tok.Close(); err != nil {
			t.Error(err)
		}
	})
	return tok
}

func generate(t *testing.T, tok *Token, n byte, bits int) (id []byte, label string) {
	t.Helper()
	id, label = []byte{1, 2, 3, n}, fmt.Sprintf("k@%d", n)
	if err := tok.GenerateKey(t.Context(), id, label, bits); err != nil {
		t.Fatal(err)
	}
	return id, label
}

// TestKeys: generated keys can be found by id and by label, and have the attributes that were requested.
func TestKeys(t *testing.T) {
	tok, _ := open(t)
	ctx := t.Context()
	for i, bits := range []int{128, 192, 256} {
		id, label := generate(t, tok, byte(i), bits)
		k, err := tok.Find(ctx, id)
		if err != nil || k == nil {
			t.Fatalf("%v, %v", k, err)
		}
		if k.Bits != bits || k.Label != label || !bytes.Equal(k.ID, id) || !k.Sensitive || k.Extractable ||
			!k.NeverExtractable || !k.Local || !k.Encrypt || k.Decrypt {
			t.Errorf("made %+v", *k)
		}
		if err := tok.GenerateKey(ctx, id, label, bits); !claviger.Is(err, claviger.KeyExists) {
			t.Errorf("made twice: %v", err)
		}
	}
	list, err := tok.List(ctx)
	if err != nil || len(list) != 3 {
		t.Fatalf("%d keys, %v", len(list), err)
	}
	if found, err := tok.FindLabel(ctx, "k@1"); err != nil || len(found) != 1 || found[0].Bits != 192 {
		t.Errorf("by label: %+v, %v", found, err)
	}
	if found, err := tok.FindLabel(ctx, "k@"); err != nil || len(found) != 0 {
		t.Errorf("by a part of a label: %+v, %v", found, err)
	}
	id := []byte{1, 2, 3, 1}
	if day, err := tok.StartDate(ctx, id, "k@1"); err != nil || !day.IsZero() {
		t.Errorf("a date that was not set: %v, %v", day, err)
	}
	if err := tok.Destroy(ctx, id, "another label"); err != nil {
		t.Error(err)
	}
	if k, err := tok.Find(ctx, id); err != nil || k == nil {
		t.Errorf("a key was destroyed by another's label: %v, %v", k, err)
	}
	for range 2 { // the second time there is no key, and that is no error
		if err := tok.Destroy(ctx, id, "k@1"); err != nil {
			t.Error(err)
		}
	}
	if k, err := tok.Find(ctx, id); err != nil || k != nil {
		t.Errorf("destroyed: %v, %v", k, err)
	}
	if err := tok.EncryptBlocks(ctx, id, "k@1", nil, make([]byte, 16)); !claviger.Is(err, claviger.KeyNotFound) {
		t.Errorf("encrypts with a destroyed key: %v", err)
	}
}

// TestMechanisms: every mechanism gives the same bytes.
func TestMechanisms(t *testing.T) {
	tok, _ := open(t)
	id, label := generate(t, tok, 1, 256)
	// Two runs of counters. The second run wraps in all 128 bits.
	blocks := make([]byte, 0, 16*6)
	for _, b := range []byte{0, 1, 2} {
		blocks = append(append(blocks, make([]byte, 15)...), b)
	}
	blocks = append(append(blocks, bytes.Repeat([]byte{0xff}, 15)...), 0xfe)
	blocks = append(blocks, bytes.Repeat([]byte{0xff}, 16)...)
	blocks = append(blocks, make([]byte, 16)...)
	var want []byte
	for _, m := range profiles[SoftHSM].mechanisms {
		tok.mechanisms[0] = m
		got := bytes.Clone(blocks)
		if err := tok.EncryptBlocks(t.Context(), id, label, nil, got); err != nil {
			t.Fatalf("%s: %v", mechanismName(m), err)
		}
		if want == nil {
			want = got
		}
		if !bytes.Equal(got, want) || bytes.Equal(got, blocks) {
			t.Errorf("%s: %x, want %x", mechanismName(m), got, want)
		}
	}
	if !bytes.Equal(want[:16], want[80:]) {
		t.Error("one block, two encryptions")
	}
}

// TestGathering: with 30 ms for each call, 64 callers of one key need at most 4 calls.
func TestGathering(t *testing.T) {
	tok, m := open(t)
	id, label := generate(t, tok, 1, 128)
	const callers = 64
	want := make([][]byte, callers)
	for i := range want {
		want[i] = bytes.Repeat([]byte{byte(i)}, 32)
		if err := tok.EncryptBlocks(t.Context(), id, label, nil, want[i]); err != nil {
			t.Fatal(err)
		}
	}
	m.Reset()
	m.SetLatency(30 * time.Millisecond)
	var ready, wg sync.WaitGroup
	ready.Add(1)
	for i := range callers {
		wg.Go(func() {
			got := bytes.Repeat([]byte{byte(i)}, 32)
			ready.Wait()
			if err := tok.EncryptBlocks(t.Context(), id, label, nil, got); err != nil || !bytes.Equal(got, want[i]) {
				t.Errorf("caller %d: %x, %v", i, got, err)
			}
		})
	}
	ready.Done()
	wg.Wait()
	if n := m.Count("Encrypt"); n > 4 {
		t.Errorf("%d calls of C_Encrypt", n)
	}
}

// TestCallerGivesUp: a caller whose ctx ends returns, and the other callers get their results.
func TestCallerGivesUp(t *testing.T) {
	tok, m := open(t)
	id, label := generate(t, tok, 1, 128)
	if err := tok.EncryptBlocks(t.Context(), id, label, nil, make([]byte, 16)); err != nil {
		t.Fatal(err)
	}
	m.SetLatency(200 * time.Millisecond)
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			ctx := t.Context()
			if i%2 == 0 {
				var cancel context.CancelFunc
				ctx, cancel = context.WithTimeout(ctx, 20*time.Millisecond)
				defer cancel()
			}
			blocks := make([]byte, 32)
			err := tok.EncryptBlocks(ctx, id, label, nil, blocks)
			clear(blocks) // as package eek does with keystream
			if gone := claviger.Is(err, claviger.Unavailable); gone != (i%2 == 0) {
				t.Errorf("caller %d: %v", i, err)
			}
		})
	}
	wg.Wait()
}

// TestOneCallHoweverLong: data up to the data limit is encrypted in one call.
func TestOneCallHoweverLong(t *testing.T) {
	tok, m := open(t)
	id, label := generate(t, tok, 1, 256)
	if err := tok.EncryptBlocks(t.Context(), id, label, nil, make([]byte, 16)); err != nil {
		t.Fatal(err)
	}
	m.Reset()
	for _, c := range []struct{ bytes, limit, calls int }{{32_000, 32_000, 1}, {32_016, 32_000, 2}, {1 << 20, 4 << 20,
		1}} {
		setDataLimit(tok, int64(c.limit))
		m.Reset()
		if err := tok.EncryptBlocks(t.Context(), id, label, nil, make([]byte, c.bytes)); err != nil {
			t.Fatal(err)
		}
		if n := m.Count("Encrypt"); n != c.calls {
			t.Errorf("%d bytes at a limit of %d: %d calls, want %d", c.bytes, c.limit, n, c.calls)
		}
	}
}

// TestRecovery: an error that happens once is repaired, and the caller does not notice it. The library is initialised
// again only if it says that it is not initialised.
func TestRecovery(t *testing.T) {
	for _, code := range []uint{p11.CKR_SESSION_HANDLE_INVALID, p11.CKR_SESSION_CLOSED, p11.CKR_USER_NOT_LOGGED_IN,
		p11.CKR_DEVICE_ERROR, p11.CKR_DEVICE_REMOVED, p11.CKR_TOKEN_NOT_PRESENT,
		p11.CKR_CRYPTOKI_NOT_INITIALIZED, p11.CKR_GENERAL_ERROR} {
		t.Run(p11.Error(code).Error(), func(t *testing.T) {
			tok, m := open(t)
			id, label := generate(t, tok, 1, 256)
			check, err := tok.CheckValue(t.Context(), id, label)
			if err != nil {
				t.Fatal(err)
			}
			resets := 0
			tok.OnReset(func() { resets++ })
			m.Reset()
			m.Fail("Encrypt", 1, p11.Error(code))
			again, err := tok.CheckValue(t.Context(), id, label)
			if err != nil || !bytes.Equal(again, check) {
				t.Errorf("%x, %v, want %x", again, err, check)
			}
			want := 0
			if code == p11.CKR_CRYPTOKI_NOT_INITIALIZED {
				want = 1
			}
			if resets != want || m.Count("Login") != want || m.Count("Initialize") != want {
				t.Errorf("%d resets are reported, want %d; the calls are %v", resets, want, m.Counts())
			}
		})
	}
}

// TestTokenAway: while the token is lost, calls fail at once with that reason. When it is back they succeed.
func TestTokenAway(t *testing.T) {
	tok, m := open(t)
	id, label := generate(t, tok, 1, 256)
	for _, call := range []string{"Encrypt", "GetSlotList", "OpenSession"} {
		m.Fail(call, 1000, p11.Error(p11.CKR_DEVICE_REMOVED))
	}
	began := time.Now()
	for range 5 {
		if err := tok.EncryptBlocks(t.Context(), id, label, nil, make([]byte, 16)); !claviger.Is(err,
			claviger.Unavailable) {
			t.Fatal(err)
		}
	}
	most := 1
	for pause := firstBackoff; pause < time.Since(began); pause = 2*pause + firstBackoff { // 250 ms, 750 ms, 1750 ms
		most++
	}
	if n := m.Count("Initialize"); n < 1 || n > most {
		t.Errorf("initialised %d times, want 1 to %d", n, most)
	}
	m.Heal()
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		err := tok.EncryptBlocks(t.Context(), id, label, nil, make([]byte, 16))
		if err == nil {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal(err)
		}
	}
}

// TestClosed: Close can be called again, and calls of a closed token fail with kind Closed.
func TestClosed(t *testing.T) {
	tok, _ := open(t)
	id, label := generate(t, tok, 1, 256)
	for range 2 {
		if err := tok.Close(); err != nil {
			t.Error(err)
		}
	}
	if err := tok.EncryptBlocks(t.Context(), id, label, nil, make([]byte, 16)); !claviger.Is(err, claviger.Closed) {
		t.Errorf("a closed token: %v", err)
	}
}

// TestWrongPIN: a wrong PIN is tried once, and never again by this process.
func TestWrongPIN(t *testing.T) {
	made := softhsmtest.New(t)
	wrong := filepath.Join(t.TempDir(), "pin")
	if err := os.WriteFile(wrong, []byte("87654321"), 0o600); err != nil {
		t.Fatal(err)
	}
	c := config(made)
	c.PIN, c.PINSource = pinFile(wrong), "file PIN"
	m := new(Meter)
	c.Wrap = m.Wrap
	_, err := Open(t.Context(), c)
	if err == nil || m.Count("Login") != 1 {
		t.Fatalf("%d logins, %v", m.Count("Login"), err)
	}
	wantMessage(t, "wrong-pin", err, made)
	if !errors.Is(err, p11.Error(p11.CKR_PIN_INCORRECT)) {
		t.Errorf("not CKR_PIN_INCORRECT: %v", err)
	}
}
