package terminal

import (
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// completions write the script with which a shell completes the command lines of a program.
var completions = map[string]func(root *cobra.Command, w io.Writer) error{
	"bash": func(root *cobra.Command, w io.Writer) error {
		if err := root.GenBashCompletionV2(w, true); err != nil {
			return err
		}
		_, err := io.WriteString(w, strings.ReplaceAll(bashWords, "PROGRAM", root.Name()))
		return err
	},
	"zsh":  (*cobra.Command).GenZshCompletion,
	"fish": func(root *cobra.Command, w io.Writer) error { return root.GenFishCompletion(w, true) },
}

// bashWords replaces a function of cobra's script for bash, and adds one. Cobra's script needs the package
// bash-completion; with these functions, it also works without.
const bashWords = `
__PROGRAM_init_completion()
{
    COMPREPLY=()
    if declare -F _get_comp_words_by_ref >/dev/null 2>&1; then
        _get_comp_words_by_ref "$@" cur prev words cword
        return
    fi
    local line=${COMP_LINE:0:$COMP_POINT}
    read -ra words <<<"$line"
    if [[ $line == *[[:space:]] ]]; then
        words+=("")
    fi
    cword=$((${#words[@]} - 1))
    cur=${words[cword]}
    prev=${words[cword - 1]}
    if ! declare -F _filedir >/dev/null 2>&1; then
        _filedir()
        {
            local kind=-f
            [[ ${1-} == -d ]] && kind=-d
            mapfile -t COMPREPLY < <(compgen "$kind" -- "$cur")
        }
    fi
}
`

// Completion returns the command that writes the script with which a shell completes command lines.
func Completion() *cobra.Command {
	shells := slices.Sorted(maps.Keys(completions))
	return &cobra.Command{
		Use:       "completion " + strings.Join(shells, "|"),
		Short:     "Write the script with which a shell completes command lines",
		ValidArgs: shells,
		Args:      cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			write := completions[args[0]]
			if write == nil {
				return &UsageError{fmt.Errorf("%q: it must be %s", args[0], strings.Join(shells, ", "))}
			}
			return write(cmd.Root(), cmd.OutOrStdout())
		},
	}
}

// CompleteFolders has shells complete the values of these flags with names of folders, in a command and all its
// subcommands.
func CompleteFolders(root *cobra.Command, flags ...string) {
	root.Flags().VisitAll(func(f *pflag.Flag) {
		if slices.Contains(flags, f.Name) {
			_ = root.MarkFlagDirname(f.Name) // the command has the flag
		}
	})
	for _, sub := range root.Commands() {
		CompleteFolders(sub, flags...)
	}
}
