package terminal

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// pseudoTerminal returns a terminal of 120 columns. After it is closed, the function returns all text that was written
// to it.
func pseudoTerminal(t *testing.T) (*os.File, func() string) {
	t.Helper()
	fd, err := unix.Open("/dev/ptmx", unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	master := os.NewFile(uintptr(fd), "/dev/ptmx")
	t.Cleanup(func() { _ = master.Close() })
	if err := unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0); err != nil {
		t.Fatal(err)
	}
	n, err := unix.IoctlGetInt(fd, unix.TIOCGPTN)
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.IoctlSetWinsize(fd, unix.TIOCSWINSZ, &unix.Winsize{Row: 24, Col: 120}); err != nil {
		t.Fatal(err)
	}
	terminal, err := os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = terminal.Close() })
	all := make(chan string, 1)
	go func() {
		b, _ := io.ReadAll(master) // it ends with an error when the other side is closed
		all <- string(b)
	}()
	return terminal, func() string { return <-all }
}

// TestBar: a terminal gets a bar. If the work stops early, the bar stays as it is and does not overwrite the text after
// it.
func TestBar(t *testing.T) {
	terminal, shown := pseudoTerminal(t)
	p := NewProgress(terminal, "keys", false)
	p.Show(0, 0, "listing")
	p.Show(3, 7, "key\x1b[2J: reading")
	p.End()
	if err := Fprintf(terminal, "the end\n"); err != nil {
		t.Fatal(err)
	}
	_ = terminal.Close()
	text := shown()
	for _, want := range []string{"3 of 7 keys", `key\u001b[2J: reading`} {
		if !strings.Contains(text, want) {
			t.Errorf("%q lacks %q", text, want)
		}
	}
	if !strings.HasSuffix(strings.TrimSpace(text), "the end") {
		t.Errorf("%q does not end with the text after the bar", text)
	}
}

// TestConfirmAtATerminal: a person confirms a list by typing its length.
func TestConfirmAtATerminal(t *testing.T) {
	for typed, ok := range map[string]bool{"2\n": true, "3\n": false, "y\n": false} {
		terminal, _ := pseudoTerminal(t)
		p := &Prompt{bufio.NewReader(strings.NewReader(typed)), terminal, IsTerminal(terminal)}
		if err := p.ConfirmList("", "d", 2, "destroy them"); (err == nil) != ok {
			t.Errorf("%q: %v", typed, err)
		}
	}
}
