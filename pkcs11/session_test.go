package pkcs11

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"time"

	p11 "github.com/miekg/pkcs11"

	"claviger"
	"claviger/internal/softhsm/softhsmtest"
)

// TestDamageOf: an error has the worst damage of all results in it.
func TestDamageOf(t *testing.T) {
	code := func(c uint) error { return p11.Error(c) }
	for _, c := range []struct {
		err  error
		want damage
	}{
		{nil, none}, {errors.New("no result"), none}, {code(p11.CKR_DATA_INVALID), none},
		{code(p11.CKR_HOST_MEMORY), suspect}, {errLength{15, 16}, suspect}, {code(p11.CKR_OPERATION_ACTIVE), broken},
		{code(p11.CKR_USER_NOT_LOGGED_IN), gone}, {code(p11.CKR_DEVICE_REMOVED), lost},
		{errConnect{code(p11.CKR_DATA_INVALID)}, lost},
		{fmt.Errorf("a text: %w", code(p11.CKR_OPERATION_ACTIVE)), broken},
		{errors.Join(code(p11.CKR_DATA_INVALID), code(p11.CKR_USER_NOT_LOGGED_IN), code(p11.CKR_HOST_MEMORY)), gone},
		{fmt.Errorf("%w and %w", code(p11.CKR_DEVICE_ERROR), errors.New("no result")), lost},
		{claviger.E("test", claviger.Internal, "", code(p11.CKR_SESSION_CLOSED)), gone},
		{refusal{errors.New("no PIN"), false}, none},
	} {
		if got := damageOf(c.err); got != c.want {
			t.Errorf("%v: %d, want %d", c.err, got, c.want)
		}
	}
}

// TestWithKind: a result of the library is of kind Unavailable, unless it is about a request that uses no key. An
// error that is no result, and has no kind, is of kind Internal.
func TestWithKind(t *testing.T) {
	if err := withKind("op", subject{}, nil); err != nil {
		t.Error(err)
	}
	search, key := subject{name: "pkcs11.Find"}, keySubject("k")
	for _, c := range []struct {
		s    subject
		err  error
		want claviger.Kind
	}{
		{search, p11.Error(p11.CKR_DATA_INVALID), claviger.Internal},
		{key, p11.Error(p11.CKR_DATA_INVALID), claviger.Unavailable},
		{search, p11.Error(p11.CKR_HOST_MEMORY), claviger.Unavailable},
		{search, p11.Error(p11.CKR_OPERATION_ACTIVE), claviger.Unavailable},
		{key, errLength{15, 16}, claviger.Unavailable},
		{key, errors.New("no result"), claviger.Internal},
		{key, claviger.E("other", claviger.KeyNotFound, "k", nil), claviger.KeyNotFound},
	} {
		err := withKind("op", c.s, c.err)
		if !claviger.Is(err, c.want) || !errors.Is(err, c.err) {
			t.Errorf("%v: %v", c.err, err)
		}
		if refused := c.s.key && c.err == p11.Error(p11.CKR_DATA_INVALID); errors.Is(err, ErrRefused) != refused {
			t.Errorf("%v: the token refuses the key: %t", c.err, !refused)
		}
	}
}

// TestResetPauses: a lost token is not reset again before a pause, which grows up to maxBackoff. After a calm period it
// begins again with the first.
func TestResetPauses(t *testing.T) {
	m, b, meter := resettable(nil, nil)
	tok := &Token{module: m, b: b, log: slog.New(slog.DiscardHandler)}
	tok.cfg.Module = "/m.so"
	pauses := []time.Duration{}
	for range 8 {
		tok.retryAt = time.Now().Add(-time.Millisecond)
		if err := tok.reset(t.Context(), m.current(), nil); err != nil {
			t.Fatal(err)
		}
		pauses = append(pauses, tok.backoff)
		if until := time.Until(tok.retryAt); until > tok.backoff || until < tok.backoff-10*time.Second {
			t.Errorf("the next reset is in %v, after a pause of %v", until, tok.backoff)
		}
		tok.retryAt = time.Now().Add(time.Minute)
		if err := tok.reset(t.Context(), m.current(), nil); err == nil ||
			!strings.Contains(err.Error(), "the next attempt to get it back is in 1m0s") &&
				!strings.Contains(err.Error(), "the next attempt to get it back is in 59.") {
			t.Errorf("during the pause: %v", err)
		}
		if err := tok.reset(t.Context(), m.current()-1, nil); err != nil {
			t.Errorf("another reset was faster: %v", err)
		}
	}
	want := "[250ms 500ms 1s 1s 1s 1s 1s 1s]"
	if got := fmt.Sprint(pauses); got != want || meter.Count("Initialize") != 8 {
		t.Errorf("the pauses are %s, want %s; %d resets", got, want, meter.Count("Initialize"))
	}
	tok.retryAt = time.Now().Add(-calmPeriod - time.Second)
	if err := tok.reset(t.Context(), m.current(), nil); err != nil || tok.backoff != firstBackoff {
		t.Errorf("after a calm period: %v, a pause of %v", err, tok.backoff)
	}
	tok.retryAt = time.Time{}
	tok.module, tok.b, _ = resettable(nil, p11.Error(p11.CKR_DEVICE_ERROR))
	if err := tok.reset(t.Context(), 1, nil); !errors.Is(err, p11.Error(p11.CKR_DEVICE_ERROR)) ||
		!strings.Contains(err.Error(), "initialising /m.so again") {
		t.Errorf("C_Initialize fails: %v", err)
	}
	flight := newFlight()
	tok.resetting = flight
	flight.finish(errHung)
	if err := tok.reset(t.Context(), 1, nil); !errors.Is(err, errHung) {
		t.Errorf("beside another reset: %v", err)
	}
}

