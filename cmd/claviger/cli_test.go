package main

import (
	"bytes"
	"flag"
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/spf13/cobra"
)

var update = flag.Bool("update", false, "rewrite docs/cli.md")

// TestCommandPage: docs/cli.md has the help of each command. With -update, the test writes this page.
func TestCommandPage(t *testing.T) {
	root := newRootCommand()
	root.InitDefaultHelpCmd()
	var b strings.Builder
	b.WriteString(`# Commands

The help of each command. The page is written from the program (` +
		"`go test ./cmd/claviger -run TestCommandPage -update`" + `).
`)
	writeCommand(t, &b, root)

	const page = "../../docs/cli.md"
	if *update {
		if err := os.WriteFile(page, []byte(b.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	text, err := os.ReadFile(page)
	if err != nil {
		t.Fatal(err)
	}
	if string(text) != b.String() {
		t.Errorf("%s is not what the commands' help says: run this test with -update", page)
	}
	if n := strings.Count(b.String(), "\n## "); n < 50 {
		t.Errorf("%s has %d commands only", page, n)
	}
}

// writeCommand writes the help of cmd and of the commands below it.
func writeCommand(t *testing.T, b *strings.Builder, cmd *cobra.Command) {
	t.Helper()
	if cmd.Hidden || cmd.Name() == "help" {
		return
	}
	var out bytes.Buffer
	cmd.SetOut(&out)
	cmd.InitDefaultHelpFlag() // as Execute does
	cmd.InitDefaultVersionFlag()
	if err := cmd.Help(); err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(strings.TrimSpace(out.String()), "\n")
	for i := range lines {
		lines[i] = strings.TrimRight(lines[i], " ")
	}
	fmt.Fprintf(b, "\n## %s\n\n%s.\n\n```\n%s\n```\n", cmd.CommandPath(), strings.TrimSuffix(cmd.Short, "."),
		strings.Join(lines, "\n"))
	for _, sub := range cmd.Commands() {
		writeCommand(t, b, sub)
	}
}
