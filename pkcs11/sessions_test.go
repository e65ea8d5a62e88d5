package pkcs11

import (
	"context"
	"log/slog"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	p11 "github.com/miekg/pkcs11"

	"claviger"
	"claviger/internal/logtest"
)

// fullToken is a token all of whose slots are taken. It has no library.
func fullToken(slots int) (*Token, *logtest.Buffer) {
	log := new(logtest.Buffer)
	tok := &Token{slots: make(chan struct{}, slots), end: make(chan struct{}),
		log: slog.New(slog.NewTextHandler(log, nil))}
	for range slots {
		tok.slots <- struct{}{}
	}
	return tok, log
}

// TestParkedSlot: after the HSM allowed no further session, fewer calls run at the same time, for learnedFor. The log
// says so once.
func TestParkedSlot(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tok, log := fullToken(4)
		for range 2 {
			got := make(chan error, 1)
			go func() { got <- tok.awaitSession(t.Context()) }()
			synctest.Wait()
			<-tok.slots // another call ends
			if err := <-got; err != nil {
				t.Fatal(err)
			}
			if n := strings.Count(log.String(), "the HSM allows fewer sessions than max-sessions"); n != 1 {
				t.Errorf("%d warnings: %s", n, log)
			}
		}
		if used, limit := tok.Sessions(); used != 2 || limit != 2 {
			t.Errorf("%d calls run, at most %d; want 2, 2", used, limit)
		}
		time.Sleep(learnedFor) // of the test's clock
		synctest.Wait()
		if used, limit := tok.Sessions(); used != 2 || limit != 4 {
			t.Errorf("later: %d calls run, at most %d; want 2, 4", used, limit)
		}
	})
}

// TestParkedSlotIsTaken: a caller whose parked slot was given to another call takes a slot again before it returns,
// although its time has ended. So its own release frees no slot of another call.
func TestParkedSlotIsTaken(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tok, _ := fullToken(2)
		other, got := make(chan error, 1), make(chan error, 1)
		go func() { other <- tok.takeSlot(t.Context(), "test") }()
		synctest.Wait()
		ctx, cancel := context.WithCancel(t.Context())
		go func() { got <- tok.awaitSession(ctx) }()
		synctest.Wait()
		tok.unparkAll()
		if err := <-other; err != nil {
			t.Error(err)
		}
		cancel()
		synctest.Wait()
		select {
		case err := <-got:
			t.Errorf("the caller returned without a slot: %v", err)
		default:
		}
		<-tok.slots // a call ends
		if err := <-got; !claviger.Is(err, claviger.Unavailable) {
			t.Error(err)
		}
		if used, limit := tok.Sessions(); used != 2 || limit != 2 {
			t.Errorf("%d slots are taken, at most %d; want 2, 2", used, limit)
		}
	})
}

// TestClosedWithoutSession: after Close, a call that got no session ends, and waits for none.
func TestClosedWithoutSession(t *testing.T) {
	tok, _ := fullToken(2)
	tok.closed = true
	if err := tok.awaitSession(t.Context()); !claviger.Is(err, claviger.Closed) || len(tok.parked) > 0 {
		t.Errorf("%v, %d slots are parked", err, len(tok.parked))
	}
}

// TestNoSlot: a call takes no slot after its time has ended or the token was closed, whether it began before or after
// that. A call without a key then has neither a slot nor a place among the calls without a key.
func TestNoSlot(t *testing.T) {
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	tok := &Token{slots: make(chan struct{}, 1)}
	if err := tok.takeSlot(ended, "test"); !claviger.Is(err, claviger.Unavailable) || len(tok.slots) > 0 {
		t.Errorf("a call after its time has ended: %v, %d slots taken", err, len(tok.slots))
	}
	for _, s := range []subject{{name: "test"}, keySubject("k")} {
		for _, kind := range []claviger.Kind{claviger.Unavailable, claviger.Closed} {
			synctest.Test(t, func(t *testing.T) {
				tok, _ := fullToken(1)
				tok.keyless = make(chan struct{}, 1)
				ctx, cancel := context.WithCancel(t.Context())
				defer cancel()
				got := make(chan error, 1)
				go func() {
					_, err := tok.takeSlotFor(ctx, "test", s)
					got <- err
				}()
				synctest.Wait()
				if kind == claviger.Closed {
					close(tok.end)
				} else {
					cancel()
				}
				if err := <-got; !claviger.Is(err, kind) || len(tok.keyless) > 0 {
					t.Errorf("%v: %v, %d places without a key are taken", s, err, len(tok.keyless))
				}
			})
		}
	}
}

