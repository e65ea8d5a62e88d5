package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"claviger"
	"claviger/kms"
	"claviger/provider/hsm"
	"claviger/recovery"
	"claviger/terminal"
)

const hsmAdoptHelp = `adopt is for a metastore that was lost, or that was restored from a copy older than the token.
Without names it lists the keys that have versions on the token and not in the metastore. With names, or --all, it
makes the missing records: of whole keys, or of newer versions of an existing key. It first shows what it would do,
and does it only if you confirm. At a terminal, type the number of keys. Otherwise repeat the command with --confirm
and the digest that adopt prints.

The token holds the names, version numbers and lengths, and adopt computes the check values. The token does not hold
the description, the attributes, the cipher and the time of creation. It does not show which keys were deleted either,
and an adopted key can be used again. So choose the names with care.

The rules for a key follow its attribute key.acl.name. Without this attribute they follow the key's own name.
--acl-name sets the attribute, and --description the description. If an interrupted creation or migration has made all
versions of a key, and the metastore has its record, the key gets the attributes and the description of that request.

A key that was deleted and made again is another key, with other rules. Versions whose CKA_IDs begin differently may
belong to several keys. adopt lists them separately and does not make one key of them. Name the versions of one key
(NAME@VERSION), and set the others aside. Older programs gave each version of a key another beginning: for such a key,
use --one-key.

--aside sets versions aside. Requests for them are answered as before, and new versions get higher numbers. To adopt
them later, name each version (NAME@VERSION). --all skips versions that are set aside, and keys that adopt cannot
adopt without a decision. It adopts the other keys, prints the commands for each skipped key, and ends with exit
status 3.

If nodes share a metastore in PostgreSQL, they can serve meanwhile, and they use the keys at once. With a metastore in
SQLite, and with --rebind, adopt is refused while a server uses the metastore.

--rebind binds the token to this metastore, if the token is bound to a metastore that is lost. If the token lacks keys
of the metastore, the token was initialized again or the keys were destroyed. --rebind lists these keys as LOST and
gives them up, so that new keys can be made.

Exit status 0: done, or nothing to do; 3: there are keys to adopt, and they are not confirmed or cannot be adopted.`

func newHSMAdopt() *cobra.Command {
	var c recovery.Choice
	var conf, description, confirm string
	var dryRun bool
	var out terminal.Output
	cmd := &cobra.Command{
		Use:   "adopt --conf DIR [NAME | NAME@VERSION]... [--all] [--confirm DIGEST]",
		Short: "Recover the metastore's records of keys that the token holds",
		Long:  hsmAdoptHelp,
	}
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		c.Names, c.By = args, kms.OwnCaller().Name
		if cmd.Flags().Changed("description") {
			c.Description = &description
		}
		if (c.ACLName != "" || c.Description != nil) && (len(args) != 1 || c.All || c.Aside) {
			return &exitError{exitUsage, errors.New(
				"--acl-name and --description are for one key: give exactly one name")}
		}
		if c.All && len(args) > 0 {
			return &exitError{exitUsage, errors.New("--all and names exclude each other")}
		}
		a, err := surveyKeys(cmd, conf, c)
		if err != nil {
			return err
		}
		if !out.JSON() {
			if err := out.Write(a, func(w io.Writer) { adoptionText(w, a) }); err != nil {
				return err
			}
		}
		if !dryRun {
			err = adoptKeys(cmd, conf, a, confirm, &out)
		}
		if out.JSON() {
			return errors.Join(err, out.Write(a, nil))
		}
		return err
	}
	flags := cmd.Flags()
	flags.StringVar(&conf, "conf", "", "configuration folder")
	out.Flag(cmd)
	flags.BoolVar(&c.All, "all", false, "adopt all listed keys, except those that are set aside and "+
		"those that need a decision")
	flags.BoolVar(&c.Aside, "aside", false, "set the versions aside instead of adopting them")
	flags.BoolVar(&c.OneKey, "one-key", false,
		"all versions of a name belong to one key, although their CKA_IDs begin differently")
	flags.BoolVar(&c.Rebind, "rebind", false, "bind the token to this metastore, and give up the keys "+
		"that the token lacks")
	flags.BoolVar(&dryRun, "dry-run", false, "show what adopt would do, and change nothing")
	flags.StringVar(&c.ACLName, "acl-name", "", "the former value of the key's attribute key.acl.name")
	flags.StringVar(&description, "description", "", "the former description of the key")
	flags.StringVar(&confirm, "confirm", "", "digest of the list of keys to adopt")
	_ = cmd.MarkFlagRequired("conf") // the flag is defined above
	return cmd
}

