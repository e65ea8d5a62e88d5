package pkcs11

import (
	"testing"

	"claviger/internal/processtest"
	"claviger/internal/softhsm/softhsmtest"
	"claviger/pkcs11/worker"
)

// TestWorkerMode: a library runs in a worker if the configuration says so, or says nothing.
func TestWorkerMode(t *testing.T) {
	for mode, want := range map[WorkerMode]int{WorkerIfPossible: 1, WorkerYes: 1, WorkerNo: 0} {
		c := config(softhsmtest.New(t))
		c.Worker = mode
		tok, err := Open(t.Context(), c)
		if err != nil {
			t.Fatal(err)
		}
		if n := len(processtest.Children(t, worker.Command)); n != want {
			t.Errorf("worker = %q: %d workers, want %d", mode, n, want)
		}
		if err := tok.Close(); err != nil {
			t.Error(err)
		}
	}
}