// TestAllSessionsInUse: a call waits for a session until its time ends, or until the token is closed.
func TestAllSessionsInUse(t *testing.T) {
	c := config(softhsmtest.New(t))
	c.MaxSessions = 1
	tok, m := openAs(t, c)
	release := m.Hang("GenerateRandom")
	defer release()
	hangs := make(chan error, 1)
	go func() { hangs <- tok.Ping(t.Context()) }()
	eventually(t, func() error {
		if m.Count("GenerateRandom") == 0 {
			return errors.New("not called")
		}
		return nil
	})
	ctx, cancel := context.WithTimeout(t.Context(), 500*time.Millisecond)
	defer cancel()
	if err := tok.Ping(ctx); !claviger.Is(err, claviger.Unavailable) || !errors.Is(err, context.DeadlineExceeded) ||
		!strings.Contains(err.Error(), "all 1 sessions of the HSM for operations without a key were in use") {
		t.Errorf("no session: %v", err)
	}
	waits := make(chan error, 1)
	go func() { waits <- tok.Ping(t.Context()) }()
	closed := make(chan error, 1)
	go func() { closed <- tok.Close() }()
	if err := <-waits; !claviger.Is(err, claviger.Closed) {
		t.Errorf("a call that waits when the token is closed: %v", err)
	}
	release()
	if err := <-hangs; err != nil {
		t.Errorf("the running call: %v", err)
	}
	if err := <-closed; err != nil {
		t.Error(err)
	}
}

// TestNoSessionAtAll: a call that gets no session, and cannot wait for one, says so.
func TestNoSessionAtAll(t *testing.T) {
	tok := &Token{slots: make(chan struct{}, 1), log: slog.New(slog.DiscardHandler)}
	if err := tok.awaitSession(t.Context()); !claviger.Is(err, claviger.Unavailable) || !errors.Is(err, errNoSession) {
		t.Errorf("the only slot: %v", err)
	}
	tok = &Token{slots: make(chan struct{}, 2), log: slog.New(slog.DiscardHandler)}
	tok.slots <- struct{}{}
	tok.slots <- struct{}{}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := tok.awaitSession(ctx); !claviger.Is(err, claviger.Unavailable) || len(tok.parked) != 0 {
		t.Errorf("the caller leaves: %v, %d slots are parked", err, len(tok.parked))
	}
}

// TestEncryptBlocksArguments: blocks that are not whole are refused. For no blocks, and after the end of the context,
// the token is not called.
func TestEncryptBlocksArguments(t *testing.T) {
	tok, m := open(t)
	id, label := generate(t, tok, 1, 256)
	m.Reset()
	if err := tok.EncryptBlocks(t.Context(), id, label, nil, make([]byte, 17)); !claviger.Is(err, claviger.Internal) ||
		!strings.Contains(err.Error(), "17 bytes are not whole blocks") {
		t.Errorf("17 bytes: %v", err)
	}
	if err := tok.EncryptBlocks(t.Context(), id, label, nil, nil); err != nil {
		t.Errorf("no blocks: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := tok.EncryptBlocks(ctx, id, label, nil, make([]byte, 16)); !claviger.Is(err, claviger.Unavailable) ||
		!errors.Is(err, context.Canceled) || strings.Contains(err.Error(), "did not answer") {
		t.Errorf("an ended context: %v", err)
	}
	if len(m.Counts()) != 0 {
		t.Errorf("the token was called: %v", m.Counts())
	}
}

// shortLibrary is a library that returns too few bytes. It keeps the last result.
type shortLibrary struct {
	Boundary
	last []byte
}

func (s *shortLibrary) Encrypt(h p11.SessionHandle, m *p11.Mechanism, key p11.ObjectHandle,
	data []byte) ([]byte, error) {
	out, err := s.Boundary.Encrypt(h, m, key, data)
	s.last = out[:max(0, len(out)-1)]
	return s.last, err
}

// TestShortResult: a result of another length is no result, by each mechanism. It is wiped.
func TestShortResult(t *testing.T) {
	tok, _ := open(t)
	id, label := generate(t, tok, 1, 256)
	short := &shortLibrary{Boundary: tok.b}
	tok.b = short
	for _, m := range profiles[SoftHSM].mechanisms {
		tok.mechanisms = []uint{m}
		tok.faults = nil
		err := tok.EncryptBlocks(t.Context(), id, label, nil, make([]byte, 16))
		if !claviger.Is(err, claviger.Unavailable) ||
			!strings.Contains(err.Error(), "the HSM made 15 bytes of 16") {
			t.Errorf("%s: %v", mechanismName(m), err)
		}
		if len(short.last) != 15 || !zero(short.last) {
			t.Errorf("%s: the result of %d bytes was not wiped", mechanismName(m), len(short.last))
		}
	}
}
