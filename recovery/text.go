package recovery

import (
	"cmp"
	"fmt"
	"io"
	"slices"
	"strings"

	"claviger"
	"claviger/provider/hsm"
)

// WriteText writes the survey as text, before anything is done: rows of columns that tabs separate.
func (a *Adoption) WriteText(w io.Writer) {
	list := slices.Concat(a.Chosen, a.Undecided)
	if len(list) == 0 {
		list = a.Candidates
	}
	if a.Misfit != "" {
		fmt.Fprintln(w, "the token and the metastore do not fit together:", a.Misfit)
	}
	for _, name := range a.Lost {
		fmt.Fprintf(w, "LOST\t%s\tis not on the token; --rebind gives it up\n", claviger.Printable(name))
	}
	if len(list) == 0 {
		fmt.Fprintln(w, "the metastore knows every key of claviger that the token holds")
		return
	}
	fmt.Fprintln(w, "KEY\tBITS\tVERSIONS\tIN THE METASTORE\tNOTE")
	for _, c := range list {
		a.candidateText(w, c)
	}
	fromSteps := !slices.ContainsFunc(list, func(c hsm.Candidate) bool { return c.Step == nil })
	fmt.Fprintf(w, "Not on the token: %s\n", missingFacts(a.Choice, fromSteps))
}

// candidateText writes a candidate of a survey: one row, or a row for each key to which its versions may belong.
func (a *Adoption) candidateText(w io.Writer, c hsm.Candidate) {
	known, note := "no", a.rulesNote(c)
	if c.Known {
		known, note = "yes", "its versions are added to the existing ones"
		if a.Choice.ACLName != "" || a.Choice.Description != nil {
			note += "; the key keeps its attributes and its description: --acl-name and --description apply to new " +
				"records only"
		}
	}
	if c.Unordered {
		note = "it is not known which version is the newest: roll the key afterwards"
	}
	if c.Why != "" {
		note = "cannot be adopted: " + c.Why
	} else if len(c.Keys) > 0 && !a.Choice.OneKey && !a.Aside {
		severalKeysText(w, c, known)
		return
	}
	numbers := make([]string, len(c.Versions))
	for i, o := range c.Versions {
		numbers[i] = o.Label[len(c.Key):]
	}
	fmt.Fprintf(w, "%s\t%d\t%s\t%s\t%s\n", claviger.Printable(c.Key), c.Versions[0].Bits,
		strings.Join(numbers, " "), known, note)
}

// rulesNote says which rules apply to a candidate that becomes a key.
func (a *Adoption) rulesNote(c hsm.Candidate) string {
	aclName, step := c.Key, ""
	if c.Step != nil {
		aclName = cmp.Or(c.Step.Attributes[claviger.ACLNameAttribute], aclName)
		step = fmt.Sprintf("; attributes, description and time of creation come from the interrupted step %q",
			c.Step.Op)
	}
	if a.Choice.ACLName != "" && len(a.Chosen) > 0 {
		aclName = a.Choice.ACLName
	}
	return "guarded by " + claviger.Printable("key.acl."+aclName+".*") + ", or the default rules" + step
}

// missingFacts lists what adopted keys lack. With fromSteps, an interrupted step has the rest for each key.
func missingFacts(choice Choice, fromSteps bool) string {
	cipher := fmt.Sprintf("cipher (assumed: %s)", claviger.DefaultCipher)
	const deleted = ", and which keys were deleted"
	if fromSteps {
		return cipher + deleted
	}
	facts := "attributes (key.acl.name), "
	if choice.ACLName != "" {
		facts = "attributes except key.acl.name, "
	}
	if choice.Description == nil {
		facts = "description, " + facts
	}
	return facts + cipher + ", time of creation" + deleted
}

// severalKeysText writes a row for each key to which versions of a candidate may belong.
func severalKeysText(w io.Writer, c hsm.Candidate, known string) {
	rest := make([]string, 0, len(c.Versions)) // versions of the metastore's key
	row := func(names []string, note string) {
		for i, name := range names {
			names[i] = claviger.Printable(name[len(c.Key):])
		}
		fmt.Fprintf(w, "%s\t%d\t%s\t%s\t%s\n", claviger.Printable(c.Key), c.Versions[0].Bits, strings.Join(names, " "),
			known, note)
	}
	for _, o := range c.Versions {
		if !slices.ContainsFunc(c.Keys, func(names []string) bool { return slices.Contains(names, o.Label) }) {
			rest = append(rest, o.Label)
		}
	}
	if len(rest) > 0 {
		row(rest, "versions of the metastore's key: name them to adopt only them")
	}
	aside := func(name string) bool {
		return slices.ContainsFunc(c.Versions, func(o hsm.Object) bool {
			return o.Label == name && o.Mark == hsm.Aside
		})
	}
	note := "perhaps a separate key, which had this name before or after the others: name " +
		"its versions, or use --one-key"
	if c.Known {
		note = "perhaps another key than the metastore's: set it aside, or use --one-key"
	}
	for _, names := range c.Keys {
		if slices.ContainsFunc(names, aside) {
			row(slices.Clone(names), "set aside: name its versions to adopt them")
			continue
		}
		row(slices.Clone(names), note)
	}
}
