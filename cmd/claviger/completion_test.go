package main

import (
	"context"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"
)

// completionPackage is the script of the package bash-completion.
const completionPackage = "/usr/share/bash-completion/bash_completion"

// completed returns what bash offers at the end of a command line, after it has read the scripts in before and that of
// claviger completion. The parts of a line that bash divides are words.
func completed(t *testing.T, before string, words ...string) []string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	const script = `source <(claviger completion bash)
complete -p claviger >&2
COMP_WORDS=("$@") COMP_CWORD=$(($# - 1)) COMP_TYPE=9
COMP_LINE=$*; COMP_POINT=${#COMP_LINE}
__start_claviger 2>&1
printf '%s\n' "${COMPREPLY[@]}"`
	args := append([]string{"--norc", "--noprofile", "-c", before + "\n" + script, "bash"}, words...)
	out, err := exec.CommandContext(ctx, "bash", args...).Output() //nolint:gosec // words of this test
	if err != nil {
		t.Fatal(err)
	}
	var list []string
	for line := range strings.Lines(string(out)) {
		name, _, _ := strings.Cut(strings.TrimSpace(line), " ") // a description follows
		if name != "" && !strings.Contains(line, "compopt: not currently executing") {
			list = append(list, name)
		}
	}
	return list
}

// TestBashCompletion: bash reads the script of claviger completion, with and without the package bash-completion, and
// completes commands, flags, values of -o, and folders.
func TestBashCompletion(t *testing.T) {
	if _, err := exec.LookPath("bash"); err != nil {
		t.Skip("there is no bash")
	}
	dir := t.TempDir()
	t.Chdir(dir)
	if err := os.MkdirAll("conf/below", 0o700); err != nil {
		t.Fatal(err)
	}
	before := map[string]string{"alone": ""}
	if _, err := os.Stat(completionPackage); err == nil {
		before["package"] = "source " + completionPackage
	}
	for with, script := range before {
		for _, c := range []struct{ line, want string }{
			{"claviger hs", "hsm"},
			{"claviger hsm in", "init inspect"},
			{"claviger key version ", "purge"},
			{"claviger completion ", "bash fish zsh"},
			{"claviger help meta", "metastore"},
			{"claviger man hsm ini", "init"},
			{"claviger hsm list --con", "--conf"},
			{"claviger hsm list --conf d -o j", "json"},
			{"claviger hsm list --output ", "json text"},
			{"claviger kms --conf con", "conf"},
			{"claviger doctor --hdfs-conf ", "conf"},
			{"claviger nothing ", ""},
		} {
			words := strings.Split(c.line, " ")
			got := completed(t, script, words...)
			slices.Sort(got)
			if strings.Join(got, " ") != c.want {
				t.Errorf("%s: %q is completed to %q, want %q", with, c.line, got, c.want)
			}
		}
	}
}

// TestCompletionScripts: claviger completion writes a script for each shell, which the shell can read if it is
// installed here.
func TestCompletionScripts(t *testing.T) {
	for shell, want := range map[string]string{
		"bash": "complete -o default -F __start_claviger claviger", "zsh": "#compdef claviger",
		"fish": "complete -c claviger",
	} {
		script := mustRun(t, "completion", shell)
		if !strings.Contains(script, want) {
			t.Errorf("the script for %s lacks %q", shell, want)
		}
		if _, err := exec.LookPath(shell); err != nil {
			continue
		}
		cmd := exec.CommandContext(t.Context(), shell, "-n", "/dev/stdin") //nolint:gosec // a name of this test
		cmd.Stdin = strings.NewReader(script)
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Errorf("%s -n: %v: %s", shell, err, out)
		}
	}
	if out, err := command(t, "completion", "csh"); err == nil || !strings.Contains(out, "bash, fish, zsh") {
		t.Errorf("csh: %v, %s", err, out)
	}
}