// surveyKeys lists what can be adopted. It only reads, so that it does not make a metastore that is missing.
func surveyKeys(cmd *cobra.Command, conf string, c recovery.Choice) (a *recovery.Adoption, err error) {
	err = withHSMService(cmd, conf, hsm.Inspect, func(ctx context.Context, svc *kms.Service, p *hsm.Provider) error {
		var err error
		if a, err = recovery.Survey(ctx, p, c); err != nil {
			return err
		}
		if source, ok := svc.ReencryptionSource(); ok {
			a.Source = source.URI()
		}
		return nil
	})
	return a, err
}

// adoptKeys adopts the keys of a survey after the user has confirmed it. It opens the metastore for writing then.
func adoptKeys(cmd *cobra.Command, conf string, a *recovery.Adoption, confirm string, out *terminal.Output) error {
	idle, err := a.Check(conf)
	if err != nil {
		return err
	}
	if idle != "" {
		return out.Printf("%s\n", idle)
	}
	what, n := "make records of these keys", len(a.Chosen)
	if a.Aside {
		what = "set the versions of these keys aside"
	}
	if lost := len(a.GivesUp()); lost > 0 {
		what += " and give up those that are LOST"
		n += lost
	}
	if err := terminal.NewPrompt(cmd).ConfirmList(confirm, a.Digest, n, what); err != nil {
		return err
	}
	access := hsm.Repair
	if a.Choice.Rebind {
		access = hsm.Rebind
	}
	if err := withHSM(cmd, conf, access, a.Adopt); err != nil {
		return err
	}
	if err := out.Printf("%s", adoptedText(a, conf)); err != nil {
		return err
	}
	return a.LeftOut(conf)
}

// adoptedText describes what was done.
func adoptedText(a *recovery.Adoption, conf string) string {
	verb := "adopted"
	if a.Aside {
		verb = "set aside"
	}
	text := fmt.Sprintf("%s: %d keys\n", verb, len(a.Done))
	if lost := len(a.GivesUp()); lost > 0 {
		text += fmt.Sprintf("given up: %d key versions that the token lacks\n", lost)
	}
	if a.Source != "" && !a.Aside && len(a.Done) > 0 {
		text += fmt.Sprintf("next: claviger migrate plan --conf %s shows which of them the source %s has too; for "+
			"keys that were migrated from it before, use claviger migrate run --adopted NAME\n", conf,
			a.Source)
	}
	if a.Rebound {
		text += "the token belongs to this metastore now\n"
	}
	return text
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

// adoptionText writes a survey for people, before anything is done.
func adoptionText(w io.Writer, r *recovery.Adoption) {
	list := slices.Concat(r.Chosen, r.Left)
	if len(list) == 0 {
		list = r.Candidates
	}
	if r.Misfit != "" {
		fmt.Fprintln(w, "the token and the metastore do not fit together:", r.Misfit)
	}
	for _, name := range r.Lost {
		fmt.Fprintf(w, "LOST\t%s\tis not on the token; --rebind gives it up\n", claviger.Printable(name))
	}
	if len(list) == 0 {
		fmt.Fprintln(w, "the metastore knows every key of claviger that the token holds")
		return
	}
	fmt.Fprintln(w, "KEY\tBITS\tVERSIONS\tIN THE METASTORE\tNOTE")
	for _, c := range list {
		candidateText(w, r, c)
	}
	fromSteps := !slices.ContainsFunc(list, func(c hsm.Candidate) bool { return c.Step == nil })
	fmt.Fprintf(w, "Not on the token: %s\n", missingFacts(r.Choice, fromSteps))
}

// candidateText writes a candidate of a survey: one row, or a row for each key to which its versions may belong.
func candidateText(w io.Writer, r *recovery.Adoption, c hsm.Candidate) {
	known, note := "no", rulesNote(r, c)
	if c.Known {
		known, note = "yes", "its versions are added to the existing ones"
		if r.Choice.ACLName != "" || r.Choice.Description != nil {
			note += "; it keeps its attributes and its description: --acl-name and --description apply to new " +
				"records only"
		}
	}
	if c.Unordered {
		note = "it is not known which version is the newest: roll the key afterwards"
	}
	if c.Why != "" {
		note = "cannot be adopted: " + c.Why
	} else if len(c.Keys) > 0 && !r.Choice.OneKey && !r.Aside {
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
func rulesNote(r *recovery.Adoption, c hsm.Candidate) string {
	aclName, step := c.Key, ""
	if c.Step != nil {
		aclName = cmp.Or(c.Step.Attributes[claviger.ACLNameAttribute], aclName)
		step = fmt.Sprintf("; attributes, description and time of creation come from the interrupted step %q",
			c.Step.Op)
	}
	if r.Choice.ACLName != "" && len(r.Chosen) > 0 {
		aclName = r.Choice.ACLName
	}
	return "guarded by " + claviger.Printable("key.acl."+aclName+".*") + ", or the default rules" + step
}

// missingFacts lists what adopted keys lack. With fromSteps, an interrupted step has the rest for each key.
func missingFacts(choice recovery.Choice, fromSteps bool) string {
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
