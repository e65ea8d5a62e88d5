package main

import "github.com/spf13/cobra"

// hideDefault leaves the default of a number out of the help text. The default -1 means that the flag was not given.
func hideDefault(cmd *cobra.Command, flag string) { cmd.Flags().Lookup(flag).DefValue = "0" }

// readyFileHelp is the help text of the flag --ready-file of each server.
const readyFileHelp = "write the base URL into this file when the server accepts requests"

// metricsListenName is the flag for the address of a server's metrics.
const metricsListenName = "--metrics-listen"

// metricsListenHelp is the help text of metricsListenName.
const metricsListenHelp = "serve /metrics, /healthz and /readyz over plain http at this address, as 127.0.0.1:9091; " +
	"every client that can connect can read them (default: not served)"
