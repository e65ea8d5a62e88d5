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

func newHSMAdopt() *cobra.Command {
	var c recovery.Choice
	var conf, description, confirm string
	var dryRun bool
	var out terminal.Output
	cmd := &cobra.Command{
		Use:   "adopt --conf DIR [NAME | NAME@VERSION]... [--all] [--confirm DIGEST]",
		Short: "Recover the metastore's records of keys that the token holds",
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
