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

func newHSMAdopt() *cobra.Command {
	var c recovery.Choice
	var conf, description, confirm string
	var dryRun bool
	var out terminal.Output
	cmd := &cobra.Command{
		Use:   "adopt --conf DIR [NAME | NAME@VERSION]... [--all] [--confirm DIGEST]",
		Short: "Make the records of keys anew that the token holds and the metastore does not know",
		Long: `adopt is for a metastore that was lost, or restored from a copy that is older than the token. Without names it lists the keys of which the
token holds versions that the metastore does not know. With names, or --all, it makes their records: of whole keys, or of newer versions of a
key that is there. It shows what it would do, and does it only where that is confirmed: at a terminal by typing how many keys they are,
otherwise by --confirm with the digest that it prints.

The token tells names, numbers and lengths; the check values are computed. It does not tell description, attributes, cipher, the time of
creation, nor which versions belonged to keys that were deleted and could have come back: choose the names with care, a key that is adopted
can be used. A key that was deleted and made anew is another one, with other rules: versions whose CKA_IDs do not begin alike may be of several
keys. They are listed apart, and are not made one key of, unless --one-key says that they are (older programs gave each version another
beginning). Name the versions of one of them (NAME@VERSION), and set the others aside. Without its attribute key.acl.name a key is guarded by the rules of its own name; --acl-name gives it another. Where a creation
or a migration that was broken off has made all of a key's versions, and the metastore has it, the key gets what that asked for. --aside leaves
versions as they are: requests for them are answered as before they were made, new versions get higher numbers, and they can be adopted later,
by the names of the versions (NAME@VERSION) alone. --all leaves out what was set aside, and keys that cannot be adopted as they are: it adopts
the others, lists these with the commands for each, and ends with exit status 3.

Nodes that share a metastore in PostgreSQL may serve meanwhile: they open the keys at once. With a metastore in SQLite, and with --rebind,
adopt refuses while a server uses the metastore. --rebind gives the token to this metastore where it is bound to one that is lost. Where the
token lacks keys that the metastore knows, it was initialised anew or they were destroyed: --rebind lists them as LOST, and gives them up, so
that new keys can be made. Exit status 0: done, or nothing to do; 3: there is something to adopt, and it is not confirmed, or cannot be adopted.`,
	}
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		c.Names, c.By = args, kms.OwnCaller().Name
		if cmd.Flags().Changed("description") {
			c.Description = &description
		}
		if (c.ACLName != "" || c.Description != nil) && (len(args) != 1 || c.All || c.Aside) {
			return &exitError{exitUsage, errors.New(
				"--acl-name and --description are for one key: name it, and nothing else")}
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
	flags.BoolVar(&c.All, "all", false, "all keys that are listed, but for those set aside and "+
		"those of which you must decide")
	flags.BoolVar(&c.Aside, "aside", false, "set the versions aside instead of adopting them")
	flags.BoolVar(&c.OneKey, "one-key", false,
		"the versions of each name are of one key, though their CKA_IDs do not say so")
	flags.BoolVar(&c.Rebind, "rebind", false, "give the token to this metastore, where it is bound to one "+
		"that is lost or has lost keys")
	flags.BoolVar(&dryRun, "dry-run", false, "show what would be done, and change nothing")
	flags.StringVar(&c.ACLName, "acl-name", "", "the key's attribute key.acl.name, as it was")
	flags.StringVar(&description, "description", "", "the key's description, as it was")
	flags.StringVar(&confirm, "confirm", "", "digest of the list that is to be adopted")
	_ = cmd.MarkFlagRequired("conf") // the flag is defined above
	return cmd
}

// surveyKeys opens the metastore for reading: a survey must not make a metastore that is not there.
func surveyKeys(cmd *cobra.Command, conf string, c recovery.Choice) (a *recovery.Adoption, err error) {
	err = withHSMService(cmd, conf, hsm.Inspect, func(ctx context.Context, svc *kms.Service, p *hsm.Provider) (err error) {
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

// adoptKeys opens the metastore for changes once the survey is confirmed, and adopts.
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

// adoptedText says what was done.
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
		text += fmt.Sprintf("next: claviger migrate plan --conf %s tells which of them the source %s has too; those "+
			"that were migrated from it before are taken over again by claviger migrate run --adopted NAME\n", conf,
			a.Source)
	}
	if a.Rebound {
		text += "the token belongs to this metastore now\n"
	}
	return text
}

// severalKeysText writes a row for each of the keys to which a candidate's versions may belong.
func severalKeysText(w io.Writer, c hsm.Candidate, known string) {
	rest := make([]string, 0, len(c.Versions)) // those of the metastore's key
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
		row(rest, "versions of the metastore's key: name them to adopt them alone")
	}
	aside := func(name string) bool {
		return slices.ContainsFunc(c.Versions, func(o hsm.Object) bool {
			return o.Label == name && o.Mark == hsm.Aside
		})
	}
	note := "perhaps a key of its own, which had this name before or after the others: name " +
		"its versions, or say --one-key"
	if c.Known {
		note = "perhaps another key than the metastore's: set it aside, or say --one-key"
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
	described := r.Choice.Description != nil
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
		labels := make([]string, len(c.Versions))
		for i, o := range c.Versions {
			labels[i] = o.Label[len(c.Key):]
		}
		aclName, asked := c.Key, ""
		if c.Step != nil {
			aclName = cmp.Or(c.Step.Attributes[claviger.ACLNameAttribute], aclName)
			asked = fmt.Sprintf("; attributes, description and time of creation are those of the "+
				"step %q, which was broken off", c.Step.Op)
		}
		if r.Choice.ACLName != "" && len(r.Chosen) > 0 {
			aclName = r.Choice.ACLName
		}
		known, note := "no", "guarded by "+claviger.Printable("key.acl."+aclName+".*")+", or the default rules"+asked
		switch {
		case c.Known && (r.Choice.ACLName != "" || described):
			known, note = "yes", "its versions are added to those that are there; it keeps its attributes: "+
				"--acl-name and --description are of new records alone"
		case c.Known:
			known, note = "yes", "its versions are added to those that are there"
		}
		if c.Unordered {
			note = "which of them is the newest is not known: roll the key afterwards"
		}
		if c.Why != "" {
			note = "cannot be adopted: " + c.Why
		} else if len(c.Keys) > 0 && !r.Choice.OneKey && !r.Aside {
			severalKeysText(w, c, known)
			continue
		}
		fmt.Fprintf(w, "%s\t%d\t%s\t%s\t%s\n", claviger.Printable(c.Key), c.Versions[0].Bits,
			strings.Join(labels, " "), known, note)
	}
	untold := "description, attributes (key.acl.name)"
	switch {
	case !slices.ContainsFunc(list, func(c hsm.Candidate) bool { return c.Step == nil }):
		fmt.Fprintf(w, "Not told by the token: cipher (taken to be %s), and which of them were deleted\n",
			claviger.DefaultCipher)
		return
	case r.Choice.ACLName != "" && described:
		untold = "attributes but key.acl.name"
	case r.Choice.ACLName != "":
		untold = "description, attributes but key.acl.name"
	case described:
		untold = "attributes (key.acl.name)"
	}
	fmt.Fprintf(w, "Not told by the token: %s, cipher (taken to be %s), time of creation, "+
		"and which of them were deleted\n", untold, claviger.DefaultCipher)
}
