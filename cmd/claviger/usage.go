package main

import (
	"fmt"
	"regexp"
	"slices"
	"strings"

	"github.com/spf13/cobra"
)

// elsewhere says where a command is that people look for in a group of ours.
var elsewhere = map[string]string{
	"claviger key create": "hadoop key create makes keys",
	"claviger key roll":   "hadoop key roll makes new versions",
	"claviger key list":   "hadoop key list -metadata lists keys, and claviger key describe shows one",
	"claviger key delete": "hadoop key delete deletes keys",
}

// unknownCommand refuses a word that is no command of a group, with what was meant.
func unknownCommand(group *cobra.Command, word string) error {
	group.SuggestionsMinimumDistance = 2
	text := fmt.Sprintf("unknown command %q for %q", word, group.CommandPath())
	if known, ok := elsewhere[group.CommandPath()+" "+word]; ok {
		text += "; " + known
	} else if near := group.SuggestionsFor(word); len(near) > 0 {
		text += "; did you mean " + strings.Join(near, " or ") + "?"
	}
	return &exitError{exitUsage, fmt.Errorf("%s", text)}
}

// misspelt finds a word that is no command before the flags behind it are read as those
// of the group, which would be refused first. The command is the group.
func misspelt(root *cobra.Command, args []string) (*cobra.Command, error) {
	cmd, rest, err := root.Find(args)
	if err != nil || !cmd.HasSubCommands() || len(rest) == 0 || strings.HasPrefix(rest[0], "-") {
		return cmd, nil //nolint:nilerr // the command says so itself
	}
	if cmd == root && (rest[0] == "help" || strings.HasPrefix(rest[0], "__")) { // cobra adds these when it runs
		return cmd, nil
	}
	return cmd, unknownCommand(cmd, rest[0])
}

// newHelpCommand is cobra's, but that it refuses what is no command.
func newHelpCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "help [command]",
		Short: "Help about any command",
		RunE: func(cmd *cobra.Command, args []string) error {
			found, rest, err := cmd.Root().Find(args)
			if err != nil || found == nil {
				return unknownCommand(cmd.Root(), strings.Join(args, " "))
			}
			if len(rest) > 0 && found.HasSubCommands() {
				return unknownCommand(found, rest[0])
			}
			found.InitDefaultHelpFlag()
			return found.Help()
		},
	}
}

// usageWord matches a part of a command's Use: a group in brackets, a flag with its
// value, or an argument.
var usageWord = regexp.MustCompile(`\[[^\]]*\](?:\.\.\.)?|\([^)]*\)|--?\S+(?: [A-Z][A-Z0-9@]*)?|\S+`)

// arguments are the arguments that a command's Use demands.
func arguments(use string) (names []string) {
	_, use, _ = strings.Cut(use, " ")
	for _, word := range usageWord.FindAllString(use, -1) {
		if !strings.HasPrefix(word, "[") && !strings.HasPrefix(word, "-") && !strings.HasPrefix(word, "(-") {
			names = append(names, word)
		}
	}
	return names
}

// quoted matches a flag's name in cobra's error.
var quoted = regexp.MustCompile(`"([^"]+)"`)

// nameMissing says which arguments and flags a command line lacks; err where none.
func nameMissing(cmd *cobra.Command, args []string, err error) error {
	want := arguments(cmd.Use)
	if len(args) >= len(want) {
		return err
	}
	missing := slices.Clone(want[len(args):])
	if flags := cmd.ValidateRequiredFlags(); flags != nil {
		for _, m := range quoted.FindAllStringSubmatch(flags.Error(), -1) {
			missing = append(missing, "--"+m[1])
		}
	}
	return fmt.Errorf("missing: %s; usage: %s", strings.Join(missing, ", "), cmd.UseLine())
}
