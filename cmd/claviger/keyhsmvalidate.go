package main

import (
	"context"
	"fmt"
	"io"

	"github.com/spf13/cobra"

	keyhsmhost "claviger/keyhsm/host"
	"claviger/secret"
	"claviger/terminal"
	trusteehost "claviger/trustee/host"
)

func newKeyHSMValidate() *cobra.Command {
	var conf, dir string
	var out terminal.Output
	cmd := &cobra.Command{
		Use: "validate --conf DIR [--trustee DIR]", Short: "Check the settings, the token, the key pair and " +
			"the certificates", Args: cobra.NoArgs,
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
			return printChecks(&out, keyhsmhost.Validate(ctx, &set, keyhsmhost.Validation{
				Careful: true, Deposits: trusteehost.Deposits(dir)}))
		},
	}
	keyHSMConf(cmd, &conf)
	cmd.Flags().StringVar(&dir, "trustee", "",
		"folder of a trustee whose wrapped deposits are checked, as "+trusteeFolder)
	out.Flag(cmd)
	return cmd
}

// printChecks prints the checks. It returns an error if one of them failed.
func printChecks(out *terminal.Output, checks []keyhsmhost.Check) error {
	failed, tried := 0, 0
	for _, c := range checks {
		if c.NotTried {
			continue
		}
		if tried++; !c.OK {
			failed++
		}
	}
	err := out.Write(map[string]any{"ok": failed == 0, "checks": checks}, func(w io.Writer) {
		for _, c := range checks {
			result := "ok"
			switch {
			case c.NotTried:
				result = "-"
			case !c.OK:
				result = "FAILED"
			}
			fmt.Fprintf(w, "%s\t%s\t%s\n", result, c.Name, c.Detail)
		}
	})
	if err == nil && failed > 0 {
		err = &exitError{exitRefused, fmt.Errorf("%d of %d checks failed", failed, tried)}
	}
	return err
}