// TestReleaseSession: a session that works is kept for the next call of its login. All others are closed. The session
// of the login is closed after a call only if the login was retired during that call.
func TestReleaseSession(t *testing.T) {
	const own = p11.SessionHandle(1) // the session of the login
	for _, c := range []struct {
		name                 string
		s                    p11.SessionHandle
		severity             damage
		lent, retired, ended bool // before the release
		idle, closed         []p11.SessionHandle
		retires              bool
	}{
		{"it works", 2, none, false, false, false, []p11.SessionHandle{2}, nil, false},
		{"it works while the session of the login is in use", 2, none, true, false, false, []p11.SessionHandle{2}, nil,
			false},
		{"its state is unknown", 2, suspect, false, false, false, nil, []p11.SessionHandle{2}, false},
		{"the login was retired", 2, none, false, true, false, nil, []p11.SessionHandle{2}, false},
		{"the token was closed", 2, none, false, false, true, nil, []p11.SessionHandle{2}, false},
		{"the session of the login works", own, none, true, false, false, nil, nil, false},
		{"the session of the login is in an unknown state", own, suspect, true, false, false, nil, nil, true},
		{"the session of a retired login", own, none, true, true, false, nil, []p11.SessionHandle{own}, false},
	} {
		r := &sessionRecorder{}
		l := &login{session: own, used: 1, lent: c.lent}
		tok := &Token{b: r, login: l, closed: c.ended}
		if c.retired {
			tok.login = nil
		}
		tok.releaseSession(l, c.s, c.severity)
		if !slices.Equal(l.idle, c.idle) || !slices.Equal(r.closed, c.closed) || l.used != 0 {
			t.Errorf("%s: idle %v, closed %v, %d in use; want idle %v, closed %v", c.name, l.idle, r.closed, l.used,
				c.idle, c.closed)
		}
		if retires := len(tok.retired) > 0; retires != c.retires || l.lent != (c.lent && c.s != own) {
			t.Errorf("%s: the login is retired: %t, its session is in use: %t", c.name, retires, l.lent)
		}
	}
}

// TestStaleSessions: an HSM closes all sessions that are not used, except the one of the login. The next call succeeds,
// without a new login, and without a test of the token.
func TestStaleSessions(t *testing.T) {
	tok, m := open(t)
	generate(t, tok, 1, 256)
	if err := encryptWith(t, tok, 1); err != nil {
		t.Fatal(err)
	}
	l, err := tok.loggedIn(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for range 4 {
		s, err := tok.openSession(l.found)
		if err != nil {
			t.Fatal(err)
		}
		l.idle = append(l.idle, s)
	}
	for _, s := range l.idle {
		if err := tok.b.CloseSession(s); err != nil {
			t.Fatal(err)
		}
	}
	m.Reset()
	if err := encryptWith(t, tok, 1); err != nil {
		t.Error(err)
	}
	if m.Count("Login") != 0 || m.Count("GenerateKey") != 0 || m.Count("OpenSession") != 1 {
		t.Errorf("calls: %v", m.Counts())
	}
	if again, err := tok.loggedIn(t.Context()); err != nil || again != l || len(l.idle) != 1 {
		t.Errorf("%v, %d idle sessions", err, len(l.idle))
	}
}

// TestStaleSessionsOfAnEndedLogin: idle sessions that still work are kept for their login. If that login has ended
// meanwhile, they are closed.
func TestStaleSessionsOfAnEndedLogin(t *testing.T) {
	tok, m := open(t)
	if err := tok.Ping(t.Context()); err != nil {
		t.Fatal(err)
	}
	l := tok.login
	idle := slices.Clone(l.idle)
	m.Reset()
	tok.dropStale(l)
	if len(idle) == 0 || !slices.Equal(l.idle, idle) || m.Count("CloseSession") != 0 {
		t.Errorf("idle sessions: %v, before: %v; the calls are %v", l.idle, idle, m.Counts())
	}
	tok.retire(l)
	tok.dropStale(l)
	if len(l.idle) != 0 || m.Count("CloseSession") != len(idle) {
		t.Errorf("%d idle sessions of the ended login, %d of %d are closed", len(l.idle), m.Count("CloseSession"),
			len(idle))
	}
}
