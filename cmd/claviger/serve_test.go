package main

import (
	"context"
	"log/slog"
	"testing"

	"claviger/kms"
	"claviger/kms/kmstest"
)

// serve runs a KMS with a configuration folder until the test ends, and returns its base URL.
func serve(t *testing.T, dir string) string {
	t.Helper()
	return kmstest.Serve(t, kmsOf(dir, slog.New(slog.DiscardHandler)))
}

// startKMS starts a KMS with a configuration folder, and returns its base URL. end stops the KMS and returns its error.
func startKMS(t *testing.T, dir string) (url string, end func() error) {
	t.Helper()
	return startLogged(t, dir, slog.New(slog.DiscardHandler))
}

// startLogged does the same as startKMS, with a log.
func startLogged(t *testing.T, dir string, log *slog.Logger) (url string, end func() error) {
	t.Helper()
	return kmstest.Start(t, kmsOf(dir, log))
}

// kmsOf returns a function that serves a KMS with a configuration folder.
func kmsOf(dir string, log *slog.Logger) func(ctx context.Context, ready string) error {
	return func(ctx context.Context, ready string) error {
		return kms.Serve(ctx, kms.Options{Dir: dir, ReadyFile: ready, Log: log, Level: new(slog.LevelVar)})
	}
}
