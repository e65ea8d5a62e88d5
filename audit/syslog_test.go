package audit

import (
	"errors"
	"strings"
	"testing"
)

// TestSyslogLosesLines: Send fails if the queue is full, and Err has the number of lost lines, until the server
// accepts a line again.
func TestSyslogLosesLines(t *testing.T) {
	down := errors.New("connection refused")
	for _, during := range []error{nil, down} {
		s := &Syslog{queue: make(chan []byte, 1)}
		s.setErr(during)
		if err := s.Send([]byte("a\n")); err != nil || !errors.Is(s.Err(), during) {
			t.Errorf("%v: Send: %v, Err: %v", during, err, s.Err())
		}
		if s.Err() != nil && strings.Contains(s.Err().Error(), "lost") {
			t.Errorf("before a line is lost: %v", s.Err())
		}
		for range 2 {
			if err := s.Send([]byte("b\n")); err == nil || !strings.Contains(err.Error(), "no more fit") {
				t.Errorf("%v, with a full queue: %v", during, err)
			}
		}
		for _, later := range []error{during, down} { // another error does not reset the number
			if err := s.Err(); err == nil || during != nil && !errors.Is(err, during) ||
				!strings.Contains(err.Error(), "2 lines were not sent and are lost") {
				t.Errorf("%v: %v", during, err)
			}
			if later != nil {
				s.setErr(later)
			}
		}
		s.setErr(nil)
		if err := s.Err(); err != nil {
			t.Errorf("after a line was accepted: %v", err)
		}
	}
}
