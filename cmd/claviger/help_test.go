package main

import (
	"bytes"
	"fmt"
	"slices"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/spf13/cobra"

	"claviger/terminal"
)

// eachCommand calls do with each command, also with groups of commands.
func eachCommand(do func(path string, cmd *cobra.Command)) {
	var walk func(cmd *cobra.Command)
	walk = func(cmd *cobra.Command) {
		do(cmd.CommandPath(), cmd)
		for _, sub := range cmd.Commands() {
			walk(sub)
		}
	}
	walk(newRootCommand())
}

// TestHelpFitsATerminal: no help text is wider than a terminal of 80 columns.
func TestHelpFitsATerminal(t *testing.T) {
	n := 0
	eachCommand(func(path string, cmd *cobra.Command) {
		var out bytes.Buffer
		cmd.SetOut(&out)
		cmd.InitDefaultHelpFlag()
		if err := cmd.Help(); err != nil {
			t.Fatal(path, err)
		}
		for line := range strings.Lines(out.String()) {
			line = strings.TrimSuffix(line, "\n")
			if w := utf8.RuneCountInString(line); w > terminal.HelpWidth || strings.HasSuffix(line, " ") {
				t.Errorf("%s --help: %d columns, or a blank at the end: %q", path, w, line)
			}
		}
		if cmd.HasPersistentFlags() {
			t.Errorf("%s has flags for its subcommands, which terminal.Help does not show", path)
		}
		if !strings.Contains(out.String(), "Usage:\n  claviger") || !strings.Contains(out.String(), "--help") {
			t.Errorf("%s --help lacks the usage or a flag:\n%s", path, &out)
		}
		for _, sub := range cmd.Commands() {
			if sub.IsAvailableCommand() && sub.Short != "" {
				checkColumn(t, path, out.String(), sub)
			}
		}
		n++
	})
	if n < 50 {
		t.Errorf("only %d commands", n)
	}
}

// checkColumn checks that the description of sub begins in the column of all descriptions of its group's help.
func checkColumn(t *testing.T, path, help string, sub *cobra.Command) {
	t.Helper()
	longest := 11 // cobra's least width
	for _, c := range sub.Parent().Commands() {
		longest = max(longest, len(c.Name()))
	}
	first, _, _ := strings.Cut(sub.Short, " ")
	if want := fmt.Sprintf("\n  %-*s %s", longest, sub.Name(), first); !strings.Contains(help, want) {
		t.Errorf("%s --help: the description of %s is not in the column of the others:\n%s", path, sub.Name(), help)
	}
}

// TestMigrateHelpStatuses: the help of each subcommand of migrate that can have exit status 3 ends with a list of exit
// statuses, or refers to the list in the help of migrate.
func TestMigrateHelpStatuses(t *testing.T) {
	n := 0
	eachCommand(func(path string, cmd *cobra.Command) {
		if !strings.HasPrefix(path, "claviger migrate ") || cmd.Name() == "free" || cmd.Name() == "keygen" {
			return // the others decide nothing
		}
		n++
		if !strings.HasSuffix(cmd.Long, "\n\nExit status: see claviger migrate --help.") &&
			!strings.Contains(cmd.Long, "\n\nExit status: 0 ") {
			t.Errorf("%s says nothing of exit statuses: %q", path, cmd.Long)
		}
	})
	if n < 5 {
		t.Errorf("only %d subcommands", n)
	}
}

// TestConf: --conf has one meaning in all commands, the configuration folder of a service, and completes to folders.
// The commands of a trustee take it too, beside the name that Cloudera's tools have for the flag.
func TestConf(t *testing.T) {
	n := 0
	eachCommand(func(path string, cmd *cobra.Command) {
		flag := cmd.Flags().Lookup("conf")
		trustee := strings.HasPrefix(path, "claviger trustee ") || strings.HasPrefix(path, "claviger orgtool ")
		switch {
		case flag == nil && trustee:
			t.Errorf("%s has no --conf", path)
		case flag == nil:
			return
		case flag.Name == "confdir" && trustee:
		case flag.Name != "conf" || !strings.HasPrefix(flag.Usage, "configuration folder"):
			t.Errorf("%s --%s: %q", path, flag.Name, flag.Usage)
		}
		if flag != nil && flag.Annotations[cobra.BashCompSubdirsInDir] == nil {
			t.Errorf("%s --conf does not complete to folders", path)
		}
		n++
	})
	if n < 50 {
		t.Errorf("only %d commands", n)
	}
}

// printNoData lists the commands without the flag -o, each with the reason.
var printNoData = map[string]string{
	"claviger kms":              "a server; its log has a format of its own",
	"claviger trustee serve":    "a server; its log has a format of its own",
	"claviger keyhsm start":     "a server; its log has a format of its own",
	"claviger demo":             "a demonstration for people, step by step",
	"claviger orgtool set-auth": "it prints nothing",
	"claviger help":             "it prints help texts",
	"claviger completion":       "it prints a script for a shell",
	"claviger man":              "it prints a page for man",
}

// TestOutputFlag: every command that prints data prints JSON with -o json.
func TestOutputFlag(t *testing.T) {
	seen := map[string]bool{}
	eachCommand(func(path string, cmd *cobra.Command) {
		if cmd.HasSubCommands() {
			return // a group prints its help
		}
		seen[path] = true
		flag := cmd.Flags().ShorthandLookup("o")
		_, exception := printNoData[path]
		switch {
		case flag == nil && !exception:
			t.Errorf("%s has no -o: use terminal.Output, or say in printNoData why it prints no data", path)
		case flag != nil && exception:
			t.Errorf("%s has -o, and is listed as a command without", path)
		case flag != nil:
			if _, ok := flag.Value.(*terminal.Format); !ok || flag.Name != "output" {
				t.Errorf("%s has an -o that is not of terminal.Output", path)
			}
		}
	})
	for path := range printNoData {
		if !seen[path] {
			t.Errorf("%s is listed, and is not a command", path)
		}
	}
	if len(seen) < 40 || !slices.Contains(sortedKeys(seen), "claviger key list") {
		t.Errorf("only %d commands", len(seen))
	}
}
