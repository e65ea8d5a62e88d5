package main

import (
	"fmt"
	"io/fs"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/spf13/cobra"

	"claviger/authz"
	"claviger/provider/hsm"
	"claviger/terminal"
)

// word matches a word of a shell's line: without quotes, or a text in single quotes.
var word = regexp.MustCompile(`'[^']*'|[^\s']+`)

// sudo matches the words that run a command as another user.
var sudo = regexp.MustCompile(`\bsudo -u \S+ `)

// exampleLines returns the commands of the examples of a help text: each without comments, and in one line.
func exampleLines(examples string) (lines []string) {
	for line := range strings.SplitSeq(strings.ReplaceAll(examples, "\\\n", " "), "\n") {
		if line = strings.TrimSpace(line); line != "" && line[0] != '#' {
			lines = append(lines, line)
		}
	}
	return lines
}

// parseExample parses the flags and arguments of a command line as the program does before it runs a command. It
// returns the path of the command.
func parseExample(line string) (string, error) {
	var words []string
	line = strings.NewReplacer("<(", " ", ")", " ").Replace(line) // a command whose output the shell reads
	for _, w := range word.FindAllString(sudo.ReplaceAllString(line, ""), -1) {
		if w[0] != '<' && w[0] != '>' { // redirections are the shell's
			words = append(words, strings.Trim(w, "'"))
		}
	}
	i := slices.Index(words, "claviger")
	if i < 0 {
		return "", fmt.Errorf("no command of claviger")
	}
	if end := slices.Index(words[i:], "|"); end >= 0 {
		words = words[:i+end]
	}
	root := newRootCommand()
	if cmd, err := terminal.Misspelt(root, words[i+1:]); err != nil {
		return cmd.CommandPath(), err
	}
	cmd, rest, err := root.Find(words[i+1:])
	if err == nil {
		if err = cmd.ParseFlags(rest); err != nil {
			err = cmd.FlagErrorFunc()(cmd, err)
		}
	}
	if err == nil {
		rest = cmd.Flags().Args()
		err = cmd.ValidateArgs(rest)
	}
	if err == nil && cmd.PreRunE != nil { // the command help has none
		err = cmd.PreRunE(cmd, rest)
	}
	return cmd.CommandPath(), err
}

// TestExamples: the command line of each example in the help is right, up to the point where the command would run. The
// help of a command shows the command itself; the help of a group shows one of its commands.
func TestExamples(t *testing.T) {
	n := 0
	eachCommand(func(path string, cmd *cobra.Command) {
		own := false
		for _, line := range exampleLines(cmd.Example) {
			found, err := parseExample(line)
			if err != nil {
				t.Errorf("%s --help shows %q: %v", path, line, err)
			}
			own = own || found == path || cmd.HasSubCommands() && strings.HasPrefix(found, path+" ")
			n++
		}
		if !own {
			t.Errorf("%s --help shows no example of the command", path)
		}
	})
	if n < 100 {
		t.Errorf("only %d examples", n)
	}
}

// TestExampleParser: parseExample finds what is wrong with a command line.
func TestExampleParser(t *testing.T) {
	for line, want := range map[string]string{
		"claviger hsm list --conf /etc/claviger":                      "",
		"gpg -d F | sudo -u x claviger trustee restore --confdir D -": "",
		"claviger orgtool set-auth -n 'a b' -s - <secret":             "",
		"claviger hsm lits --conf d":                                  "unknown command",
		"claviger hsm list":                                           "conf",
		"claviger hsm list --conf d extra":                            "unknown command",
		"claviger hsm list --cnof d":                                  "unknown flag",
		"claviger metastore restore --conf d":                         "missing: FILE",
		"claviger hsm bench --conf d --time 3":                        "must be a time with its unit",
		"claviger migrate finish --conf d --edeks-done --verdict":     "none of the others can be",
		"hadoop key list":                                             "no command of claviger",
	} {
		_, err := parseExample(line)
		if want == "" && err != nil || want != "" && (err == nil || !strings.Contains(err.Error(), want)) {
			t.Errorf("%q: %v, want %q", line, err, want)
		}
	}
}

// TestHelpTexts: the text of each file fits into a terminal as it is, and values of the program in it are right.
func TestHelpTexts(t *testing.T) {
	files, err := fs.Glob(helpTexts, "help/*.txt")
	if err != nil || len(files) < 70 {
		t.Fatal(files, err)
	}
	all := map[string]string{}
	for _, name := range files {
		text, err := helpTexts.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		long, _, _ := strings.Cut(string(text), "\n\nExamples:\n")
		if wrapped := terminal.Wrap(long, terminal.HelpWidth, ""); wrapped != long {
			t.Errorf("%s: wrap its lines like this:\n%s", name, wrapped)
		}
		all[name] = strings.Join(strings.Fields(long), " ")
	}
	for name, want := range map[string]string{
		"help/acl-explain.txt":      "The requests are: " + strings.Join(authz.RequestNames(), ", ") + ".",
		"help/metastore-accept.txt": fmt.Sprintf("within %d seconds", int(hsm.DecidedWithin.Seconds())),
	} {
		if !strings.Contains(all[name], want) {
			t.Errorf("%s does not say %q", name, want)
		}
	}
}
