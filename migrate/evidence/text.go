package evidence

import (
	"fmt"
	"io"

	"claviger"
	"claviger/migrate"
)

// Text writes the result for people.
func (v *Verification) Text(w io.Writer) {
	if !v.Verified {
		fmt.Fprintf(w, "NOT VERIFIED: %s is not what the holder of this key has signed.\n",
			claviger.Printable(v.File))
		for _, f := range v.Findings {
			fmt.Fprintf(w, "  - %s\n", f)
		}
		fmt.Fprintf(w, "public key  %s\n", v.Key)
		fmt.Fprintln(w, "Believe nothing that the file shows. Get it again from the site.")
		return
	}
	fmt.Fprintf(w, "Verified: %s is what the holder of this key has signed.\n", claviger.Printable(v.File))
	verdict := "there is none in this file"
	if v.Verdict != "" {
		verdict = map[migrate.Outcome]string{migrate.Granted: "granted: no EDEK of the images needs the source",
			migrate.Needed: "EDEKs of the images need the source"}[v.Verdict]
		if verdict == "" {
			verdict = "the images do not show whether EDEKs need the source"
		}
	}
	source := "none is configured any more"
	if v.Source != "" {
		source = claviger.Printable(v.Source)
	}
	lines := [][2]string{{"public key", v.Key}, {"SHA-256", v.SHA256}, {"made", timeText(*v.Made)},
		{"by", claviger.Printable(v.User) + " on " + claviger.Printable(v.Host)}, {"build", v.Build.String()},
		{"source", source}, {"target", claviger.Printable(v.Target)}, {"verdict", verdict}}
	for _, a := range v.Accepted {
		lines = append(lines, [2]string{"accepted", claviger.Escape(a, "")})
	}
	for _, line := range append(lines, [2]string{"members", fmt.Sprint(len(v.Members))}) {
		fmt.Fprintf(w, "%-10s  %s\n", line[0], line[1])
	}
	for _, p := range v.Lacks {
		fmt.Fprintf(w, "It does not have %s: %s\n", p.What, p.Why)
	}
}
