package keyring

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"claviger"
	"claviger/provider"
)

// TestSourceWaitsByUser: while a source is slow, requests of one user for versions that no KMS has do not use up the
// places for requests that wait for sources.
func TestSourceWaitsByUser(t *testing.T) {
	const places = 8
	l, far := withSource(t, func(c *Config) { c.SourceWaiting, c.SourceTimeout = places, 20*time.Second }, "k")
	es, deks := newEDEKs(t, far.blocks, "k@0", 1)
	release := make(chan struct{})
	far.setFail(func(ctx context.Context) error {
		select {
		case <-release:
		case <-ctx.Done():
		}
		return nil
	})
	var wg sync.WaitGroup
	var mu sync.Mutex
	refused := 0
	as := func(user string) context.Context { return provider.WithCaller(t.Context(), user) }
	for i := range 4 * places {
		wg.Go(func() {
			e := es[0]
			name := fmt.Sprint("unknown", i)
			e.Version = claviger.VersionName(name, "0")
			_, err := l.Decrypt(as("mallory"), caller("mallory"), name, true, e)
			if claviger.Is(err, claviger.Unavailable) && strings.Contains(claviger.AnswerOf(err),
				"your requests wait") {
				mu.Lock()
				refused++
				mu.Unlock()
			}
		})
	}
	deadline := time.Now().Add(30 * time.Second)
	for {
		mu.Lock()
		enough := refused == 4*places-places/2
		mu.Unlock()
		if enough || time.Now().After(deadline) {
			break
		}
		time.Sleep(time.Millisecond)
	}
	if now, ofOne, most := l.SourceWaiting(); now != places/2 || ofOne != now || most != places {
		t.Errorf("%d of %d wait, %d of one user", now, most, ofOne)
	}
	if err := l.CheckSourceWaiting(); err != nil {
		t.Errorf("with room for others: %v", err)
	}
	for range 2 { // a second user may have a quarter of the places
		wg.Go(func() {
			dek, err := l.Decrypt(as("alice"), caller("alice"), "k", true, es[0])
			if err != nil || !dek.Equal(deks[0]) {
				t.Errorf("alice is not served: %v", err)
			}
		})
	}
	for now, _, _ := l.SourceWaiting(); now < places/2+2 && time.Now().Before(deadline); now, _, _ = l.SourceWaiting() {
		time.Sleep(time.Millisecond)
	}
	// If all places are in use, CheckSourceWaiting returns an error.
	for i := range places {
		l.sources.waits.places.Try(fmt.Sprint("user", i), 1)
	}
	e := es[0]
	e.Version = "other@0"
	if _, err := l.Decrypt(as("carol"), caller("carol"), "other", true, e); !claviger.Is(err, claviger.Unavailable) {
		t.Errorf("beyond all: %v", err)
	}
	if err := l.CheckSourceWaiting(); err == nil || l.SourceWaitsRefused() != 4*places-places/2 {
		t.Errorf("beyond all: %v, %d refused for their share", err, l.SourceWaitsRefused())
	}
	close(release)
	wg.Wait()
}

// recordedSlot is a Slot that records what is done with it.
type recordedSlot struct {
	did []string
	err error // of Acquire
}

func (s *recordedSlot) Release()                      { s.did = append(s.did, "release") }
func (s *recordedSlot) Acquire(context.Context) error { s.did = append(s.did, "acquire"); return s.err }

// TestSlotIsGivenUpForASource: a request gives its slot up before the call to the
// source, and takes it again only after a call that succeeds. Its place among the
// waiting requests is free in each case.
func TestSlotIsGivenUpForASource(t *testing.T) {
	l, _ := withSource(t, nil, "k")
	errSlot := errors.New("no slot")
	for _, c := range []struct {
		name               string
		source, slot, want error
		did                []string
	}{
		{"all well", nil, nil, nil, []string{"release", "source", "acquire"}},
		{"the source fails", errInjected, nil, errInjected, []string{"release", "source"}},
		{"no slot again", nil, errSlot, errSlot, []string{"release", "source", "acquire"}},
	} {
		slot := &recordedSlot{err: c.slot}
		err := l.waitForSource(WithSlot(t.Context(), slot), "test", "k", func() error {
			slot.did = append(slot.did, "source")
			if now, _, _ := l.SourceWaiting(); now != 1 {
				t.Errorf("%s: %d wait", c.name, now)
			}
			return c.source
		})
		if !errors.Is(err, c.want) || !slices.Equal(slot.did, c.did) {
			t.Errorf("%s: %v, %q", c.name, err, slot.did)
		}
		if now, _, _ := l.SourceWaiting(); now != 0 {
			t.Errorf("%s: %d wait afterwards", c.name, now)
		}
	}
}

// TestRefusalIsForgottenAfterAMinute: a refusal long ago is not an error any more.
func TestRefusalIsForgottenAfterAMinute(t *testing.T) {
	l, _ := withSource(t, nil, "k")
	for _, c := range []struct {
		ago  time.Duration
		want bool
	}{{waitsFull / 2, true}, {waitsFull, false}} {
		l.sources.waits.full = time.Now().Add(-c.ago)
		if err := l.CheckSourceWaiting(); (err != nil) != c.want {
			t.Errorf("%v ago: %v", c.ago, err)
		}
	}
}
