package terminal_test

import (
	"errors"
	"io"
	"strings"
	"testing"

	"github.com/spf13/cobra"

	"claviger"
	"claviger/terminal"
)

func prompt(typed string) *terminal.Prompt {
	cmd := &cobra.Command{}
	cmd.SetIn(strings.NewReader(typed))
	cmd.SetErr(io.Discard)
	return terminal.NewPrompt(cmd)
}

func refused(err error) bool { return errors.As(err, new(*claviger.RefusedError)) }

// TestConfirmList: without a terminal, only the digest of the shown list confirms it.
func TestConfirmList(t *testing.T) {
	if err := prompt("").ConfirmList("d1", "d1", 2, "destroy them"); err != nil {
		t.Error(err)
	}
	if err := prompt("2\n").ConfirmList("d0", "d1", 2, "destroy them"); !refused(err) {
		t.Errorf("another list's digest: %v", err)
	}
	if err := prompt("2\n").ConfirmList("", "d1", 2, "destroy them"); !refused(err) ||
		!strings.Contains(err.Error(), "--confirm d1") {
		t.Errorf("no terminal: %v", err)
	}
}

// TestConfirmName: only the name itself confirms, typed or by the flag.
func TestConfirmName(t *testing.T) {
	name, other := "k", "K"
	for _, c := range []struct {
		typed string
		given *string
		ok    bool
	}{
		{"k\n", nil, true},
		{"k\r\n", nil, true},
		{"k", nil, true},
		{"", &name, true},
		{"K\n", nil, false},
		{"k \n", nil, false},
		{"", nil, false},
		{"k\n", &other, false},
	} {
		if err := prompt(c.typed).ConfirmName("k", c.given, "purged", "?"); (err == nil) != c.ok ||
			err != nil && !refused(err) {
			t.Errorf("%+v: %v", c, err)
		}
	}
}

// TestAsk: a prompt reads one line for each question.
func TestAsk(t *testing.T) {
	p := prompt("one\ntwo\n")
	for _, want := range []string{"one", "two", ""} {
		if got, err := p.Ask("?"); err != nil || got != want {
			t.Errorf("%q, %v, want %q", got, err, want)
		}
	}
}
