package authn

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"regexp"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"claviger"
	"claviger/internal/logtest"
	"claviger/metastore"
)

// callsSigners is a metastore.Signers that counts its calls.
type callsSigners struct {
	*sharedSecrets
	*storeCalls
}

func (s callsSigners) SignerSecrets(ctx context.Context) (metastore.SignerSecrets, bool, error) {
	if err := s.called("read"); err != nil {
		return metastore.SignerSecrets{}, false, err
	}
	return s.sharedSecrets.SignerSecrets(ctx)
}

func (s callsSigners) SwapSignerSecrets(ctx context.Context, n metastore.SignerSecrets) (bool, error) {
	if err := s.called("write"); err != nil {
		return false, err
	}
	return s.sharedSecrets.SwapSignerSecrets(ctx, n)
}

// TestEachRollingCallFails: if one call to the store fails, the start or the synchronization fails with that error.
func TestEachRollingCallFails(t *testing.T) {
	type node struct {
		*RollingSecrets
		store callsSigners
		conf  RollingConfig
		now   time.Time
	}
	for name, o := range map[string]struct {
		calls string
		run   func(n *node) error
	}{
		"start": {"read write read", func(n *node) error {
			n.store.state = metastore.SignerSecrets{}
			_, err := NewRollingSecrets(t.Context(), n.conf)
			return err
		}},
		"sync": {"read", func(n *node) error { return n.syncWithStore(t.Context()) }},
		"rollover": {"write read", func(n *node) error {
			n.now = n.now.Add(rollingPeriod)
			return n.syncWithStore(t.Context())
		}},
		"removed secrets": {"read write read", func(n *node) error {
			n.store.state = metastore.SignerSecrets{}
			return n.syncWithStore(t.Context())
		}},
	} {
		t.Run(name, func(t *testing.T) {
			calls := strings.Fields(o.calls)
			for fail := range len(calls) + 1 {
				n := &node{store: callsSigners{&sharedSecrets{}, &storeCalls{}}, now: time.UnixMilli(1795442630957)}
				n.conf = RollingConfig{Store: n.store, Period: rollingPeriod, Now: func() time.Time { return n.now }}
				var err error
				if n.RollingSecrets, err = NewRollingSecrets(t.Context(), n.conf); err != nil {
					t.Fatal(err)
				}
				n.store.list, n.store.fail = nil, fail
				err = o.run(n)
				switch {
				case fail == 0 && (err != nil || strings.Join(n.store.list, " ") != o.calls):
					t.Fatalf("without a failure: %v; calls %q", err, n.store.list)
				case fail > 0 && !errors.Is(err, errStore):
					t.Errorf("%s, call %d, fails: %v", calls[fail-1], fail, err)
				}
			}
		})
	}
}

// forgetful is a metastore.Signers that accepts secrets, and does not keep them.
type forgetful struct{ *sharedSecrets }

func (forgetful) SwapSignerSecrets(context.Context, metastore.SignerSecrets) (bool, error) {
	return true, nil
}

// TestRollingForgetfulStore: secrets that the store does not return are an error, and are not used as if other nodes
// had them.
func TestRollingForgetfulStore(t *testing.T) {
	store := forgetful{&sharedSecrets{}}
	conf := RollingConfig{Store: store, Period: rollingPeriod}
	if _, err := NewRollingSecrets(t.Context(), conf); claviger.KindOf(err) != claviger.Unavailable {
		t.Errorf("start: %v", err)
	}
	store.state = metastore.SignerSecrets{Current: randomSecret(), Next: randomSecret(), Version: 1,
		Rollover: time.Now().Add(rollingPeriod)}
	r, err := NewRollingSecrets(t.Context(), conf)
	if err != nil {
		t.Fatal(err)
	}
	store.state = metastore.SignerSecrets{}
	if err := r.syncWithStore(t.Context()); err == nil || !strings.Contains(err.Error(), "had no effect") {
		t.Errorf("after the secrets were removed: %v", err)
	}
}

