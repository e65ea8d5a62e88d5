package terminal

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"claviger"
)

// Format is the format of a command's output. It is the value of the flag -o.
type Format string

// The formats.
const (
	Text Format = "text"
	JSON Format = "json"
)

// Set sets the value of the flag.
func (f *Format) Set(value string) error {
	switch Format(value) {
	case Text, JSON:
		*f = Format(value)
		return nil
	}
	return fmt.Errorf("it must be %s or %s", Text, JSON)
}

// String returns the value of the flag.
func (f *Format) String() string { return string(*f) }

// Type returns the type of the value, for a help text.
func (f *Format) Type() string { return "string" }

// Output writes the data of one command to its standard output, in the format that the flag -o chooses. Call Flag or
// JSONFlag when the command is made.
type Output struct {
	cmd    *cobra.Command
	format Format
	w      io.Writer // used if cmd is nil
}

// To returns an output that writes text to w. It is for work without a command line.
func To(w io.Writer) *Output { return &Output{w: w, format: Text} }

func (o *Output) writer() io.Writer {
	if o.cmd == nil {
		return o.w
	}
	return o.cmd.OutOrStdout()
}

// Flag gives a command the flag -o, with Text as the default.
func (o *Output) Flag(cmd *cobra.Command) { o.flag(cmd, Text) }

// JSONFlag gives a command the flag -o, with JSON as the default. It is for commands that replace commands of another
// product, which print only JSON.
func (o *Output) JSONFlag(cmd *cobra.Command) { o.flag(cmd, JSON) }

func (o *Output) flag(cmd *cobra.Command, def Format) {
	o.cmd, o.format = cmd, def
	cmd.Flags().VarP(&o.format, "output", "o", string(Text)+" or "+string(JSON))
	_ = cmd.RegisterFlagCompletionFunc("output", cobra.FixedCompletions([]string{string(Text), string(JSON)},
		cobra.ShellCompDirectiveNoFileComp)) // the flag is defined above
}

// JSON reports whether the output is JSON.
func (o *Output) JSON() bool { return o.format == JSON }

// Write writes v as JSON, with [] for a nil list and {} for a nil map. In the format Text, it writes the output of the
// function text. Tabs in that output align columns.
func (o *Output) Write(v any, text func(io.Writer)) error {
	var b bytes.Buffer
	if o.JSON() {
		enc := json.NewEncoder(&b)
		enc.SetIndent("", "  ")
		if err := enc.Encode(withLists(v)); err != nil {
			return err
		}
		_, err := io.WriteString(o.writer(), Safe(b.String()))
		return err
	}
	text(&b)
	w := tabwriter.NewWriter(o.writer(), 0, 0, 2, ' ', 0)
	if _, err := io.WriteString(w, Safe(b.String())); err != nil {
		return err
	}
	return w.Flush()
}

// Printf writes a remark for people to standard output. If the output is JSON, it writes nothing.
func (o *Output) Printf(format string, args ...any) error {
	if o.JSON() {
		return nil
	}
	return Fprintf(o.writer(), format, args...)
}

// Fprintf is fmt.Fprintf for a terminal: the text passes through Safe.
func Fprintf(w io.Writer, format string, args ...any) error {
	_, err := io.WriteString(w, Safe(fmt.Sprintf(format, args...)))
	return err
}

// Safe escapes characters that are unsafe on a terminal. It keeps line ends and tabs. The meaning of JSON does not
// change: only strings in it can hold such characters.
func Safe(text string) string { return claviger.Escape(text, "\n\t") }
