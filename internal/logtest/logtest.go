// Package logtest keeps a log for tests.
package logtest

import (
	"bytes"
	"sync"
)

// Buffer is a log that other goroutines write while a test reads it. The zero value is
// ready for use.
type Buffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

// Write adds to the log.
func (l *Buffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

// String is what was written so far.
func (l *Buffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}
