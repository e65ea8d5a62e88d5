package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"

	"github.com/spf13/cobra"

	"claviger/keyhsm"
	keyhsmhost "claviger/keyhsm/host"
	"claviger/secret"
	"claviger/terminal"
	"claviger/trustee/location"
	"claviger/trustee/server"
)

func newKeyHSMValidate() *cobra.Command {
	var conf, dir string
	var out terminal.Output
	cmd := &cobra.Command{
		Use: "validate --conf DIR [--trustee DIR]", Short: "Check the settings, the token, the pair and the " +
			"certificates", Args: cobra.NoArgs,
		Long: "validate opens the token as the server does, and has the pair wrap and unwrap. It may be used beside " +
			"a server that runs. Exit status 3 where a check fails.\n\nA pair that works need not be the one that a " +
			"trustee's deposits are wrapped by. With --trustee, the folder of a trustee on this host, which may run, " +
			"it counts its wrapped deposits by pair, and opens one of each. Its folder must be readable for this " +
			"user, and may belong to another.",
		RunE: func(cmd *cobra.Command, _ []string) error {
			set, err := readKeyHSM(cmd.ErrOrStderr(), conf)
			if err != nil {
				return err
			}
			for _, fault := range secret.Exposed(set.SecretFiles(conf)...) {
				fmt.Fprintf(cmd.ErrOrStderr(), "claviger: warning: %s\n", fault)
			}
			ctx, cancel := context.WithTimeout(cmd.Context(), hsmTimeout)
			defer cancel()
			var deposits keyhsmhost.Deposits
			if dir != "" {
				deposits = func(ctx context.Context, keeper *keyhsm.Keeper) (string, error) {
					return openDeposits(ctx, keeper, dir)
				}
			}
			checks := keyhsmhost.Validate(ctx, &set, deposits)
			failed, tried := 0, 0
			for _, c := range checks {
				if c.NotTried {
					continue
				}
				if tried++; !c.OK {
					failed++
				}
			}
			err = out.Write(map[string]any{"ok": failed == 0, "checks": checks}, func(w io.Writer) {
				for _, c := range checks {
					word := "ok"
					switch {
					case c.NotTried:
						word = "-"
					case !c.OK:
						word = "FAILED"
					}
					fmt.Fprintf(w, "%s\t%s\t%s\n", word, c.Name, c.Detail)
				}
			})
			if err == nil && failed > 0 {
				err = &exitError{exitRefused, fmt.Errorf("%d of %d checks failed", failed, tried)}
			}
			return err
		},
	}
	keyHSMConf(cmd, &conf)
	cmd.Flags().StringVar(&dir, "trustee", "",
		"folder of a trustee whose wrapped deposits are to be opened, as "+trusteeFolder)
	out.Flag(cmd)
	return cmd
}

// openDeposits opens one deposit of each pair that deposits of a trustee are wrapped by.
func openDeposits(ctx context.Context, keeper *keyhsm.Keeper, dir string) (text string, err error) {
	folder, err := location.Load(dir)
	if err != nil {
		return "", err
	}
	store, release, err := location.OpenReadOnly(ctx, folder)
	if err != nil {
		return "", err
	}
	defer func() { err = errors.Join(err, release()) }()
	w := server.NewWrapped(store, keeper)
	counts, err := w.Count(ctx)
	if err != nil {
		return "", err
	}
	if len(counts) == 0 {
		return "none of " + dir + " is wrapped", nil
	}
	for _, id := range slices.Sorted(maps.Keys(counts)) {
		text += fmt.Sprintf("%d wrapped by %s, ", counts[id], id)
	}
	return text + "one of each was opened", errors.Join(w.Unopened(ctx)...)
}
