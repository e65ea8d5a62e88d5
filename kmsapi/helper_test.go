package kmsapi_test

import (
	"context"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"testing"
	"time"

	"claviger/audit"
	"claviger/authn"
	"claviger/authz"
	"claviger/keyring"
	"claviger/kmsapi"
	"claviger/provider"
	"claviger/trace"
)

// trail keeps audit events.
type trail struct {
	off    bool // keep none
	mu     sync.Mutex
	events []audit.Event
}

func (t *trail) Log(_ context.Context, e audit.Event) {
	if t.off {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.events = append(t.events, e)
}

func (t *trail) Err() error   { return nil }
func (t *trail) Close() error { return nil }

func (t *trail) all() []audit.Event {
	t.mu.Lock()
	defer t.mu.Unlock()
	return append([]audit.Event(nil), t.events...)
}

// forget drops what was logged.
func (t *trail) forget() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.events = nil
}

// stack holds the parts of a test's server. A zero field gets a value that allows everything.
type stack struct {
	Primary          provider.Provider
	Sources          []keyring.Source
	SourceTimeout    time.Duration
	Reencryption     bool
	Migrator         keyring.Migrator
	Auth             authn.Config
	Policy           *authz.Policy
	Rules            func() *authz.Policy // instead of Policy, if the rules change
	KeyAuthorization bool
	Trail            *trail
	Limits           kmsapi.Limits
	Admission        kmsapi.Admission
	Limiters         *kmsapi.Limiters
	Operations       kmsapi.Operations
	NotReady         func() string
	Observe          func(op string, status, edeks int, took time.Duration)
	Waited           func(class string, took time.Duration, granted bool)
	Refused          func(reason string)
	Tracer           *trace.Tracer
	Server           func(*http.Server)
	Log              slog.Handler // nil: the log is discarded
}

// start serves until the test ends, and returns the address.
func start(t testing.TB, s stack) string {
	t.Helper()
	if s.Policy == nil {
		s.Policy, _ = authz.Parse(openRules)
	}
	if s.Rules == nil {
		s.Rules = func() *authz.Policy { return s.Policy }
	}
	if s.Log == nil {
		s.Log = slog.DiscardHandler
	}
	if s.Trail == nil {
		s.Trail = &trail{}
	}
	if s.Limits == (kmsapi.Limits{}) {
		s.Limits = kmsapi.Limits{MaxKeys: 1000, MaxBatch: 1000, MaxBody: 1 << 20}
	}
	if s.Auth.Secrets == nil {
		s.Auth.Secrets = fixedSecret{}
	}
	if s.Auth.Validity == 0 {
		s.Auth.Validity = time.Hour
	}
	ring, err := keyring.New(keyring.Config{
		Primary: s.Primary, Sources: s.Sources, Policy: s.Rules,
		KeyAuthorization: s.KeyAuthorization, Audit: s.Trail, Migrator: s.Migrator,
		SourceTimeout: s.SourceTimeout, Reencryption: s.Reencryption,
		CacheEnable: true, CacheTimeout: time.Minute, CurrentCacheTimeout: time.Minute,
		QueueSize: 10, QueueLowWatermark: 0.3, QueueExpiry: time.Hour, QueueFillers: 1,
	})
	if err != nil {
		t.Fatal(err)
	}
	auth, err := authn.New(s.Auth)
	if err != nil {
		t.Fatal(err)
	}
	api, err := kmsapi.New(kmsapi.Config{
		Ring: ring, Auth: auth, Audit: s.Trail, Log: slog.New(s.Log), KeyAuthorization: s.KeyAuthorization,
		Limits: s.Limits, Admission: s.Admission, Limiters: s.Limiters, Operations: s.Operations, NotReady: s.NotReady,
		Observe: s.Observe, Waited: s.Waited, Refused: s.Refused, Tracer: s.Tracer,
	})
	if err != nil {
		t.Fatal(err)
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	server := &http.Server{Handler: api, ReadHeaderTimeout: 10 * time.Second, MaxHeaderBytes: 1 << 16,
		DisableGeneralOptionsHandler: true}
	if s.Server != nil {
		s.Server(server)
	}
	done := make(chan error, 1)
	go func() { done <- server.Serve(listener) }()
	t.Cleanup(func() {
		_ = server.Close()
		<-done
		if err := ring.Close(); err != nil {
			t.Error(err)
		}
	})
	return listener.Addr().String()
}
