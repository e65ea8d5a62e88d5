package terminal

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
)

// Manual returns the command that writes man pages, from the help of the commands. date is the date of the pages, as
// RFC 3339; any other text means that they have none. SOURCE_DATE_EPOCH, in seconds, replaces it.
//
// The generator of cobra is not used, because it reads help as Markdown and would join the lines of tables.
func Manual(date string) *cobra.Command {
	var dir string
	cmd := &cobra.Command{
		Use:               "man [--dir DIR] [COMMAND]...",
		Short:             "Write man pages",
		ValidArgsFunction: completeCommand,
		RunE: func(cmd *cobra.Command, words []string) error {
			day, err := pageDate(date, os.Getenv("SOURCE_DATE_EPOCH"))
			if err != nil {
				return err
			}
			described, rest, err := cmd.Root().Find(words)
			if err != nil || len(rest) > 0 {
				return unknownCommand(described, strings.Join(rest, " "))
			}
			if dir != "" {
				if err := os.MkdirAll(dir, 0o755); err != nil { //nolint:gosec // public
					return err
				}
				return writePages(described, dir, day)
			}
			_, err = io.WriteString(cmd.OutOrStdout(), manPage(described, day))
			return err
		},
	}
	cmd.Flags().StringVar(&dir, "dir", "", "write the page of the command, and those of its subcommands, into this "+
		"folder, instead of one page to standard output")
	return cmd
}

// pageDate returns the day of man pages as 2026-12-01; "" for none.
func pageDate(date, epoch string) (string, error) {
	if epoch != "" {
		seconds, err := strconv.ParseInt(epoch, 10, 64)
		if err != nil {
			return "", fmt.Errorf("SOURCE_DATE_EPOCH: %w", err)
		}
		return time.Unix(seconds, 0).UTC().Format(time.DateOnly), nil
	}
	t, err := time.Parse(time.RFC3339, date)
	if err != nil {
		return "", nil //nolint:nilerr // the build has no date
	}
	return t.UTC().Format(time.DateOnly), nil
}

// writePages writes the page of a command, and those of its subcommands. The command help has no page.
func writePages(cmd *cobra.Command, dir, day string) error {
	file := filepath.Join(dir, pageName(cmd)+".1")
	if err := os.WriteFile(file, []byte(manPage(cmd, day)), 0o644); err != nil { //nolint:gosec // public
		return err
	}
	for _, sub := range cmd.Commands() {
		if !sub.IsAvailableCommand() {
			continue
		}
		if err := writePages(sub, dir, day); err != nil {
			return err
		}
	}
	return nil
}

// pageName returns the name of a command's man page, without the section.
func pageName(cmd *cobra.Command) string { return strings.ReplaceAll(cmd.CommandPath(), " ", "-") }

// manPage returns the man page of a command.
func manPage(cmd *cobra.Command, day string) string {
	var b strings.Builder
	name, program := pageName(cmd), cmd.Root().Name()
	fmt.Fprintf(&b, ".TH %s 1 \"%s\" %s \"%s manual\"\n", roff(strings.ToUpper(name)), day, program, program)
	fmt.Fprintf(&b, ".nh\n.ad l\n.SH NAME\n%s \\- %s\n.SH SYNOPSIS\n", roff(name), roff(cmd.Short))
	path := cmd.CommandPath()
	fmt.Fprintf(&b, "\\fB%s\\fR%s\n", roff(path), roff(strings.TrimPrefix(cmd.UseLine(), path)))
	if cmd.HasAvailableSubCommands() {
		fmt.Fprintf(&b, ".br\n\\fB%s\\fR [command]\n", roff(path))
	}
	var description, exit []string
	for _, p := range strings.Split(cmd.Long, "\n\n") {
		if strings.HasPrefix(p, "Exit status") {
			exit = append(exit, p)
		} else {
			description = append(description, p)
		}
	}
	roffText(&b, "DESCRIPTION", description)
	if cmd.HasAvailableSubCommands() {
		b.WriteString(".SH COMMANDS\n")
		for _, sub := range cmd.Commands() {
			if sub.IsAvailableCommand() {
				roffEntry(&b, sub.Name(), sub.Short)
			}
		}
	}
	roffFlags(&b, cmd)
	roffText(&b, "EXIT STATUS", exit)
	if cmd.Example != "" {
		roffText(&b, "EXAMPLES", []string{cmd.Example})
	}
	b.WriteString(".SH SEE ALSO\n")
	if cmd.HasParent() {
		fmt.Fprintf(&b, "\\fB%s\\fR(1),\n", roff(pageName(cmd.Parent())))
	}
	for _, sub := range cmd.Commands() {
		if sub.IsAvailableCommand() {
			fmt.Fprintf(&b, "\\fB%s\\fR(1),\n", roff(pageName(sub)))
		}
	}
	fmt.Fprintf(&b, "/usr/share/doc/%s/docs\n", program)
	return b.String()
}

// roffText writes a section of paragraphs. Lines that begin with a blank stay as they are, see Wrap.
func roffText(b *strings.Builder, title string, paragraphs []string) {
	if len(paragraphs) == 0 {
		return
	}
	b.WriteString(".SH " + title + "\n")
	for i, p := range paragraphs {
		if i > 0 {
			b.WriteString(".PP\n")
		}
		table := false
		for line := range strings.SplitSeq(p, "\n") {
			if fixed := strings.HasPrefix(line, " "); fixed != table {
				b.WriteString(map[bool]string{true: ".nf\n", false: ".fi\n"}[fixed])
				table = fixed
			}
			b.WriteString(roff(line) + "\n")
		}
		if table {
			b.WriteString(".fi\n")
		}
	}
}

// flagLine matches a line of pflag's usage that begins a flag: names and type, and the text.
var flagLine = regexp.MustCompile(`^ {2,6}(-\S.*?)  +(\S.*)$`)

// roffFlags writes the flags of a command.
func roffFlags(b *strings.Builder, cmd *cobra.Command) {
	cmd.InitDefaultHelpFlag()
	cmd.InitDefaultVersionFlag()
	b.WriteString(".SH OPTIONS\n")
	for line := range strings.Lines(cmd.LocalFlags().FlagUsages()) {
		if m := flagLine.FindStringSubmatch(strings.TrimRight(line, "\n")); m != nil {
			roffEntry(b, m[1], m[2])
		} else {
			b.WriteString(roff(strings.TrimSpace(line)) + "\n")
		}
	}
}

// roffEntry writes a name and its text.
func roffEntry(b *strings.Builder, name, text string) {
	fmt.Fprintf(b, ".TP\n\\fB%s\\fR\n%s\n", roff(name), roff(text))
}

var roffSpecial = strings.NewReplacer(`\`, `\e`, `-`, `\-`)

// roff returns a line that roff shows as it is.
func roff(line string) string {
	line = roffSpecial.Replace(line)
	if strings.HasPrefix(line, ".") || strings.HasPrefix(line, "'") {
		line = `\&` + line
	}
	return line
}
