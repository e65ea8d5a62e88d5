package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/spf13/cobra"
)

// TestManPages: claviger man writes a page for each command except help, with its text, its flags and its examples.
// groff formats each page without a warning.
func TestManPages(t *testing.T) {
	dir := t.TempDir()
	mustRun(t, "man", "--dir", dir)
	pages := 0
	eachCommand(func(path string, cmd *cobra.Command) {
		if cmd.Name() == "help" {
			return
		}
		pages++
		text, err := os.ReadFile(filepath.Join(dir, strings.ReplaceAll(path, " ", "-")+".1"))
		if err != nil {
			t.Error(err)
			return
		}
		plain := strings.NewReplacer(`\-`, "-", `\e`, `\`, `\&`, "").Replace(string(text))
		for line := range strings.Lines(cmd.Long + "\n" + cmd.Example + "\n") {
			if !strings.Contains(plain, line) {
				t.Errorf("the page of %s lacks %q", path, line)
			}
		}
		for line := range strings.Lines(cmd.LocalFlags().FlagUsages()) {
			_, help, _ := strings.Cut(strings.TrimSpace(line), "  ")
			if !strings.Contains(plain, strings.TrimSpace(help)) {
				t.Errorf("the page of %s lacks the flag %q", path, line)
			}
		}
	})
	files, err := filepath.Glob(filepath.Join(dir, "*"))
	if err != nil || len(files) != pages || pages < 70 {
		t.Errorf("%d pages for %d commands, %v", len(files), pages, err)
	}
	if _, err := exec.LookPath("groff"); err != nil {
		return
	}
	args := append([]string{"-man", "-ww", "-z", "-Tutf8"}, files...)
	out, err := exec.CommandContext(t.Context(), "groff", args...).CombinedOutput() //nolint:gosec // files of this test
	if err != nil || len(out) > 0 {
		t.Errorf("groff: %v: %s", err, out)
	}
}
