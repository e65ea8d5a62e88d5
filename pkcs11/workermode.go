package pkcs11

import (
	"errors"
	"fmt"
	"time"

	"claviger/pkcs11/worker"
)

// WorkerMode says where the library runs: in a process of its own, see package worker, or in this process.
type WorkerMode string

const (
	// WorkerIfPossible runs the library in a worker if this program can start itself as a worker (worker.Main), as
	// claviger can. In other programs the library runs in their process.
	WorkerIfPossible WorkerMode = ""
	// WorkerYes runs the library in a worker. Open fails if this program cannot start one.
	WorkerYes WorkerMode = "yes"
	// WorkerNo runs the library in this process.
	WorkerNo WorkerMode = "no"
)

// ParseWorkerMode reads the value yes or no of a settings file.
func ParseWorkerMode(value string) (WorkerMode, error) {
	if m := WorkerMode(value); m == WorkerYes || m == WorkerNo {
		return m, nil
	}
	return "", errors.New("it must be yes or no")
}

// inWorker reports whether the library runs in a worker.
func (m WorkerMode) inWorker() bool {
	return m == WorkerYes || m == WorkerIfPossible && worker.Possible()
}

// The limits of CallLimit. An HSM that works may need more than a second for a call, for example while a group of HSMs
// switches to another member. A client of the KMS waits a minute for an answer.
const (
	minCallLimit = time.Second
	maxCallLimit = 10 * time.Minute
)

// ParseCallLimit reads the time after which a worker is ended because a call in it has not returned.
func ParseCallLimit(value string) (time.Duration, error) {
	d, err := time.ParseDuration(value)
	if err != nil || d < minCallLimit || d > maxCallLimit {
		return 0, fmt.Errorf("it must be a time from 1s to 10m, with its unit, such as %v", worker.DefaultCallLimit)
	}
	return d, nil
}
