package keyhsm

import (
	"bytes"
	"crypto/tls"
	"log/slog"
	"testing"
	"testing/synctest"
	"time"
)

// TestRefusedLines: refused handshakes are all counted, and only some of them are logged, because everybody who reaches
// the port can cause them.
func TestRefusedLines(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var log bytes.Buffer
		load := func() (*Identity, error) {
			return &Identity{Certificate: tls.Certificate{Certificate: [][]byte{{1}}}}, nil
		}
		s, err := NewServer(nil, load, slog.New(slog.NewTextHandler(&log, nil)))
		if err != nil {
			t.Fatal(err)
		}
		verify := s.TLS().VerifyConnection
		for range 10 * refusedLines {
			if verify(tls.ConnectionState{}) == nil {
				t.Fatal("a client without a certificate was admitted")
			}
		}
		lines := func() int { return bytes.Count(log.Bytes(), []byte("a client was refused")) }
		if n := lines(); n != refusedLines {
			t.Errorf("%d lines, want %d", n, refusedLines)
		}
		time.Sleep(refusedEvery) // the bubble's clock
		_ = verify(tls.ConnectionState{})
		if n := lines(); n != refusedLines+1 {
			t.Errorf("%d lines after a while, want %d", n, refusedLines+1)
		}
		if got := s.Refused(); got != 10*refusedLines+1 {
			t.Errorf("%d refused handshakes were counted", got)
		}
	})
}
