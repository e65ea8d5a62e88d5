package terminal

import (
	"strings"
	"unicode/utf8"
)

// HelpWidth is the number of columns that a help text may take.
const HelpWidth = 80

// Wrap breaks the paragraphs of a text into lines of at most width columns. An empty line ends a paragraph.
// Each following line of a paragraph begins with indent. Lines that begin with a blank stay as they are:
// they are tables or examples. Line ends at the end of the text are left out.
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
