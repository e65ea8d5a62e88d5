package keyring

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"claviger"
)

// TestDeadSource: a source accepts connections and does not answer. Requests that need it wait for at most its timeout,
// and other requests do not wait.
func TestDeadSource(t *testing.T) {
	const timeout = 300 * time.Millisecond
	l, far := withSource(t, func(c *Config) {
		c.SourceTimeout, c.SourcePause, c.SourceFailures = timeout, time.Hour, 3
	}, "k")
	foreign, _ := newEDEKs(t, far.blocks, "k@0", 1)
	own, deks := l.edeks(t, "k", 64)
	if _, err := l.Decrypt(t.Context(), caller("u"), "k", true, foreign[0]); err != nil {
		t.Fatal(err) // and the key's metadata is cached: without it, all requests would share one reading
	}
	far.calls()
	far.setFail(blackhole(t))

	var wg sync.WaitGroup
	hung := make(chan error, 8)
	for range cap(hung) {
		wg.Go(func() {
			begun := time.Now()
			_, err := l.Decrypt(t.Context(), caller("u"), "k", true, foreign[0])
			if took := time.Since(begun); took > 30*timeout { // and not as long as it hangs
				t.Errorf("a request waited for the dead source for %v", took)
			}
			hung <- err
		})
	}
	for len(far.calls()) == 0 { // until one hangs
		time.Sleep(time.Millisecond)
	}
	// Meanwhile 64 requests at a time run, none of which may wait for the source. A request that waited would not end
	// before the deadline.
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	var decrypts sync.WaitGroup
	for i, e := range own {
		decrypts.Go(func() {
			dek, err := l.Decrypt(ctx, caller("u"), "k", true, e)
			if err != nil || !dek.Equal(deks[i]) {
				t.Errorf("an EDEK of the primary: %v", err)
			}
			if _, err := l.Generate(ctx, caller("u"), "k", 2); err != nil {
				t.Error(err)
			}
		})
	}
	decrypts.Wait()
	if len(hung) == cap(hung) {
		t.Log("the machine was too busy to show whether requests for own EDEKs waited")
	}
	if _, err := l.ReencryptBatch(ctx, caller("nn"), "k", own); err != nil {
		t.Error(err)
	}
	wg.Wait()
	close(hung)
	for err := range hung {
		wantKind(t, err, claviger.SourceUnreachable)
	}
	// From now on the breaker is open.
	far.calls()
	begun := time.Now()
	for range 20 {
		_, err := l.Decrypt(t.Context(), caller("u"), "k", true, foreign[0])
		wantKind(t, err, claviger.SourceUnreachable)
		if s := text(t, err); !strings.Contains(s, "not called") || !strings.Contains(s, "no answer within") {
			t.Fatalf("%q", s)
		}
	}
	if took := time.Since(begun); took > 20*timeout/2 {
		t.Errorf("20 requests took %v: they waited for the dead source", took)
	}
	if calls := far.calls(); len(calls) != 0 {
		t.Errorf("the source got %d calls", len(calls))
	}
	s := l.Sources()
	if len(s) != 1 || s[0].State != "open" || s[0].URI != farURI || !s[0].Reencryption || s[0].LastFailure == nil {
		t.Errorf("%+v", s)
	}
	if err := l.Health(t.Context()); err != nil {
		t.Errorf("a dead source makes this service unhealthy: %v", err)
	}
}

// TestSourceComesBack: after the pause one request tries the source, and if the source answers, the breaker closes.
func TestSourceComesBack(t *testing.T) {
	l, far := withSource(t, func(c *Config) { c.SourcePause, c.SourceFailures = 20*time.Millisecond, 2 }, "k")
	es, deks := newEDEKs(t, far.blocks, "k@0", 1)
	far.setFail(failing(claviger.Unavailable, "connection refused"))
	for range 2 {
		_, err := l.Decrypt(t.Context(), caller("u"), "k", true, es[0])
		wantKind(t, err, claviger.SourceUnreachable)
	}
	if s := l.Sources()[0].State; s != "open" && s != "half-open" { // the latter on a slow machine
		t.Errorf("state %s", s)
	}
	far.setFail(nil)
	deadline := time.Now().Add(30 * time.Second)
	for {
		dek, err := l.Decrypt(t.Context(), caller("u"), "k", true, es[0])
		if err == nil {
			if !dek.Equal(deks[0]) {
				t.Fatal("another DEK")
			}
			break
		}
		if time.Now().After(deadline) {
			t.Fatal(err)
		}
		time.Sleep(5 * time.Millisecond)
	}
	if s := l.Sources()[0].State; s != "closed" {
		t.Errorf("state %s", s)
	}
}

// TestWhatTripsTheBreaker: refusals, missing versions, bad EDEKs and cancelled requests do not open the breaker.
func TestWhatTripsTheBreaker(t *testing.T) {
	for name, fail := range map[string]func(context.Context) error{
		"refusal": failing(claviger.Denied, "no"),
		"missing": failing(claviger.VersionNotFound, "no"),
		"bad IV":  failing(claviger.BadIV, "no"),
		"broken":  failing(claviger.Internal, "no"),
		"busy":    userLimited,
	} {
		t.Run(name, func(t *testing.T) {
			l, far := withSource(t, func(c *Config) { c.SourceFailures = 1 }, "k")
			es, _ := newEDEKs(t, far.blocks, "k@0", 1)
			far.setFail(fail)
			for i := range 5 {
				e := es[0]
				e.Version = fmt.Sprintf("k@%d", i)
				if _, err := l.Decrypt(t.Context(), caller("u"), "k", true, e); err == nil {
					t.Fatal("no error")
				}
			}
			if s := l.Sources()[0]; s.State != "closed" || s.LastFailure != nil {
				t.Errorf("%+v", s)
			}
		})
	}
	t.Run("caller gone", func(t *testing.T) {
		l, far := withSource(t, func(c *Config) { c.SourceFailures = 1 }, "k")
		es, _ := newEDEKs(t, far.blocks, "k@0", 1)
		ctx, cancel := context.WithCancel(t.Context())
		far.setFail(func(ctx context.Context) error {
			cancel()
			<-ctx.Done()
			return claviger.E("far", claviger.Unavailable, "", ctx.Err())
		})
		_, err := l.Decrypt(ctx, caller("u"), "k", true, es[0])
		wantKind(t, err, claviger.Unavailable)
		if !errors.Is(err, errCancelled) {
			t.Error(err)
		}
		if s := l.Sources()[0]; s.State != "closed" || s.LastFailure != nil {
			t.Errorf("%+v", s)
		}
	})
}
