// Package typo finds the known word that a misspelt word probably means, for the "did you mean" of a message. It counts
// the edits that turn one word into the other.
package typo

import (
	"strings"
	"unicode/utf8"
)

// Nearest returns the known word that a misspelt word most probably means. Case is ignored. A known word is near if at
// most one edit separates the two, and one more edit for every eight letters of word. If two known words have the same
// distance, the first one is returned. A known word that begins with word ("DECRYPT_EEK" for "DECRYPT") is near, too.
// ok is false if no known word is near. Nearest is for unknown words: it does not check whether word is in known.
func Nearest(word string, known []string) (nearest string, ok bool) {
	const shortestBeginning = 3 // letters; too many known words begin with one or two given letters
	w := strings.ToLower(word)
	best := 2 + len(w)/8 // one more than the allowed edits
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

// DidYouMean returns the end of a message about an unknown word: "; did you mean X?", where show formats X. It returns
// "" if no known word is near.
func DidYouMean(word string, known []string, show func(string) string) string {
	if near, ok := Nearest(word, known); ok {
		return "; did you mean " + show(near) + "?"
	}
	return ""
}

// Distance returns the number of edits that turn a into b, but at most limit. An edit adds, removes or replaces a
// letter, or swaps two neighbours. No letter is edited twice (the optimal string alignment distance).
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
