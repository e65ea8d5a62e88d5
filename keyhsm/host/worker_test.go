package host

import (
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"claviger/internal/hosttest"
	"claviger/internal/processtest"
	"claviger/keyhsm"
	"claviger/pkcs11/worker"
)

func TestMain(m *testing.M) {
	worker.Main(os.Args)
	os.Exit(m.Run())
}

// TestWorker: the HSM's library runs in a worker unless the settings say no. When the worker is killed, requests are
// served by the next one, without an error.
func TestWorker(t *testing.T) {
	ctx, dir := t.Context(), newFolder(t)
	client := trusted(t, dir)
	var log hosttest.Log
	url, stop := start(t, dir, &log)
	c := connect(t, dir, client, url)
	const uuid = "0f4d6f5e-6a0f-4b6e-8b3c-0c7f6e3b9a11"
	wrapped, err := c.Wrap(ctx, uuid, []byte("deposit"))
	if err != nil {
		t.Fatal(err)
	}
	for range 3 {
		workers := processtest.Children(t, worker.Command)
		if len(workers) != 1 {
			t.Fatalf("workers %v", workers)
		}
		if err := syscall.Kill(workers[0], syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		if content, err := c.Unwrap(ctx, uuid, wrapped); err != nil || string(content) != "deposit" {
			t.Errorf("after a kill: %q, %v", content, err)
		}
	}
	stop()
	for end := time.Now().Add(10 * time.Second); len(processtest.Children(t, worker.Command)) > 0; {
		if time.Now().After(end) {
			t.Fatal("the end of the server leaves a worker")
		}
	}
	path := filepath.Join(dir, keyhsm.SettingsFile)
	f, err := os.OpenFile(path, os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteString("keyhsm.worker = no\n"); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	url, stop = start(t, dir, new(hosttest.Log))
	defer stop()
	if content, err := connect(t, dir, client, url).Unwrap(ctx, uuid, wrapped); err != nil ||
		string(content) != "deposit" {
		t.Errorf("in process: %q, %v", content, err)
	}
	if workers := processtest.Children(t, worker.Command); len(workers) > 0 {
		t.Errorf("workers %v with keyhsm.worker = no", workers)
	}
}
