package main

import (
	"context"
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"claviger/pkcs11"
	"claviger/terminal"
	"claviger/tlskey"
)

func newHSMTLSKey() *cobra.Command {
	var r tlskey.Request
	var kind string
	var out terminal.Output
	cmd := &cobra.Command{
		Use:   "tls-key --host NAME [--host NAME]... [--type TYPE] URI",
		Short: "Make a private key for TLS in an HSM, and a certificate request",
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) (err error) {
			if r.Kind, err = pkcs11.ParseSigningKind(kind); err != nil {
				return &exitError{exitUsage, fmt.Errorf("--type: %w", err)}
			}
			r.URI = args[0]
			ctx, cancel := context.WithTimeout(cmd.Context(), hsmTimeout)
			defer cancel()
			done, err := r.Make(ctx)
			if err != nil {
				return err
			}
			if done.Made {
				fmt.Fprintf(cmd.ErrOrStderr(), "made a key in the token: %s\n", done.Kind)
			}
			return out.Write(&done, func(w io.Writer) { _, _ = io.WriteString(w, done.PEM) })
		},
	}
	cmd.Flags().StringArrayVar(&r.Hosts, "host", nil, "name or address of the server; may be repeated")
	cmd.Flags().StringVar(&kind, "type", string(pkcs11.P256), "of a new key: "+pkcs11.SigningKindNames())
	out.Flag(cmd)
	_ = cmd.MarkFlagRequired("host") // the flag is defined above
	return cmd
}
