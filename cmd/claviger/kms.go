package main

import (
	"fmt"

	"github.com/spf13/cobra"

	"claviger/doctor"
	"claviger/kms"
	"claviger/kms/diagnosis"
	"claviger/terminal"
)

func newKMSCommand() *cobra.Command {
	var o kms.Options
	var log logFlags
	var check bool
	cmd := &cobra.Command{
		Use:   "kms --conf DIR",
		Short: "Serve Hadoop's KMS protocol",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) (err error) {
			if cmd.Flags().Changed("http-port") && (o.Port < 0 || o.Port > 65535) {
				return &exitError{exitUsage, fmt.Errorf("--http-port %d: it must be from 0 to 65535", o.Port)}
			}
			if check {
				return doctor.Run(cmd.Context(), &doctor.Options{Conf: o.Dir, Only: diagnosis.Configuration(),
					Out: *terminal.To(cmd.OutOrStdout())}, doctorRoles, cmd.ErrOrStderr())
			}
			if o.Log, o.Level, err = log.open(); err != nil {
				return err
			}
			return kms.Serve(cmd.Context(), o)
		},
	}
	flags := cmd.Flags()
	flags.StringVar(&o.Dir, "conf", "", "configuration folder")
	flags.IntVar(&o.Port, "http-port", -1, "port to use instead of hadoop.kms.http.port; 0 chooses a free one")
	flags.StringVar(&o.ReadyFile, "ready-file", "", readyFileHelp)
	flags.BoolVar(&check, "check", false, "check the configuration as doctor does, and serve nothing")
	flags.BoolVar(&o.TLS, "tls", false, "serve https, as with hadoop.kms.ssl.enabled")
	hideDefault(cmd, "http-port")
	log.define(cmd)
	flags.Lookup("log-level").Usage += "; /logLevel changes it at run time"
	_ = cmd.MarkFlagRequired("conf") // the flag is defined above
	return cmd
}
