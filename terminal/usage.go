package terminal

import (
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"claviger/typo"
)

// UsageError is an error of the command line itself.
type UsageError struct{ Err error }

// Error returns the text of Err.
func (e *UsageError) Error() string { return e.Err.Error() }

// Unwrap returns Err.
func (e *UsageError) Unwrap() error { return e.Err }

// NewFile refuses the name - for a file that a command makes: in many programs it is standard output. what is the flag
// or argument that has the name.
func NewFile(what, name string) error {
	if name != "-" {
		return nil
	}
	return &UsageError{fmt.Errorf("%s is -, and this command does not write to standard output; name a file (./- for "+
		"a file of that name)", what)}
}

// CheckUsage turns each error about the command line into a UsageError, which says what is wrong, missing or empty. It
// does so for a command and all its subcommands.
func CheckUsage(root *cobra.Command) {
	root.Args = func(cmd *cobra.Command, args []string) error {
		if len(args) > 0 { // cobra would print the help and exit with 0
			return unknownCommand(cmd, args[0])
		}
		return nil
	}
	root.SetHelpCommand(newHelpCommand())
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error { return &UsageError{flagError(cmd, err)} })
	checkUsage(root)
}

// strconvText matches the text that package strconv writes before its reason. It repeats the flag's value.
var strconvText = regexp.MustCompile(`strconv\.\w+: parsing "(?:[^"\\]|\\.)*": `)

// flagError explains the error of a flag. For a duration, Go's own text does not name the cure. For an unknown flag, it
// suggests a similar one. In other texts the name of the Go function that has refused the value is left out.
func flagError(cmd *cobra.Command, err error) error {
	var unknown *pflag.NotExistError
	if errors.As(err, &unknown) && unknown.GetSpecifiedShortnames() == "" {
		var known []string
		cmd.Flags().VisitAll(func(f *pflag.Flag) {
			if !f.Hidden && f.Deprecated == "" {
				known = append(known, f.Name)
			}
		})
		return fmt.Errorf("%w%s", err, typo.DidYouMean(unknown.GetSpecifiedName(), known,
			func(name string) string { return "--" + name }))
	}
	var refused *pflag.InvalidValueError
	if errors.As(err, &refused) && refused.GetFlag().Value.Type() == "duration" {
		return fmt.Errorf("--%s has the value %q; it must be a time with its unit, such as 500ms, 30s, 10m or 12h",
			refused.GetFlag().Name, refused.GetValue())
	}
	if text := err.Error(); strconvText.MatchString(text) {
		return errors.New(strconvText.ReplaceAllString(text, ""))
	}
	return err
}

// checkUsage is CheckUsage for one command and its subcommands.
func checkUsage(c *cobra.Command) {
	check := c.Args
	if check == nil && !c.HasSubCommands() {
		check = cobra.ArbitraryArgs
	}
	if check != nil {
		c.Args = func(cmd *cobra.Command, args []string) error {
			if err := check(cmd, args); err != nil {
				return &UsageError{nameMissing(cmd, args, err)}
			}
			if i := slices.Index(args, ""); i >= 0 {
				return &UsageError{fmt.Errorf("argument %d is empty; usage: %s", i+1, cmd.UseLine())}
			}
			return nil
		}
	}
	c.PreRunE = func(cmd *cobra.Command, _ []string) error {
		err := errors.Join(cmd.ValidateRequiredFlags(), cmd.ValidateFlagGroups(), emptyFlags(cmd))
		if err != nil {
			return &UsageError{err}
		}
		return nil
	}
	for _, sub := range c.Commands() {
		checkUsage(sub)
	}
}

// mayBeEmpty is the annotation of a flag that AllowEmpty was called for.
const mayBeEmpty = "may be empty"

// AllowEmpty allows an empty value of a flag.
func AllowEmpty(cmd *cobra.Command, flag string) {
	if err := cmd.Flags().SetAnnotation(flag, mayBeEmpty, nil); err != nil {
		panic(err) // the command has no such flag
	}
}

// Synonym accepts another name for a flag, which no help lists.
func Synonym(cmd *cobra.Command, other, flag string) {
	cmd.Flags().SetNormalizeFunc(func(_ *pflag.FlagSet, name string) pflag.NormalizedName {
		if name == other {
			name = flag
		}
		return pflag.NormalizedName(name)
	})
}