// TestRollingConfig: the period must be positive; without Poll, the store is read each minute.
func TestRollingConfig(t *testing.T) {
	for _, period := range []time.Duration{0, -1} {
		_, err := NewRollingSecrets(t.Context(), RollingConfig{Store: &sharedSecrets{}, Period: period})
		if err == nil || claviger.KindOf(err) != claviger.Invalid {
			t.Errorf("period %v: %v", period, err)
		}
	}
	for poll, want := range map[time.Duration]time.Duration{0: time.Minute, time.Second: time.Second} {
		r, err := NewRollingSecrets(t.Context(), RollingConfig{Store: &sharedSecrets{}, Period: 1, Poll: poll})
		if err != nil || r.conf.Poll != want {
			t.Errorf("poll %v: %v, %v", poll, r.conf.Poll, err)
		}
	}
}

// TestRollingLogs: only a node with secrets that no other node has is logged as a warning.
func TestRollingLogs(t *testing.T) {
	n := &rollingNodes{t: t, now: time.UnixMilli(1795442630957)}
	a := n.start()
	var log logtest.Buffer
	a.conf.Log = slog.New(slog.NewTextHandler(&log, nil))
	n.now = n.now.Add(rollingPeriod)
	n.sync(a)
	other := n.store.state // another node has written its next secret, so the version is new
	other.Version++
	n.store.state = other
	n.sync(a)
	if strings.Contains(log.String(), "another node had other secrets") {
		t.Errorf("nodes with the same secrets: %s", log.String())
	}
	n.now = n.now.Add(rollingPeriod)
	other.Current, other.Next, other.Previous = randomSecret(), randomSecret(), other.Current
	other.Rollover, other.Version = n.now.Add(rollingPeriod), other.Version+1
	n.store.state = other
	n.sync(a)
	if !strings.Contains(log.String(), "another node had other secrets") || !bytes.Equal(current(a), other.Current) {
		t.Errorf("nodes with different secrets: %s", log.String())
	}
}

// TestRollingRunRetries: Run tries again soon after a failure, waits longer after each further failure, and begins
// with a short wait again after a success. It logs each failure, and nothing else.
func TestRollingRunRetries(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var log logtest.Buffer
		store := &sharedSecrets{}
		r, err := NewRollingSecrets(t.Context(), RollingConfig{Store: store, Period: 1000 * time.Hour,
			Poll: time.Hour, Log: slog.New(slog.NewTextHandler(&log, nil))})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan struct{})
		go func() { r.Run(ctx); close(ended) }()
		time.Sleep(90 * time.Minute)
		if text := log.String(); text != "" {
			t.Errorf("without a failure: %s", text)
		}
		again := regexp.MustCompile(`again=(\S+)`)
		failFor := func(pause time.Duration) (first, last time.Duration) {
			t.Helper()
			earlier := len(log.String())
			store.setFault(errStore)
			time.Sleep(pause)
			waits := again.FindAllStringSubmatch(log.String()[earlier:], -1)
			store.setFault(nil)
			time.Sleep(2 * time.Hour)
			if len(waits) < 5 {
				t.Fatalf("%d failures: %s", len(waits), log.String()[earlier:])
			}
			first, _ = time.ParseDuration(waits[0][1])
			last, _ = time.ParseDuration(waits[len(waits)-1][1])
			return first, last
		}
		for i := range 2 {
			if first, last := failFor(2 * time.Hour); first > time.Second || last < time.Minute {
				t.Errorf("failure %d: the first wait is %v, and the last %v", i, first, last)
			}
		}
		text := log.String()
		store.setFault(errStore)
		cancel()
		<-ended
		if got := log.String(); got != text {
			t.Errorf("after the end: %s", got[len(text):])
		}
	})
}

// TestRollingRunEnded: Run does not log the failure that the end of its context causes.
func TestRollingRunEnded(t *testing.T) {
	n := &rollingNodes{t: t, now: time.UnixMilli(1795442630957)}
	r := n.start()
	var log logtest.Buffer
	r.conf.Log = slog.New(slog.NewTextHandler(&log, nil))
	n.store.fault = errStore
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	r.Run(ctx)
	if text := log.String(); text != "" {
		t.Error(text)
	}
}
