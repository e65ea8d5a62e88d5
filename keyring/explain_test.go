package keyring

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"

	"claviger"
	"claviger/provider"
)

// TestNoAnswer checks which errors mean that a source cannot be reached.
func TestNoAnswer(t *testing.T) {
	for _, tt := range []struct {
		err                   error
		noAnswer, unreachable bool
	}{
		{fmt.Errorf("%w 10s", errTimeout), true, true},
		{fmt.Errorf("far: %w", context.DeadlineExceeded), true, true},
		{claviger.E("test", claviger.Unavailable, "", nil), true, true},
		{claviger.E("test", claviger.SourceUnreachable, "", nil), true, true},
		{claviger.E("test", claviger.Closed, "", nil), true, true},
		{claviger.E("test", claviger.Unavailable, "", provider.Answered(errInjected)), true, false},
		{claviger.E("test", claviger.Denied, "", nil), false, false},
		{errors.New("no kind"), false, false},
	} {
		if got := noAnswer(tt.err); got != tt.noAnswer {
			t.Errorf("%v: no answer: %t", tt.err, got)
		}
		if got := isUnreachable(tt.err); got != tt.unreachable {
			t.Errorf("%v: unreachable: %t", tt.err, got)
		}
	}
}

// TestCauseIsKept: an error that is wrapped keeps its kind and its cause.
func TestCauseIsKept(t *testing.T) {
	denied := claviger.E("test", claviger.KeyDenied, "k", errInjected)
	if err := error(ruleError{denied}); claviger.KindOf(err) != claviger.KeyDenied || !errors.Is(err, errInjected) {
		t.Errorf("a refusal by our rules: %v", err)
	}
	if err := error(&brokenSource{err: denied}); !errors.Is(err, errInjected) ||
		strings.Contains(err.Error(), errInjected.Error()) {
		t.Errorf("a source's internal error: %v", err)
	}
}

// TestLoginIsTheCause: if this server cannot log in, the message says that, and does not blame the source.
func TestLoginIsTheCause(t *testing.T) {
	s := &source{Provider: newFarKMS(t, farURI), property: "the.property"}
	about := aboutVersion("k@0", "")
	here, there := "correct this server's login", "check that the source runs"
	for _, tt := range []struct {
		err           error
		want, without []string
	}{
		{&provider.LoginError{Err: errInjected}, []string{"does not let this server log in", here}, []string{there}},
		{errInjected, []string{"does not answer", there, "the.property"}, []string{here}},
		{nil, []string{"does not answer", there}, []string{here}},
	} {
		err := s.unreachable(about, tt.err, "no ticket")
		wantKind(t, err, claviger.SourceUnreachable)
		for _, part := range tt.want {
			if !strings.Contains(err.Error(), part) {
				t.Errorf("%v: %q is missing in %v", tt.err, part, err)
			}
		}
		for _, part := range tt.without {
			if strings.Contains(err.Error(), part) {
				t.Errorf("%v: %v", tt.err, err)
			}
		}
	}
}
