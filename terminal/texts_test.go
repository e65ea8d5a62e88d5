package terminal_test

import (
	"bytes"
	"strings"
	"testing"
	"testing/fstest"

	"github.com/spf13/cobra"

	"claviger/terminal"
)

// tool returns a program with the command `tool key list`.
func tool() *cobra.Command {
	run := func(*cobra.Command, []string) {}
	root, group := &cobra.Command{Use: "tool", Run: run}, &cobra.Command{Use: "key", Short: "Keys", Run: run}
	group.AddCommand(&cobra.Command{Use: "list", Short: "List keys", Run: run})
	root.AddCommand(group)
	terminal.CheckUsage(root)
	return root
}

// texts returns the texts of tool.
func texts() fstest.MapFS {
	all := fstest.MapFS{}
	for _, name := range []string{"tool", "help", "key", "key-list"} {
		all[name+".txt"] = &fstest.MapFile{
			Data: []byte("It is " + name + ".\n\nExamples:\n  # this one\n  tool " + name + " \\\n      --all\n")}
	}
	return all
}

// TestDescribe: a command's help shows the text and the examples of its file, and no example is wrapped.
func TestDescribe(t *testing.T) {
	root := tool()
	if err := terminal.Describe(root, texts()); err != nil {
		t.Fatal(err)
	}
	terminal.Help(root)
	var out bytes.Buffer
	root.SetOut(&out)
	root.SetArgs([]string{"key", "list", "--help"})
	if err := root.Execute(); err != nil {
		t.Fatal(err)
	}
	const want = "It is key-list.\n\nUsage:\n  tool key list [flags]\n\n" +
		"Examples:\n  # this one\n  tool key-list \\\n      --all\n\nFlags:\n  -h, --help   help for list\n"
	if out.String() != want {
		t.Errorf("got\n%s\nwant\n%s", &out, want)
	}
}

// TestDescribeFaults: Describe returns an error if a command has no file, or if a file belongs to no command, lacks the
// text or lacks the examples.
func TestDescribeFaults(t *testing.T) {
	set := func(file, text string) func(fstest.MapFS) {
		return func(all fstest.MapFS) { all[file].Data = []byte(text) }
	}
	for want, change := range map[string]func(fstest.MapFS){
		"tool key list has no text":                  func(all fstest.MapFS) { delete(all, "key-list.txt") },
		"tool has no text":                           func(all fstest.MapFS) { delete(all, "tool.txt") },
		"tool help has no text":                      func(all fstest.MapFS) { delete(all, "help.txt") },
		"list.txt is the text of no command":         func(all fstest.MapFS) { all["list.txt"] = all["key.txt"] },
		"key.txt lacks the text or the examples":     set("key.txt", "Keys.\n"),
		"tool.txt lacks the text or the examples":    set("tool.txt", "\nExamples:\n  tool\n"),
		"help.txt lacks the text or the examples of": set("help.txt", "Help.\n\nExamples:\n\n"),
	} {
		all := texts()
		change(all)
		if err := terminal.Describe(tool(), all); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %q", err, want)
		}
	}
}
