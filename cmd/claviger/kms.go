package main

import (
	"fmt"

	"github.com/spf13/cobra"

	"claviger/kms"
)

func newKMSCommand() *cobra.Command {
	var o kms.Options
	var log logFlags
	cmd := &cobra.Command{
		Use:   "kms --conf DIR",
		Short: "Serve Hadoop's KMS protocol",
		Long: `kms serves Hadoop's KMS protocol by the files in DIR: core-site.xml, kms-site.xml, kms-acls.xml, ssl-server.xml.
It ends on SIGTERM or SIGINT when the requests under way are served.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) (err error) {
			if cmd.Flags().Changed("http-port") && (o.Port < 0 || o.Port > 65535) {
				return &exitError{exitUsage, fmt.Errorf("--http-port %d: it must be from 0 to 65535", o.Port)}
			}
			if o.Log, o.Level, err = log.open(); err != nil {
				return err
			}
			return kms.Serve(cmd.Context(), o)
		},
	}
	flags := cmd.Flags()
	flags.StringVar(&o.Dir, "conf", "", "configuration folder")
	flags.IntVar(&o.Port, "http-port", -1, "listen at this port instead of hadoop.kms.http.port; 0 takes any free one")
	flags.StringVar(&o.ReadyFile, "ready-file", "", "write the base URL into this file once requests are served")
	flags.BoolVar(&o.TLS, "tls", false, "serve https, as hadoop.kms.ssl.enabled does")
	log.define(cmd)
	flags.Lookup("log-level").Usage += "; /logLevel changes it"
	_ = cmd.MarkFlagRequired("conf") // the flag is defined above
	return cmd
}
