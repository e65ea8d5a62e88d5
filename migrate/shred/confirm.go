package shred

import (
	"fmt"

	"claviger/migrate"
	"claviger/terminal"
)

// Confirm asks the operator to confirm that a leftover is shredded. A non-empty doubt says why a folder may be the only
// one with a KMS's private key. Then only a typed sentence confirms that; yes and the path do not.
func Confirm(l *migrate.Leftover, doubt string, yes bool, prompt *terminal.Prompt) (bool, error) {
	want, what := l.Path, "its path"
	question := fmt.Sprintf("%s\n%s\nType its path to shred it: ", l.Path, l.What)
	switch {
	case doubt != "":
		want, what = Sentence(l.Path), "that sentence"
		if yes {
			l.Remaining = append(l.Remaining, "nothing proves that it is a copy ("+doubt+"), so --yes does not "+
				"shred it: run the command again without --yes, and type the sentence for which it asks")
			return false, nil
		}
		question = fmt.Sprintf("%s\n%s, as it seems: nothing proves that it is a copy (%s). If a Key Trustee KMS "+
			"still uses this folder, all keys of that KMS are lost with it.\nTo shred it, type: %s\n",
			l.Path, l.What, doubt, want)
	case yes:
		return true, nil
	}
	typed, err := prompt.Ask("%s", question)
	if err != nil {
		return false, err
	}
	if typed != want {
		l.Remaining = append(l.Remaining, fmt.Sprintf("%q is not %s, so nothing was changed", typed, what))
		return false, nil
	}
	return true, nil
}

// Sentence is what an operator types to take responsibility for shredding a folder.
func Sentence(dir string) string { return "no KMS needs the private key in " + dir }
