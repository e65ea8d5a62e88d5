package terminal

import (
	"io"
	"strings"
	"unicode/utf8"

	"github.com/spf13/cobra"
)

// HelpWidth is the number of columns that a help text may take.
const HelpWidth = 80

// Wrap breaks the paragraphs of a text into lines of at most width columns. An empty line ends a paragraph. Each line
// of a paragraph after the first begins with indent. Lines that begin with a blank do not change: they are tables,
// lists or examples. Wrap removes line ends at the end of the text.
func Wrap(text string, width int, indent string) string {
	var b strings.Builder
	var words []string
	flush := func() {
		writeWords(&b, words, width, indent)
		words = nil
	}
	for line := range strings.SplitSeq(text, "\n") {
		switch {
		case strings.TrimSpace(line) == "":
			flush()
			b.WriteByte('\n')
		case line[0] == ' ' || line[0] == '\t':
			flush()
			b.WriteString(line + "\n")
		default:
			words = append(words, strings.Fields(line)...)
		}
	}
	flush()
	return strings.TrimRight(b.String(), "\n")
}

// writeWords writes the words of one paragraph.
func writeWords(b *strings.Builder, words []string, width int, indent string) {
	if len(words) == 0 {
		return
	}
	used := 0
	for i, w := range words {
		n := utf8.RuneCountInString(w)
		switch {
		case i == 0:
		case used+1+n > width:
			b.WriteString("\n" + indent)
			used = utf8.RuneCountInString(indent)
		default:
			b.WriteByte(' ')
			used++
		}
		b.WriteString(w)
		used += n
	}
	b.WriteByte('\n')
}

// Help formats the help texts of a command and of its subcommands for HelpWidth columns.
func Help(root *cobra.Command) {
	root.SetUsageFunc(usage)
	wrapLong(root)
}

// wrapLong wraps the long help text of each command.
func wrapLong(cmd *cobra.Command) {
	if cmd.Long == "" {
		cmd.Long = cmd.Short
	}
	cmd.Long = Wrap(cmd.Long, HelpWidth, "")
	for _, sub := range cmd.Commands() {
		wrapLong(sub)
	}
}

// usage writes the same as cobra's usage template, in HelpWidth columns. It does not wrap examples.
func usage(cmd *cobra.Command) error {
	var b strings.Builder
	b.WriteString("Usage:\n")
	if cmd.Runnable() {
		b.WriteString(indented(cmd.UseLine()))
	}
	if cmd.HasAvailableSubCommands() {
		b.WriteString(indented(cmd.CommandPath() + " [command]"))
	}
	if cmd.Example != "" {
		b.WriteString("\nExamples:\n" + cmd.Example + "\n")
	}
	if cmd.HasAvailableSubCommands() {
		b.WriteString("\nAvailable Commands:\n")
		for _, sub := range cmd.Commands() {
			if sub.IsAvailableCommand() || sub.Name() == "help" {
				b.WriteString(entry(sub.Name(), sub.NamePadding(), sub.Short))
			}
		}
	}
	if flags := cmd.LocalFlags(); flags.HasAvailableFlags() {
		b.WriteString("\nFlags:\n" + flags.FlagUsagesWrapped(HelpWidth-flagOverhang))
	}
	if cmd.HasAvailableSubCommands() {
		b.WriteString("\n" +
			Wrap("Use \""+cmd.CommandPath()+" [command] --help\" for more information about a command.",
				HelpWidth, "") + "\n")
	}
	_, err := io.WriteString(cmd.OutOrStderr(), b.String())
	return err
}

// flagOverhang is the number of columns by which pflag exceeds its width to avoid a short last line.
const flagOverhang = 5

// indented returns a line of usage, indented. A long line is broken into several.
func indented(line string) string {
	const indent = "  "
	return indent + strings.ReplaceAll(Wrap(line, HelpWidth-len(indent), "    "), "\n", "\n"+indent) + "\n"
}

// entry returns a line of the list of commands.
func entry(name string, padding int, short string) string {
	column := strings.Repeat(" ", max(padding-len(name), 0)+1)
	text := "  " + name + column
	room := HelpWidth - len(text)
	return text + strings.ReplaceAll(Wrap(short, room, ""), "\n", "\n"+strings.Repeat(" ", len(text))) + "\n"
}
