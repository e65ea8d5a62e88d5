package pkcs11

import (
	"context"
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"
	"time"

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
