package terminal

import (
	"errors"
	"fmt"
	"io/fs"
	"strings"

	"github.com/spf13/cobra"
)

// textsEnding ends the name of a file with the text of a command.
const textsEnding = ".txt"

// examplesLine begins the examples in such a file.
const examplesLine = "\nExamples:\n"

// Describe gives the commands of a tree their long help texts and their examples. Each command has a file in texts,
// also the command help and the program itself. The file's name is the path of the command, with - for blanks and
// without the name of the program: hsm-init.txt. The program's own file has the program's name.
//
// A file has a text, an empty line, the line "Examples:", and the examples, indented by two blanks. It is an error if a
// command has no file, a file has no command, or a file lacks the text or the examples.
func Describe(root *cobra.Command, texts fs.FS) error {
	root.InitDefaultHelpCmd()
	files, err := fs.Glob(texts, "*"+textsEnding)
	if err != nil {
		return err
	}
	unused := make(map[string]bool, len(files))
	for _, name := range files {
		unused[name] = true
	}
	var errs []error
	var walk func(cmd *cobra.Command)
	walk = func(cmd *cobra.Command) {
		name := textFile(cmd)
		delete(unused, name)
		errs = append(errs, describe(cmd, texts, name))
		for _, sub := range cmd.Commands() {
			walk(sub)
		}
	}
	walk(root)
	for name := range unused {
		errs = append(errs, fmt.Errorf("%s is the text of no command", name))
	}
	return errors.Join(errs...)
}

// textFile returns the name of the file with the text of a command.
func textFile(cmd *cobra.Command) string {
	words := strings.Fields(cmd.CommandPath())
	if len(words) > 1 {
		words = words[1:]
	}
	return strings.Join(words, "-") + textsEnding
}

// describe gives one command its text and its examples.
func describe(cmd *cobra.Command, texts fs.FS, name string) error {
	text, err := fs.ReadFile(texts, name)
	if err != nil {
		return fmt.Errorf("%s has no text: %w", cmd.CommandPath(), err)
	}
	long, examples, _ := strings.Cut(string(text), examplesLine)
	cmd.Long, cmd.Example = strings.TrimSpace(long), strings.TrimRight(examples, "\n")
	if cmd.Long == "" || !strings.HasPrefix(cmd.Example, "  ") {
		return fmt.Errorf("%s lacks the text or the examples of %s", name, cmd.CommandPath())
	}
	return nil
}
