package terminal_test

import (
	"errors"
	"testing"

	"github.com/spf13/cobra"

	"claviger/terminal"
)

// TestEmptyValues: an empty argument or an empty value of a flag is a fault of the command line, and the command does
// not run. A flag can allow an empty value. An empty value of a StringSlice is a list without values, and is allowed. A
// command without a rule for its arguments refuses empty ones too.
func TestEmptyValues(t *testing.T) {
	ran := false
	run := func(args ...string) error {
		root := &cobra.Command{Use: "tool", SilenceErrors: true, SilenceUsage: true}
		cmd := &cobra.Command{Use: "check NAME [FILE]", Args: cobra.RangeArgs(1, 2),
			RunE: func(*cobra.Command, []string) error { ran = true; return nil }}
		root.AddCommand(cmd, &cobra.Command{Use: "adopt [NAME]...",
			RunE: func(*cobra.Command, []string) error { ran = true; return nil }})
		cmd.Flags().String("conf", "", "")
		cmd.Flags().String("peer", "", "")
		cmd.Flags().String("secret", "", "")
		cmd.Flags().StringArray("hostname", nil, "")
		cmd.Flags().StringSlice("groups", nil, "")
		if err := cmd.MarkFlagRequired("conf"); err != nil {
			t.Fatal(err)
		}
		cmd.Flags().StringSlice("only", nil, "")
		terminal.AllowEmpty(cmd, "secret")
		terminal.AllowEmpty(cmd, "groups")
		terminal.CheckUsage(root)
		root.SetArgs(args)
		ran = false
		return root.Execute()
	}
	for _, c := range []struct {
		args []string
		want string // "": the command runs
	}{
		{[]string{"check", "k", "--conf", "d"}, ""},
		{[]string{"check", "k", "f", "--conf", "d", "--secret", "", "--hostname", "h", "--groups", ""}, ""},
		{[]string{"check", "", "--conf", "d"}, "argument 1 is empty; usage: tool check NAME [FILE] [flags]"},
		{[]string{"check", "k", "", "--conf", "d"}, "argument 2 is empty; usage: tool check NAME [FILE] [flags]"},
		{[]string{"check", "k", "--conf", ""}, "--conf is empty: give a value"},
		{[]string{"check", "k", "--conf", "d", "--peer="}, "--peer is empty: give a value, or leave the flag out"},
		{[]string{"check", "k", "--conf", "d", "--hostname", "h", "--hostname", ""},
			"--hostname is empty: give a value, or leave the flag out"},
		{[]string{"check", "k", "--conf", "d", "--only", ""}, "--only is empty: give a value, or leave the flag out"},
		{[]string{"adopt", "k"}, ""},
		{[]string{"adopt", "k", ""}, "argument 2 is empty; usage: tool adopt [NAME]... [flags]"},
	} {
		err := run(c.args...)
		switch {
		case c.want == "" && (err != nil || !ran):
			t.Errorf("%q: %v, ran: %t", c.args, err, ran)
		case c.want != "" && (err == nil || err.Error() != c.want || !errors.As(err, new(*terminal.UsageError)) || ran):
			t.Errorf("%q: %v, ran: %t, want %s", c.args, err, ran, c.want)
		}
	}
}

// TestNotMisspelt: the commands that cobra adds when it runs are no misspelt words.
func TestNotMisspelt(t *testing.T) {
	root := &cobra.Command{Use: "tool"}
	root.AddCommand(&cobra.Command{Use: "check", Run: func(*cobra.Command, []string) {}})
	terminal.CheckUsage(root)
	for word, known := range map[string]bool{"help": true, "__complete": true, "complete": false} {
		if _, err := terminal.Misspelt(root, []string{word, "bash"}); (err == nil) != known {
			t.Errorf("%s: %v", word, err)
		}
	}
}

// TestDurationFlags: the message about a duration names the flag, the value and the cure, and no function of Go.
func TestDurationFlags(t *testing.T) {
	for value, want := range map[string]string{
		"30s": "",
		"30":  `--limit has the value "30"; it must be a time with its unit, such as 500ms, 30s, 10m or 12h`,
		"1 d": `--limit has the value "1 d"; it must be a time with its unit, such as 500ms, 30s, 10m or 12h`,
	} {
		root := &cobra.Command{Use: "tool", SilenceErrors: true, SilenceUsage: true}
		cmd := &cobra.Command{Use: "check", RunE: func(*cobra.Command, []string) error { return nil }}
		cmd.Flags().Duration("limit", 0, "")
		root.AddCommand(cmd)
		terminal.CheckUsage(root)
		root.SetArgs([]string{"check", "--limit", value})
		err := root.Execute()
		if want == "" && err == nil {
			continue
		}
		if err == nil || err.Error() != want || !errors.As(err, new(*terminal.UsageError)) {
			t.Errorf("%q: %v", value, err)
		}
	}
}
