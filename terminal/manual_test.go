package terminal_test

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/fstest"

	"github.com/spf13/cobra"

	"claviger/terminal"
)

// manualTexts returns the texts of a program with `tool hsm init` and `tool man`.
func manualTexts() fstest.MapFS {
	all := fstest.MapFS{}
	for _, name := range []string{"tool", "help", "hsm", "man"} {
		all[name+".txt"] = &fstest.MapFile{Data: []byte("It is " + name + ".\n\nExamples:\n  tool " + name + "\n")}
	}
	all["hsm-init.txt"] = &fstest.MapFile{Data: []byte(`init shows C:\keys
with a state:
  - in use, which is
    used

.hidden files are not shown.

Exit status: 0 fine; 3 not.

Examples:
  # one token
  tool hsm init \
      --slot 3
`)}
	return all
}

const wantPage = `.TH TOOL\-HSM\-INIT 1 "2026-12-01" tool "tool manual"
.nh
.ad l
.SH NAME
tool\-hsm\-init \- Look at a token
.SH SYNOPSIS
\fBtool hsm init\fR (\-\-token LABEL | \-\-slot N) [flags]
.SH DESCRIPTION
init shows C:\ekeys with a state:
.nf
  \- in use, which is
    used
.fi
.PP
\&.hidden files are not shown.
.SH OPTIONS
.TP
\fB\-h, \-\-help\fR
help for init
.TP
\fB\-\-token string\fR
label of the token (default "kms")
.SH EXIT STATUS
Exit status: 0 fine; 3 not.
.SH EXAMPLES
.nf
  # one token
  tool hsm init \e
      \-\-slot 3
.fi
.SH SEE ALSO
\fBtool\-hsm\fR(1),
/usr/share/doc/tool/docs
`

// manual runs `tool man` with arguments, and returns its output.
func manual(t *testing.T, args ...string) (string, error) {
	t.Helper()
	run := func(*cobra.Command, []string) {}
	root := &cobra.Command{Use: "tool", Short: "Serve keys", Run: run, SilenceErrors: true, SilenceUsage: true}
	root.CompletionOptions.DisableDefaultCmd = true
	group := &cobra.Command{Use: "hsm", Short: "Tokens", Run: run}
	command := &cobra.Command{Use: "init (--token LABEL | --slot N)", Short: "Look at a token", Run: run}
	command.Flags().String("token", "kms", "label of the token")
	command.Flags().Bool("old", false, "an old name")
	_ = command.Flags().MarkHidden("old")
	group.AddCommand(command)
	root.AddCommand(group, terminal.Manual("2026-12-01T10:00:00Z"))
	terminal.CheckUsage(root)
	if err := terminal.Describe(root, manualTexts()); err != nil {
		t.Fatal(err)
	}
	terminal.Help(root)
	var out bytes.Buffer
	root.SetOut(&out)
	root.SetArgs(append([]string{"man"}, args...))
	err := root.Execute()
	return out.String(), err
}

// TestManual: a command's man page has every part of its help, and each command has a page in the folder of --dir.
func TestManual(t *testing.T) {
	t.Setenv("SOURCE_DATE_EPOCH", "")
	if got, err := manual(t, "hsm", "init"); err != nil || got != wantPage {
		t.Errorf("%v, got\n%s\nwant\n%s", err, got, wantPage)
	}
	dir := filepath.Join(t.TempDir(), "man1")
	t.Setenv("SOURCE_DATE_EPOCH", "1796169600")
	if got, err := manual(t, "--dir", dir); err != nil || got != "" {
		t.Fatal(got, err)
	}
	got, err := os.ReadFile(filepath.Join(dir, "tool-hsm-init.1"))
	if want := strings.Replace(wantPage, "12-01", "12-02", 1); err != nil || string(got) != want {
		t.Errorf("%v, got\n%s\nwant\n%s", err, got, want)
	}
	pages, err := filepath.Glob(filepath.Join(dir, "*"))
	if err != nil || len(pages) != 4 {
		t.Errorf("pages: %v, %v", pages, err)
	}
	got, err = os.ReadFile(filepath.Join(dir, "tool.1"))
	if err != nil || !strings.Contains(string(got), ".SH COMMANDS\n.TP\n\\fBhsm\\fR\nTokens\n") ||
		!strings.Contains(string(got), ".SH SEE ALSO\n\\fBtool\\-hsm\\fR(1),\n\\fBtool\\-man\\fR(1),\n") {
		t.Errorf("%v, got\n%s", err, got)
	}
}

// TestManualFaults: an unknown command and a wrong SOURCE_DATE_EPOCH are errors.
func TestManualFaults(t *testing.T) {
	if _, err := manual(t, "hsm", "iint"); err == nil || !strings.Contains(err.Error(), "did you mean init?") {
		t.Error(err)
	}
	t.Setenv("SOURCE_DATE_EPOCH", "today")
	if _, err := manual(t, "hsm"); err == nil || !strings.Contains(err.Error(), "SOURCE_DATE_EPOCH") {
		t.Error(err)
	}
}
