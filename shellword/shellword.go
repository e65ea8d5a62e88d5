// Package shellword quotes words for the commands that a message tells an operator to run. A name of a key, zone,
// snapshot or file may come from another machine, and the operator pastes the command into a shell.
//
// It imports only the standard library, and every room may import it.
package shellword

import (
	"fmt"
	"strings"
	"unicode"
	"unicode/utf8"
)

// Quote returns the word in a form that bash, ksh and zsh read as exactly that word: the word, or 'word', or $'word'
// with an escape for each byte that a terminal would not show as it is. The result has no line end and no control
// character. A word with a NUL byte has no such form, because no command can be given one; Quote returns "", so check
// such words by Possible.
func Quote(word string) string {
	switch {
	case !Possible(word):
		return ""
	case word != "" && !strings.ContainsFunc(word, special) && !strings.HasPrefix(word, "="):
		return word
	case utf8.ValidString(word) && !strings.ContainsFunc(word, hidden):
		return "'" + strings.ReplaceAll(word, "'", `'\''`) + "'"
	}
	var b strings.Builder
	b.WriteString("$'")
	for len(word) > 0 {
		r, size := utf8.DecodeRuneInString(word)
		// At a prompt, bash replaces ! before it reads quotes, and takes \' for the end of a quote. So the result has
		// neither.
		if r == utf8.RuneError && size == 1 || hidden(r) || strings.ContainsRune(`\'!`, r) {
			for _, c := range []byte(word[:size]) {
				fmt.Fprintf(&b, `\x%02x`, c)
			}
		} else {
			b.WriteRune(r)
		}
		word = word[size:]
	}
	return b.String() + "'"
}

// Possible reports whether a command can be given the word: the system ends a word at a NUL byte.
func Possible(word string) bool { return !strings.ContainsRune(word, 0) }

// Command returns the words as one command, each quoted. It returns "" if a word cannot be quoted.
func Command(words ...string) string {
	quoted := make([]string, len(words))
	for i, word := range words {
		if !Possible(word) {
			return ""
		}
		quoted[i] = Quote(word)
	}
	return strings.Join(quoted, " ")
}

// special reports whether a shell may read a character as more than itself.
func special(r rune) bool {
	letter := r >= '0' && r <= '9' || r >= 'A' && r <= 'Z' || r >= 'a' && r <= 'z'
	return !letter && !strings.ContainsRune("/._-@:=+,%", r)
}

// hidden reports whether a terminal does not show a character, or shows another text because of it.
func hidden(r rune) bool { return !unicode.IsPrint(r) }
