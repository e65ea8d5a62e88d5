package main

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"claviger/terminal"
	"claviger/trustee"
	trusteehost "claviger/trustee/host"
	"claviger/trustee/location"
	"claviger/trustee/server"
)

// trusteeFolder is the path of a trustee's folder in Cloudera's installation.
const trusteeFolder = "/var/lib/keytrustee/.keytrustee"

const trusteeStoreHelp = "PostgreSQL database for the deposits, as postgresql://USER@HOST:PORT/DATABASE, without a " +
	"password (default: the file " + location.FileName + ")"

func newTrusteeCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "trustee", Short: "Set up and run a Key Trustee Server", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() }}
	cmd.AddCommand(newTrusteeInit(), newTrusteeBackup(), newTrusteeRestore(), newTrusteeServe(), newTrusteeStatus(),
		newTrusteePromote(), newTrusteeAlone(), newTrusteeResync(), newTrusteeRecover(), newTrusteeAdopt())
	return cmd
}

// trusteeDirFlag defines the flag for the trustee's folder, with Cloudera's name and with that of all other commands.
func trusteeDirFlag(cmd *cobra.Command, dir *string) {
	cmd.Flags().StringVar(dir, "confdir", trusteeFolder, "the trustee's folder; --conf means the same")
	terminal.Synonym(cmd, "conf", "confdir")
}

func newTrusteeInit() *cobra.Command {
	var dir, store string
	var hosts []string
	var empty bool
	var out terminal.Output
	cmd := &cobra.Command{
		Use:   "init [--confdir DIR] [--hostname NAME]... [--store URI] [--empty-store]",
		Short: "Make a trustee's identity, certificate and store",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return initTrustee(cmd.Context(), &out, dir, location.InitOptions{Hosts: hosts, Store: store, Empty: empty})
		},
	}
	trusteeDirFlag(cmd, &dir)
	out.Flag(cmd)
	cmd.Flags().StringVar(&store, "store", "", trusteeStoreHelp)
	cmd.Flags().BoolVar(&empty, "empty-store", false,
		"make an empty store, although a trustee has served another one from this folder")
	cmd.Flags().StringArrayVar(&hosts, "hostname", nil, "a name or address that clients use for this host; can be "+
		"repeated, with this host's own name first (default: the system's host name)")
	return cmd
}

// initializedTrustee is the report of trustee init.
type initializedTrustee struct {
	Identity    string     `json:"identity"`
	Certificate string     `json:"certificate,omitempty"` // file; empty: the certificate existed
	Expires     *time.Time `json:"expires,omitempty"`
}

// initTrustee makes the missing parts of a folder, and prints what it made.
func initTrustee(ctx context.Context, out *terminal.Output, dir string, o location.InitOptions) error {
	done, err := location.Init(ctx, dir, o)
	if err != nil {
		return err
	}
	report := initializedTrustee{Identity: fmt.Sprint(done.Folder.Identity), Certificate: done.Certificate}
	if done.Certificate != "" {
		report.Expires = &done.Expires
	}
	return out.Write(report, func(w io.Writer) {
		fmt.Fprintf(w, "Initialized directory for %s\n", report.Identity)
		if report.Expires != nil {
			fmt.Fprintf(w, "self-signed certificate for %s, good until %s: %s; clients must "+
				"trust it, or replace it with a certificate of your authority\n", strings.Join(done.Hosts, ", "),
				report.Expires.UTC().Format(time.DateOnly), report.Certificate)
		}
	})
}

type trusteeFlags struct {
	dir, listen, ready string
	keyhsm, keyhsmCert string
	withoutKeyHSM      bool
	metrics            string
	connections        connectionFlags
	log                logFlags
	peer               peerFlags
}

func newTrusteeServe() *cobra.Command {
	var f trusteeFlags
	cmd := &cobra.Command{
		Use:   "serve [--confdir DIR] [--listen ADDRESS] [--ready-file FILE]",
		Short: "Run a Key Trustee Server",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			log, _, err := f.log.open()
			if err != nil {
				return err
			}
			if r := server.Role(f.peer.role); r != "" && r != server.RoleActive && r != server.RolePassive {
				return &exitError{exitUsage, fmt.Errorf("--role %q: it must be %s or %s",
					r, server.RoleActive, server.RolePassive)}
			}
			return serveTrustee(cmd.Context(), f, log)
		},
	}
	trusteeDirFlag(cmd, &f.dir)
	cmd.Flags().StringVar(&f.listen, "listen", ":"+strconv.Itoa(trustee.Port),
		"address and port; port 0 chooses a free one")
	cmd.Flags().StringVar(&f.ready, "ready-file", "", readyFileHelp)
	cmd.Flags().StringVar(&f.keyhsm, "keyhsm", "", "URL of the Key HSM that wraps each new deposit, as "+
		"https://localhost:9090; the Key HSM must trust the trustee's certificate")
	cmd.Flags().StringVar(&f.keyhsmCert, "keyhsm-cert", "",
		"file with the Key HSM's certificate, a copy of its server.crt")
	cmd.Flags().BoolVar(&f.withoutKeyHSM, "without-keyhsm", false,
		"serve without a Key HSM, although it has wrapped deposits in the store; they cannot be opened")
	cmd.Flags().StringVar(&f.metrics, "metrics-listen", "", metricsListenHelp)
	f.connections.define(cmd)
	cmd.MarkFlagsRequiredTogether("keyhsm", "keyhsm-cert")
	cmd.MarkFlagsMutuallyExclusive("keyhsm", "without-keyhsm")
	f.peer.define(cmd)
	f.log.define(cmd)
	return cmd
}

// serveTrustee runs the server until ctx ends.
func serveTrustee(ctx context.Context, f trusteeFlags, log *slog.Logger) error {
	limits, err := f.connections.limits()
	if err != nil {
		return err
	}
	return trusteehost.Run(ctx, trusteehost.Config{
		Folder: f.dir, Listen: f.listen, ReadyFile: f.ready, Connections: limits, KeyHSM: f.keyhsm,
		KeyHSMCertificate: f.keyhsmCert, WithoutKeyHSM: f.withoutKeyHSM, Pair: f.peer.pair(),
		Metrics: f.metrics, MetricsName: metricsListenName, Log: log,
	})
}
