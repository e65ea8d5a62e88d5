package main

import (
	"context"
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"claviger/kms"
	"claviger/provider/hsm"
	"claviger/recovery"
	"claviger/shellword"
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
(NAME@VERSION), and set the others aside. Older versions of claviger gave each version of a key a CKA_ID that begins
differently: for such a key, use --one-key.

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
			if err := out.Write(a, a.WriteText); err != nil {
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
			"keys that were migrated from it before, use claviger migrate run --adopted NAME\n", shellword.Quote(conf),
			a.Source)
	}
	if a.Rebound {
		text += "the token belongs to this metastore now\n"
	}
	return text
}
