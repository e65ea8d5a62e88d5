package claviger

import "strings"

// NearMiss returns the known word that a misspelt one most probably means, for
// the "did you mean" of a warning. Case is ignored; a word that is the beginning
// of a known one ("DECRYPT" of "DECRYPT_EEK") counts as near; otherwise up to
// one edit, and one more for every eight letters, is forgiven (an edit being a
// letter too many, too few, wrong, or swapped with its neighbour). Of equally
// near words the first wins. ok is false where nothing is near. A word that is
// known as it stands is not a miss: the caller asks for unknown ones only.
func NearMiss(word string, known []string) (nearest string, ok bool) {
	const shortestBeginning = 3 // letters; below that a beginning says nothing
	w := strings.ToLower(word)
	best := 2 + len(w)/8 // one more than is forgiven
	beginning := ""
	for _, k := range known {
		lower := strings.ToLower(k)
		if d := editDistance(w, lower, best); d < best {
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

// DidYouMean is the end of a message that names an unknown word: "; did you mean X?", or ""
// where none of the known words is near.
func DidYouMean(word string, known []string) string {
	if near, ok := NearMiss(word, known); ok {
		return "; did you mean " + Printable(near) + "?"
	}
	return ""
}

// editDistance is the optimal string alignment distance of a and b in bytes, or
// limit where it is not below it.
func editDistance(a, b string, limit int) int {
	if d := len(a) - len(b); d >= limit || -d >= limit {
		return limit
	}
	before := make([]int, len(b)+1) // the row before last
	last := make([]int, len(b)+1)
	row := make([]int, len(b)+1)
	for j := range last {
		last[j] = j
	}
	for i := 1; i <= len(a); i++ {
		row[0] = i
		lowest := i
		for j := 1; j <= len(b); j++ {
			cost := 1
			if a[i-1] == b[j-1] {
				cost = 0
			}
			row[j] = min(last[j]+1, row[j-1]+1, last[j-1]+cost)
			if i > 1 && j > 1 && a[i-1] == b[j-2] && a[i-2] == b[j-1] {
				row[j] = min(row[j], before[j-2]+1)
			}
			lowest = min(lowest, row[j])
		}
		if lowest >= limit {
			return limit
		}
		before, last, row = last, row, before
	}
	return min(last[len(b)], limit)
}
