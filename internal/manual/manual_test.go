package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

var page = strings.ReplaceAll(`# Commands

Text.

## claviger

Serve keys.

~~~
Serve keys

Usage:
  claviger [command]

Available Commands:
  hsm         Look at
              a token

Use "claviger [command] --help" for more information about a command.
~~~

## claviger hsm

Look at a token.

~~~
hsm shows C:\keys
with a state:

  in use   it is
           used

.hidden files are not shown.

Exit status: 0 fine; 3 not.

Usage:
  claviger hsm (--token LABEL |
      --slot N) [flags]

Examples:
  # one token
  claviger hsm \
      --slot 3

Flags:
  -h, --help           help for hsm
      --token string   label of
                       the token
~~~
`, "~~~", "```")

const want = `.TH CLAVIGER\-HSM 1 "2026-12-01" claviger "claviger manual"
.nh
.ad l
.SH NAME
claviger\-hsm \- Look at a token
.SH SYNOPSIS
\fBclaviger hsm\fR (\-\-token LABEL | \-\-slot N) [flags]
.SH DESCRIPTION
hsm shows C:\ekeys
with a state:
.PP
.nf
  in use   it is
           used
.fi
.PP
\&.hidden files are not shown.
.SH OPTIONS
.TP
\fB\-h, \-\-help\fR
help for hsm
.TP
\fB\-\-token string\fR
label of the token
.SH EXIT STATUS
Exit status: 0 fine; 3 not.
.SH EXAMPLES
.nf
  # one token
  claviger hsm \e
      \-\-slot 3
.fi
.SH SEE ALSO
\fBclaviger\fR(1),
/usr/share/doc/claviger/docs
`

// TestPages: a page of commands becomes a man page for each command, with every part of its help.
func TestPages(t *testing.T) {
	t.Setenv("SOURCE_DATE_EPOCH", "1796083200")
	dir := t.TempDir()
	file := filepath.Join(dir, "cli.md")
	if err := os.WriteFile(file, []byte(page), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := write(file, dir); err != nil {
		t.Fatal(err)
	}
	got, err := os.ReadFile(filepath.Join(dir, "claviger-hsm.1"))
	if err != nil || string(got) != want {
		t.Errorf("%v, got\n%s", err, got)
	}
	got, err = os.ReadFile(filepath.Join(dir, "claviger.1"))
	if err != nil || !strings.Contains(string(got), ".SH COMMANDS\n.TP\n\\fBhsm\\fR\nLook at a token\n") {
		t.Errorf("%v, got\n%s", err, got)
	}
}

// TestRealPage: parse knows every line of docs/cli.md. A part of a help text that it does not know is an error, and is
// never left out.
func TestRealPage(t *testing.T) {
	if err := write("../../docs/cli.md", t.TempDir()); err != nil {
		t.Error(err)
	}
	for _, bad := range []string{
		strings.Replace(page, "Flags:", "Flogs:", 1), strings.Replace(page, "\n\nUsage:", "\n\nUse:", 1),
		strings.Replace(page, "  -h, --help ", "--help ", 1), strings.Replace(page, "```\nServe", "Serve", 1),
	} {
		if commands, err := parse(bad); err == nil {
			t.Errorf("no error, and %d commands, of\n%s", len(commands), bad)
		}
	}
}
