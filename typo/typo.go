// Package typo measures how many edits lie between two words. It finds the known word that a misspelt one
// probably means, for the "did you mean" of a message.
package typo

import (
	"strings"
	"unicode/utf8"
)

// Nearest returns the known word that a misspelt word most probably means. Case is ignored. Up to one edit is
// forgiven, and one more for every eight letters of the word; of two words at the same distance the first
// wins. A word that begins a known one ("DECRYPT" of "DECRYPT_EEK") counts as near, too. ok is false where no
// known word is near. Nearest is for unknown words: it does not check that word is one of known.
func Nearest(word string, known []string) (nearest string, ok bool) {
	const shortestBeginning = 3 // letters; more words begin with fewer than could be meant
	w := strings.ToLower(word)
	best := 2 + len(w)/8 // one more than is forgiven
	beginning := ""
	for _, k := range known {
		lower := strings.ToLower(k)
		if d := Distance(w, lower, best); d < best {
			nearest, best, ok = k, d, true
		}
		if beginning == "" && len(w) >= shortestBeginning && strings.HasPrefix(lower, w) {
			beginning = k
		}
	}
	if !ok && beginning != "" {
		return beginning, true
	}
	return nearest, ok
}

// DidYouMean returns the end of a message that names an unknown word: "; did you mean X?", with X as show
// writes it; "" where no known word is near.
func DidYouMean(word string, known []string, show func(string) string) string {
	if near, ok := Nearest(word, known); ok {
		return "; did you mean " + show(near) + "?"
	}
	return ""
}

// Distance returns the number of edits that turn a into b, or limit where there are limit or more. An edit adds
// a letter, removes one, replaces one, or swaps two neighbours; no letter is edited twice (the optimal string
// alignment distance).
func Distance(a, b string, limit int) int {
	if d := utf8.RuneCountInString(a) - utf8.RuneCountInString(b); d >= limit || -d >= limit {
		return limit
	}
	x, y := []rune(a), []rune(b)
	before := make([]int, len(y)+1) // the row before last
	last := make([]int, len(y)+1)
	row := make([]int, len(y)+1)
	for j := range last {
		last[j] = j
	}
	for i := 1; i <= len(x); i++ {
		row[0] = i
		lowest := i
		for j := 1; j <= len(y); j++ {
			cost := 1
			if x[i-1] == y[j-1] {
				cost = 0
			}
			row[j] = min(last[j]+1, row[j-1]+1, last[j-1]+cost)
			if i > 1 && j > 1 && x[i-1] == y[j-2] && x[i-2] == y[j-1] {
				row[j] = min(row[j], before[j-2]+1)
			}
			lowest = min(lowest, row[j])
		}
		if lowest >= limit {
			return limit
		}
		before, last, row = last, row, before
	}
	return min(last[len(y)], limit)
}
