package console

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"claviger/secret"
)

// secretFilesHold is how long a probe of SecretFiles counts.
const secretFilesHold = time.Minute

// SecretFiles checks that other users of the host can neither read nor change the files of a server that hold secrets.
// It logs each fault once. It only reports: the part of the server that reads a file refuses it.
type SecretFiles struct {
	files func() []secret.File
	log   *slog.Logger

	mu     sync.Mutex
	logged map[string]bool // faults
}

// WatchSecretFiles checks the files, and logs the faults. files returns the current files.
func WatchSecretFiles(log *slog.Logger, files func() []secret.File) *SecretFiles {
	w := &SecretFiles{files: files, log: log, logged: make(map[string]bool)}
	w.count()
	return w
}

// count logs new faults, and returns how many faults there are.
func (w *SecretFiles) count() int {
	faults := secret.Exposed(w.files()...)
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, fault := range faults {
		if !w.logged[fault] {
			w.logged[fault] = true
			w.log.Warn(fault)
		}
	}
	return len(faults)
}

// Check is the readiness check. Anonymous callers read its text, so only the log names the
// files.
func (w *SecretFiles) Check() Check {
	return Check{Name: "files with secrets", Informational: true, Holds: secretFilesHold,
		Run: func(context.Context) error {
			if n := w.count(); n > 0 {
				return fmt.Errorf("other users of this host can read or change files of this server, in %d ways; "+
					"the server's log says which and what to do", n)
			}
			return nil
		}}
}
