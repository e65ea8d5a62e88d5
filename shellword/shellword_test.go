package shellword_test

import (
	"fmt"
	"os/exec"
	"strings"
	"testing"
	"unicode"

	"claviger/shellword"
)

// words have what a shell could read as more than a name, or a terminal could show as another text.
var words = []string{"", "/pay", "it's s", "$(touch x)", "`id`", "a;id", "a\tb$(id)", "s1 $(id);x\x1b[31m", "a\nid",
	"~", "~root", "!!", "a!b\tc", `a\b`, "a\\\t'b'", "*", "{a,b}", "#x", "=ls", "a=b", "-x", "a&b|c>d<e", `"`,
	"zürich", "zürich\t", "\xff\xfe", "a\u202eb", "a\u00a0b", "$HOME", "\x7f", "\x0112", "a\r", "𝄞\x01"}

// TestBashReadsTheWord: bash reads each quoted word as that word, and no command in it runs. This is also true if bash
// replaces ! by earlier commands, as at a prompt.
func TestBashReadsTheWord(t *testing.T) {
	bash, err := exec.LookPath("bash")
	if err != nil {
		t.Skip("bash is not installed")
	}
	for _, word := range words {
		quoted := shellword.Quote(word)
		for _, start := range []string{"", "set -o history -o histexpand\ntrue b\n"} {
			cmd := exec.Command(bash)
			cmd.Stdin = strings.NewReader(start + "printf %s " + quoted + "\n")
			cmd.Dir = t.TempDir()
			out, err := cmd.CombinedOutput()
			if err != nil || string(out) != word {
				t.Errorf("%q as %s: bash reads %q, %v", word, quoted, out, err)
			}
		}
		if strings.HasPrefix(quoted, "$") && (strings.Contains(quoted, "!") || strings.Contains(quoted, `\'`)) {
			t.Errorf("%q as %s has ! or \\'", word, quoted)
		}
		if strings.ContainsFunc(quoted, func(r rune) bool { return !unicode.IsPrint(r) }) {
			t.Errorf("%q as %q: a terminal does not show it", word, quoted)
		}
	}
}

// TestEqualSign: zsh replaces =ls by the path of the command ls, so a word that begins with = is quoted.
func TestEqualSign(t *testing.T) {
	for word, want := range map[string]string{"=ls": "'=ls'", "a=b": "a=b"} {
		if got := shellword.Quote(word); got != want {
			t.Errorf("%s as %s, want %s", word, got, want)
		}
	}
}

// TestNUL: a word with a NUL byte, which no command can be given, makes no command.
func TestNUL(t *testing.T) {
	if got := shellword.Command("rm", "a\x00b"); got != "" || shellword.Quote("a\x00b") != "" ||
		shellword.Possible("a\x00b") {
		t.Errorf("got %q", got)
	}
}

func ExampleCommand() {
	fmt.Println(shellword.Command("hdfs", "crypto", "-reencryptZone", "-start", "-path", "/pay\t$(reboot)"))
	// Output: hdfs crypto -reencryptZone -start -path $'/pay\x09$(reboot)'
}
