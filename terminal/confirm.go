package terminal

import (
	"bufio"
	"errors"
	"io"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"claviger"
)

// Prompt asks a person on standard error and reads the answers from standard input.
type Prompt struct {
	in       *bufio.Reader
	out      io.Writer
	terminal bool
}

// NewPrompt returns the prompt of a command. Make only one for a command, since a prompt reads ahead.
func NewPrompt(cmd *cobra.Command) *Prompt {
	in := cmd.InOrStdin()
	return &Prompt{bufio.NewReader(io.LimitReader(in, 64<<10)), cmd.ErrOrStderr(), IsTerminal(in)}
}

// Ask writes a question and returns the next line of input. At the end of the input the line is empty.
func (p *Prompt) Ask(format string, args ...any) (string, error) {
	if err := Fprintf(p.out, format, args...); err != nil {
		return "", err
	}
	line, err := p.in.ReadString('\n')
	if err != nil && !errors.Is(err, io.EOF) {
		return "", err
	}
	return strings.TrimRight(line, "\r\n"), nil
}

// ConfirmList returns nil if a person confirms a list of n entries that the command has shown. given is the digest that
// the person passed by a flag; it must be the list's digest. If it is "", a person at a terminal must type n. action
// says what happens to the entries. Any other answer is a claviger.RefusedError.
func (p *Prompt) ConfirmList(given, digest string, n int, action string) error {
	switch {
	case given == digest:
		return nil
	case given != "":
		return claviger.Refuse("--confirm %s is for another list: this list has the digest %s; nothing was done",
			given, digest)
	case !p.terminal:
		return claviger.Refuse("nothing was done; to %s, pass --confirm %s", action, digest)
	}
	typed, err := p.Ask("To %s, type their number (%d): ", action, n)
	if err == nil && strings.TrimSpace(typed) != strconv.Itoa(n) {
		err = claviger.Refuse("not confirmed; nothing was done")
	}
	return err
}

// ConfirmName returns nil if a person types a name again, or has passed it by a flag (given). For another name it
// returns a claviger.RefusedError. Its text uses verb, for instance "purged", to say what was not done.
func (p *Prompt) ConfirmName(name string, given *string, verb, question string) error {
	var typed string
	if given != nil {
		typed = *given
	} else {
		var err error
		if typed, err = p.Ask("%s", question); err != nil {
			return err
		}
	}
	if typed != name {
		return claviger.Refuse("nothing was %s: %q is not the key's name, %q", verb, typed, name)
	}
	return nil
}