// emptyFlags returns an error for each flag whose value is empty, as by an unset variable of a script. Without the
// value, the command would do something else than the script says.
func emptyFlags(cmd *cobra.Command) error {
	var errs []error
	cmd.Flags().Visit(func(f *pflag.Flag) {
		empty := f.Value.String() == ""
		if list, ok := f.Value.(pflag.SliceValue); ok {
			empty = len(list.GetSlice()) == 0 || slices.Contains(list.GetSlice(), "")
		}
		if _, allowed := f.Annotations[mayBeEmpty]; !empty || allowed {
			return
		}
		text := "--" + f.Name + " is empty: give a value"
		if _, required := f.Annotations[cobra.BashCompOneRequiredFlag]; !required {
			text += ", or leave the flag out"
		}
		errs = append(errs, errors.New(text))
	})
	return errors.Join(errs...)
}

// unknownCommand returns an error for a word that is not a command of a group. It suggests similar commands of the
// group, or else commands of other groups that have this name. The group's annotations name commands of other programs,
// for words that users try.
func unknownCommand(group *cobra.Command, word string) error {
	group.SuggestionsMinimumDistance = 2
	text := fmt.Sprintf("unknown command %q for %q", word, group.CommandPath())
	if other, ok := group.Annotations[word]; ok {
		text += "; " + other
	} else if similar := group.SuggestionsFor(word); len(similar) > 0 {
		text += "; did you mean " + strings.Join(similar, " or ") + "?"
	} else if elsewhere := named(group.Root(), word); len(elsewhere) > 0 {
		text += "; did you mean " + strings.Join(elsewhere, " or ") + "?"
	}
	return &UsageError{errors.New(text)}
}

// named returns the paths of the commands below cmd that have a name.
func named(cmd *cobra.Command, name string) (paths []string) {
	for _, sub := range cmd.Commands() {
		if sub.Name() == name {
			paths = append(paths, sub.CommandPath())
		}
		paths = append(paths, named(sub, name)...)
	}
	return paths
}

// Misspelt finds a word that should be a command and is not. Without it, cobra would refuse the flags after the word
// first, because the group has no such flags. It returns the group, and a UsageError if there is such a word.
func Misspelt(root *cobra.Command, args []string) (*cobra.Command, error) {
	cmd, rest, err := root.Find(args)
	if err != nil || !cmd.HasSubCommands() || len(rest) == 0 || strings.HasPrefix(rest[0], "-") {
		return cmd, nil //nolint:nilerr // cobra reports it
	}
	if cmd == root && (rest[0] == "help" || strings.HasPrefix(rest[0], "__")) {
		return cmd, nil // cobra adds these when it runs
	}
	return cmd, unknownCommand(cmd, rest[0])
}

// newHelpCommand returns the command help of cobra, which also refuses a word that is not a command.
func newHelpCommand() *cobra.Command {
	return &cobra.Command{
		Use:               "help [command]",
		Short:             "Help about any command",
		ValidArgsFunction: completeCommand,
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

// completeCommand completes the next word of the path of a command.
func completeCommand(cmd *cobra.Command, words []string, begun string) (names []string, _ cobra.ShellCompDirective) {
	group, rest, err := cmd.Root().Find(words)
	if err == nil && len(rest) == 0 {
		for _, sub := range group.Commands() {
			if sub.IsAvailableCommand() && strings.HasPrefix(sub.Name(), begun) {
				names = append(names, cobra.CompletionWithDesc(sub.Name(), sub.Short))
			}
		}
	}
	return names, cobra.ShellCompDirectiveNoFileComp
}

// usageWord matches a part of a command's Use: a group in brackets, a flag with its value, or an argument.
var usageWord = regexp.MustCompile(`\[[^\]]*\](?:\.\.\.)?|\([^)]*\)|--?\S+(?: [A-Z][A-Z0-9@]*)?|\S+`)

// arguments returns the arguments that a command's Use requires.
func arguments(use string) (names []string) {
	_, use, _ = strings.Cut(use, " ")
	for _, word := range usageWord.FindAllString(use, -1) {
		if !strings.HasPrefix(word, "[") && !strings.HasPrefix(word, "-") && !strings.HasPrefix(word, "(-") {
			names = append(names, word)
		}
	}
	return names
}

// quoted matches the name of a flag in cobra's error.
var quoted = regexp.MustCompile(`"([^"]+)"`)

// nameMissing returns an error that names the missing arguments and flags of a command line. If none is missing, it
// returns err.
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
