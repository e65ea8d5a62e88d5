package eek

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"

	"claviger"
)

// meeting is a BlockEncrypter whose two versions wait for each other. fails is a version whose call fails instead.
type meeting struct {
	old, current chan struct{} // closed when the version is being encrypted
	fails        string
}

func newMeeting() *meeting { return &meeting{old: make(chan struct{}), current: make(chan struct{})} }

func (m *meeting) EncryptBlocks(ctx context.Context, version string, _ []byte) error {
	mine, others := m.old, m.current
	if version == "k@1" {
		mine, others = others, mine
	}
	close(mine)
	if version == m.fails {
		<-others
		return errBroken
	}
	if m.fails == "" {
		<-others
		return nil
	}
	<-ctx.Done() // the other call fails
	return ctx.Err()
}

// TestReencryptSideBySide: the calls for the old version and for the new one run at the same time. If one of them
// fails, the other is given up, and the error is that of the first.
func TestReencryptSideBySide(t *testing.T) {
	edeks := []claviger.EDEK{{Version: "k@0", IV: make([]byte, claviger.IVSize), Material: make([]byte, 32)}}
	for _, fails := range []string{"", "k@0", "k@1"} {
		synctest.Test(t, func(t *testing.T) { // a call that waits for ever fails the test
			m := newMeeting()
			m.fails = fails
			got, err := Reencrypt(t.Context(), m, m, "k@1", edeks)
			if fails == "" && (err != nil || len(got) != 1) {
				t.Errorf("%v, %v", got, err)
			}
			if fails != "" && !errors.Is(err, errBroken) {
				t.Errorf("if %s fails: %v, %v", fails, got, err)
			}
		})
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	m := newMeeting()
	m.fails = "none"
	if _, err := Reencrypt(ctx, m, m, "k@1", edeks); !errors.Is(err, context.Canceled) {
		t.Errorf("a caller who gave up: %v", err)
	}
}
