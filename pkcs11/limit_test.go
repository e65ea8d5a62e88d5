package pkcs11

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"runtime"
	"strings"
	"testing"
	"time"

	p11 "github.com/miekg/pkcs11"

	"claviger"
	"claviger/internal/softhsm/softhsmtest"
)

// TestDefaultLimit: a caller without a deadline does not wait for ever. The buffers of a call that hangs stay unchanged
// until it returns.
func TestDefaultLimit(t *testing.T) {
	seen := make(chan []byte, 1)
	made := softhsmtest.New(t)
	m := new(Meter)
	c := config(made)
	c.Wrap = func(b Boundary) Boundary { return m.Wrap(inputRecorder{b, seen}) }
	tok, err := Open(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	defer tok.Close() //nolint:errcheck // the calls below are what is tested
	id, label := generate(t, tok, 1, 256)
	select {
	case <-seen: // the call of the probe
	default:
	}
	tok.limit = 100 * time.Millisecond
	release := m.Hang("Encrypt")
	defer release()
	want := bytes.Repeat([]byte{7}, 32)
	within(t, 20*time.Second, "EncryptBlocks", func() {
		err := tok.EncryptBlocks(context.Background(), id, label, nil, bytes.Clone(want))
		if !claviger.Is(err, claviger.Unavailable) || !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("no deadline: %v", err)
		}
	})
	hang := m.Hang("GenerateRandom")
	defer hang()
	within(t, 20*time.Second, "Ping", func() {
		if err := tok.Ping(context.Background()); !claviger.Is(err, claviger.Unavailable) {
			t.Errorf("no deadline: %v", err)
		}
	})
	hang()
	release()
	select {
	case got := <-seen:
		if !bytes.Equal(got, want) {
			t.Errorf("the call that hung read %x", got)
		}
	case <-time.After(20 * time.Second):
		t.Error("the call that hung was not made")
	}
}

// inputRecorder keeps the input of C_Encrypt.
type inputRecorder struct {
	Boundary
	seen chan []byte
}

func (s inputRecorder) Encrypt(h p11.SessionHandle, m *p11.Mechanism, key p11.ObjectHandle,
	data []byte) ([]byte, error) {
	select {
	case s.seen <- bytes.Clone(data):
	default:
	}
	return s.Boundary.Encrypt(h, m, key, data)
}

// setDataLimit sets the number of bytes that the profile allows for one C_Encrypt.
func setDataLimit(tok *Token, n int64) {
	tok.gather.Range(func(_, v any) bool { // the run of an earlier call may still look for more callers
		g, _ := v.(*gatherer)
		for running := true; running; runtime.Gosched() {
			g.mu.Lock()
			running = g.running > 0
			g.mu.Unlock()
		}
		return true
	})
	tok.fullData = n
}

// TestDataLimit: the token takes less data in one call than the profile says. The limit is reduced until a call
// succeeds.
func TestDataLimit(t *testing.T) {
	const accepted = 1000 // bytes; not a multiple of the block size
	c := config(softhsmtest.New(t))
	m := new(Meter)
	var log bytes.Buffer
	c.Log = slog.New(slog.NewTextHandler(&log, nil))
	c.Wrap = func(b Boundary) Boundary { return m.Wrap(sizeLimitedToken{b, accepted}) }
	tok, err := Open(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	defer tok.Close() //nolint:errcheck // the calls below are what is tested
	id, label := generate(t, tok, 1, 256)
	one := bytes.Repeat([]byte{3}, 16)
	if err := tok.EncryptBlocks(t.Context(), id, label, nil, one); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		m.Reset()
		got := bytes.Repeat([]byte{3}, 32_000)
		if err := tok.EncryptBlocks(t.Context(), id, label, nil, got); err != nil || !bytes.Equal(got, bytes.Repeat(one,
			2000)) {
			t.Fatalf("%v; the blocks are right: %t", err, bytes.Equal(got, bytes.Repeat(one, 2000)))
		}
	}
	name := keyName{string(id), label}
	limit := int(tok.dataLimit(name))
	if limit > accepted || limit < accepted/2-blockSize || limit%blockSize != 0 {
		t.Errorf("the limit is %d bytes, the token takes %d", limit, accepted)
	}
	if !strings.Contains(log.String(), `takes less data in one call than its profile says" bytes=32000 now=16000`) {
		t.Errorf("the log: %s", log.String())
	}
	if n, want := m.Count("Encrypt"), (32_000+limit-1)/limit; n != want {
		t.Errorf("the second time it took %d calls, want %d", n, want)
	}
}

// TestDataLimitIsTriedAgain: one wrong result about the size of the data does not make all later calls small.
func TestDataLimitIsTriedAgain(t *testing.T) {
	tok, m := open(t)
	id, label := generate(t, tok, 1, 256)
	name := keyName{string(id), label}
	full := tok.dataLimit(name)
	m.Fail("Encrypt", 1, p11.Error(p11.CKR_DATA_LEN_RANGE))
	if err := tok.EncryptBlocks(t.Context(), id, label, nil, make([]byte, 64)); err != nil ||
		tok.dataLimit(name) != 32 {
		t.Fatalf("%v; the limit is %d", err, tok.dataLimit(name))
	}
	tok.maxData.byKey.Store(name, lesson[int64]{32, time.Now()}) // as after learnedFor
	m.Reset()
	err := tok.EncryptBlocks(t.Context(), id, label, nil, make([]byte, 4096))
	if err != nil || m.Count("Encrypt") != 1 || tok.dataLimit(name) != full {
		t.Errorf("a minute later: %v, %d calls; the limit is %d, and was %d", err, m.Count("Encrypt"),
			tok.dataLimit(name), full)
	}
	if n := tok.maxData.keys.Load(); n != 0 {
		t.Errorf("the limits of %d keys are remembered", n)
	}
}

// TestDataLimitBegins: when the token is tried with the profile's data limit again, the limit is reduced from there,
// and not from the limit that was learned before.
func TestDataLimitBegins(t *testing.T) {
	tok, m := open(t)
	id, label := generate(t, tok, 1, 256)
	name := keyName{string(id), label}
	setDataLimit(tok, 32_000)
	tok.maxData.set(name, 64)
	tok.maxData.byKey.Store(name, lesson[int64]{64, time.Now()}) // as after learnedFor
	m.Fail("Encrypt", 1, p11.Error(p11.CKR_DATA_LEN_RANGE))
	err := tok.EncryptBlocks(t.Context(), id, label, nil, make([]byte, 32_000))
	if err != nil || tok.dataLimit(name) != 16_000 {
		t.Errorf("%v, a limit of %d bytes, want 16000", err, tok.dataLimit(name))
	}
}

// TestDataLimitOfAnotherCall: a call that the token refused is repeated under the limit that another call with the key
// has reached meanwhile. That limit stays.
func TestDataLimitOfAnotherCall(t *testing.T) {
	var tok Token
	name := keyName{"id", "label"}
	setDataLimit(&tok, 8*blockSize)
	tok.maxData.set(name, blockSize)
	if again := tok.reduceMaxData(name, 8*blockSize, 8*blockSize); !again || tok.dataLimit(name) != blockSize {
		t.Errorf("the call is made again: %t, under a limit of %d bytes", again, tok.dataLimit(name))
	}
}
