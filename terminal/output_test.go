package terminal_test

import (
	"bytes"
	"fmt"
	"io"
	"testing"

	"github.com/spf13/cobra"

	"claviger/terminal"
)

// printing is a command that prints v, or what text writes.
func printing(flag func(*terminal.Output, *cobra.Command), v any, text func(io.Writer)) *cobra.Command {
	cmd := &cobra.Command{Use: "printing", SilenceUsage: true, SilenceErrors: true}
	var out terminal.Output
	flag(&out, cmd)
	cmd.RunE = func(*cobra.Command, []string) error {
		if err := out.Write(v, text); err != nil {
			return err
		}
		return out.Printf("a remark\n")
	}
	return cmd
}

// TestOutput: the text format has a table and remarks, and the JSON format has only JSON. Both escape characters that
// could mislead a reader.
func TestOutput(t *testing.T) {
	text := func(w io.Writer) { fmt.Fprint(w, "KEY\tBITS\nlong name\t128\na\x1b[2Jb\u202e\t256\n") }
	data := map[string]string{"key": "a\x1b[2Jb\u202e"}
	const table = "KEY                BITS\nlong name          128\n" + `a\u001b[2Jb\u202e  256` + "\na remark\n"
	const object = "{\n  \"key\": \"" + `a\u001b[2Jb\u202e` + "\"\n}\n"
	for _, c := range []struct {
		flag func(*terminal.Output, *cobra.Command)
		args []string
		want string
	}{
		{(*terminal.Output).Flag, nil, table},
		{(*terminal.Output).Flag, []string{"-o", "text"}, table},
		{(*terminal.Output).Flag, []string{"--output=json"}, object},
		{(*terminal.Output).JSONFlag, nil, object},
		{(*terminal.Output).JSONFlag, []string{"-o", "text"}, table},
	} {
		cmd := printing(c.flag, data, text)
		var got bytes.Buffer
		cmd.SetOut(&got)
		cmd.SetArgs(append([]string{}, c.args...))
		if err := cmd.Execute(); err != nil || got.String() != c.want {
			t.Errorf("%v: %v, %s, want %s", c.args, err, &got, c.want)
		}
	}
}

// TestOutputFormat: another format is refused before the command does anything.
func TestOutputFormat(t *testing.T) {
	cmd := printing((*terminal.Output).Flag, nil, func(io.Writer) { t.Error("the command ran") })
	cmd.SetArgs([]string{"-o", "xml"})
	const want = `invalid argument "xml" for "-o, --output" flag: it must be text or json`
	if err := cmd.Execute(); err == nil || err.Error() != want {
		t.Errorf("%v, want %s", err, want)
	}
}

// TestWriteError: if standard output cannot be written, the command returns an error.
func TestWriteError(t *testing.T) {
	for _, args := range [][]string{nil, {"-o", "json"}} {
		cmd := printing((*terminal.Output).Flag, "v", func(w io.Writer) { fmt.Fprintln(w, "v") })
		r, w := io.Pipe()
		_ = r.CloseWithError(io.ErrShortWrite)
		cmd.SetOut(w)
		cmd.SetArgs(append([]string{}, args...))
		if err := cmd.Execute(); err == nil {
			t.Errorf("%v: no error", args)
		}
	}
}

// TestWrap: paragraphs are wrapped; tables and empty lines stay.
func TestWrap(t *testing.T) {
	const text = "one two three four\nfive\n\n  a table that is wider   than that\n  second row\nsix\n"
	const want = "one two\n three\n four\n five\n\n  a table that is wider   than that\n  second row\nsix"
	if got := terminal.Wrap(text, 8, " "); got != want {
		t.Errorf("%q, want %q", got, want)
	}
	if got := terminal.Wrap("", 8, ""); got != "" {
		t.Errorf("%q", got)
	}
}
