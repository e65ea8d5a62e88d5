package main

import (
	"github.com/spf13/cobra"
)

// kmsFlags are the flags of `claviger kms`.
type kmsFlags struct {
	conf  string
	port  int
	ready string
	tls   bool
	log   logFlags
}

func newKMSCommand() *cobra.Command {
	var f kmsFlags
	cmd := &cobra.Command{
		Use:   "kms --conf DIR",
		Short: "Serve Hadoop's KMS protocol",
		Long: `kms serves Hadoop's KMS protocol by the files in DIR: core-site.xml, kms-site.xml, kms-acls.xml, ssl-server.xml.
It ends on SIGTERM or SIGINT when the requests under way are served.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			log, level, err := f.log.open()
			if err != nil {
				return err
			}
			return serveKMS(cmd.Context(), f, log, level)
		},
	}
	flags := cmd.Flags()
	flags.StringVar(&f.conf, "conf", "", "configuration folder")
	flags.IntVar(&f.port, "http-port", -1, "listen at this port instead of hadoop.kms.http.port; 0 takes any free one")
	flags.StringVar(&f.ready, "ready-file", "", "write the base URL into this file once requests are served")
	flags.BoolVar(&f.tls, "tls", false, "serve https, as hadoop.kms.ssl.enabled does")
	f.log.define(cmd)
	flags.Lookup("log-level").Usage += "; /logLevel changes it"
	_ = cmd.MarkFlagRequired("conf") // the flag is defined above
	return cmd
}
