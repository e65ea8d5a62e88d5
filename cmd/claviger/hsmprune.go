package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"

	"claviger"
	"claviger/provider/hsm"
	"claviger/terminal"
)

// pruned is the report of hsm prune.
type pruned struct {
	hsm.Prunable
	Destroyed []hsm.Object `json:"destroyed"`
}

func newHSMPrune() *cobra.Command {
	var confirm string
	var older time.Duration
	var prompt *terminal.Prompt
	cmd := hsmCommand("prune --conf DIR [--older-than TIME] [--confirm DIGEST]",
		"Destroy orphaned keys on the token for ever", hsm.Destroy,
		func(ctx context.Context, p *hsm.Provider, out *terminal.Output) (err error) {
			if err := misfit(ctx, p); err != nil {
				return fmt.Errorf("nothing was destroyed: %w", err)
			}
			found, err := p.Prunable(ctx, older)
			if err != nil {
				return err
			}
			report := pruned{Prunable: found}
			if n := len(found.Orphans); n > 0 {
				if !out.JSON() {
					// The user must see what to confirm.
					if err := out.Write(nil, func(w io.Writer) { objectTable(w, found.Orphans) }); err != nil {
						return err
					}
				}
				if err = prompt.ConfirmList(confirm, found.Digest, n, "destroy these keys for ever"); err == nil {
					report.Destroyed, err = p.Prune(ctx, found.Orphans)
				}
			}
			return errors.Join(err, out.Write(report, func(w io.Writer) {
				for _, o := range report.Destroyed {
					fmt.Fprintf(w, "destroyed\t%s\t%s\n", o.ID, claviger.Printable(o.Label))
				}
				fmt.Fprintf(w,
					"%d of %d orphans destroyed; kept: %d younger than %v, %d that this metastore does not know\n",
					len(report.Destroyed), len(found.Orphans)+len(found.Recent), len(found.Recent),
					older, len(found.Unknown))
			}))
		})
	run := cmd.RunE
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if older < 0 {
			return &exitError{exitUsage, fmt.Errorf("--older-than %v: it must not be negative", older)}
		}
		prompt = terminal.NewPrompt(cmd)
		return run(cmd, args)
	}
	f := cmd.Flags()
	f.StringVar(&confirm, "confirm", "", "digest of the list of keys to destroy")
	f.DurationVar(&older, "older-than", 7*24*time.Hour, "keep keys that became orphans less than this time ago")
	f.Bool("yes", false, "not sufficient any more: see --confirm")
	_ = f.MarkDeprecated("yes", "it does not name the keys; use --confirm") // the flag is defined above
	return cmd
}
