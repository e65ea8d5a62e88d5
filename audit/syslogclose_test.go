package audit

import (
	"net"
	"strings"
	"testing"
)

// TestCloseSendsQueue: lines that wait when Syslog is closed are sent, even if no line was sent before.
func TestCloseSendsQueue(t *testing.T) {
	for uri, conn := range datagramServers(t) {
		for range 50 { // the order of the queue and of Close differs
			s, err := OpenSyslog(uri, nil)
			if err != nil {
				t.Fatal(err)
			}
			if err := s.Send([]byte("a line\n")); err != nil {
				t.Fatal(err)
			}
			if err := s.Close(); err != nil {
				t.Fatal(err)
			}
			if got := datagram(t, conn); got != "a line" {
				t.Fatalf("%s: %q", uri, got)
			}
		}
	}
}

// TestCloseReportsUnsentLines: Close says how many lines a server did not accept.
func TestCloseReportsUnsentLines(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := l.Addr().String()
	if err := l.Close(); err != nil { // nothing listens there
		t.Fatal(err)
	}
	for _, wait := range []bool{false, true} {
		s, err := OpenSyslog("syslog+tcp://"+addr, nil)
		if err != nil {
			t.Fatal(err)
		}
		for range 3 {
			if err := s.Send([]byte("a line\n")); err != nil {
				t.Fatal(err)
			}
		}
		if wait { // until the first line was tried
			waitFor(t, func() bool { return s.Err() != nil })
		}
		if err := s.Close(); err == nil || !strings.Contains(err.Error(), "3 lines were not sent and are lost") {
			t.Errorf("%v", err)
		}
	}
}
