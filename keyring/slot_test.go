package keyring

import (
	"context"
	"fmt"
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
	es, deks := made(t, far.blocks, "k@0", 1)
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
