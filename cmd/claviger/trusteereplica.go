package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strconv"

	"github.com/spf13/cobra"

	"claviger"
	"claviger/terminal"
	"claviger/trustee"
	"claviger/trustee/location"
	"claviger/trustee/replica"
	"claviger/trustee/server"
)

// peerFlags are the flags of a trustee that is one of two.
type peerFlags struct {
	url, cert, role string
}

func (p *peerFlags) define(cmd *cobra.Command) {
	cmd.Flags().StringVar(&p.url, "peer", "", "URL of the other Key Trustee Server of a pair, as "+
		"https://HOST:11371; both have the same identity")
	cmd.Flags().StringVar(&p.cert, "peer-cert", "",
		"file with the other server's certificate, a copy of its "+trustee.TLSCert)
	cmd.Flags().StringVar(&p.role, "role", "", "active or passive, for the first start with --peer; later "+
		"claviger trustee promote changes it")
	cmd.MarkFlagsRequiredTogether("peer", "peer-cert")
}

// pair returns the pair that the flags describe.
func (p *peerFlags) pair() replica.Pair {
	return replica.Pair{URL: p.url, Cert: p.cert, First: server.Role(p.role)}
}

// callTrustee sends an operator's request to the server of this host. It stores the answer in into.
func callTrustee(ctx context.Context, folder *trustee.Folder, url, verb string, args, into any) error {
	conf, err := replica.OperatorConfig(folder, url)
	if err != nil {
		return err
	}
	c, err := trustee.NewClient(conf)
	if err != nil {
		return &exitError{exitUsage, fmt.Errorf("--url: %w", err)}
	}
	defer c.Close()
	err = c.Request(ctx, verb, args, into)
	if claviger.Is(err, claviger.Invalid) {
		return &exitError{exitRefused, err}
	}
	return err
}

// trusteeCommand returns a subcommand that sends requests to the server of this host (work), or that works on its
// PostgreSQL database if the deposits are there (database).
func trusteeCommand(use, short string, args cobra.PositionalArgs,
	database func(cmd *cobra.Command, args []string, folder *trustee.Folder) error,
	work func(cmd *cobra.Command, args []string, call func(verb string, args, into any) error) error) *cobra.Command {
	var dir, url string
	cmd := &cobra.Command{Use: use, Short: short, Args: args,
		RunE: func(cmd *cobra.Command, a []string) error {
			folder, err := location.Load(dir)
			if err != nil {
				return err
			}
			if folder.Store != "" {
				return database(cmd, a, folder)
			}
			return work(cmd, a, func(verb string, args, into any) error {
				return callTrustee(cmd.Context(), folder, url, verb, args, into)
			})
		}}
	trusteeDirFlag(cmd, &dir)
	cmd.Flags().StringVar(&url, "url", "https://localhost:"+strconv.Itoa(trustee.Port), "the server of this host")
	return cmd
}

func newTrusteeStatus() *cobra.Command {
	var digest bool
	var out terminal.Output
	cmd := trusteeCommand("status [--digest] [-o json]",
		"Show which of two trustees is active, and whether they are equal", cobra.NoArgs,
		func(cmd *cobra.Command, _ []string, folder *trustee.Folder) error {
			return printDatabaseStatus(cmd.Context(), &out, folder, digest)
		},
		func(_ *cobra.Command, _ []string, call func(string, any, any) error) error {
			var report replica.StatusReport
			err := call(trustee.VerbStatus, replica.StatusArgs{Digest: digest}, &report)
			if server.IsSingle(err) {
				return printSingle(&out, server.SingleFault(err))
			}
			if err != nil {
				return err
			}
			err = out.Write(report, func(w io.Writer) { printTrusteeStatus(w, &report) })
			if err == nil && !report.Synchronized() {
				err = &exitError{code: exitRefused} // the output gives the reason
			}
			return err
		})
	cmd.Flags().BoolVar(&digest, "digest", false, "compare both stores by digest")
	out.Flag(cmd)
	return cmd
}

// printSingle shows a trustee that is not one of two. fault says why its store accepts no changes; "" if it does.
func printSingle(out *terminal.Output, fault string) error {
	single := struct {
		Fault string `json:"fault,omitempty"`
		Role  string `json:"role"`
	}{fault, "single"}
	text := "it answers, and is not one of two Key Trustee Servers"
	if fault != "" {
		text = "its store accepts no changes: " + fault
	}
	err := out.Write(single, func(w io.Writer) { fmt.Fprintf(w, "this   single: %s\n", text) })
	if err == nil && fault != "" {
		err = &exitError{code: exitRefused} // the output gives the reason
	}
	return err
}

func printTrusteeStatus(w io.Writer, r *replica.StatusReport) {
	line := func(who string, st *replica.Position, digest string) {
		fmt.Fprintf(w, "%-6s %-8s epoch %d  change %d  alone %t", who, st.Role, st.Epoch, st.Head.Seq, st.Alone)
		if digest != "" {
			fmt.Fprintf(w, "  digest %s", digest)
		}
		fmt.Fprintln(w)
		if st.Fault != "" {
			fmt.Fprintf(w, "       its store accepts no changes: %s\n", st.Fault)
		}
	}
	line("this", &r.Position, r.Digest)
	if r.Peer != nil {
		line("other", r.Peer, r.PeerDigest)
	} else {
		fmt.Fprintf(w, "other  does not answer: %s\n", r.PeerError)
	}
	if r.Lag > 0 {
		fmt.Fprintf(w, "the passive trustee lacks %d changes\n", r.Lag)
	}
	if r.Peer != nil && r.Peer.Role == r.Role && r.Role == server.RolePassive {
		fmt.Fprintln(w, "both are passive, so neither accepts changes: run claviger trustee promote "+
			"on the host of the trustee whose deposits are right")
	}
	if r.Why != "" && (r.Diverged || r.Role == server.RoleActive && !r.Synced) {
		fmt.Fprintf(w, "not synchronized: %s\n", r.Why)
	}
}

// printPosition shows the state of this host's server after a change.
func printPosition(out *terminal.Output, st *replica.Position) error {
	return out.Write(st, func(w io.Writer) { fmt.Fprintf(w, "%s, epoch %d, alone %t\n", st.Role, st.Epoch, st.Alone) })
}

func newTrusteePromote() *cobra.Command {
	var force bool
	var out terminal.Output
	cmd := trusteeCommand("promote [--force]", "Make the passive trustee of this host the active one",
		cobra.NoArgs,
		func(cmd *cobra.Command, _ []string, folder *trustee.Folder) error {
			return promoteDatabase(cmd.Context(), &out, folder, force)
		},
		func(_ *cobra.Command, _ []string, call func(string, any, any) error) error {
			var st replica.Position
			if err := call(trustee.VerbPromote, replica.PromoteArgs{Force: force}, &st); err != nil {
				if claviger.Is(err, claviger.Unavailable) {
					return &exitError{exitRefused, err}
				}
				return err
			}
			return printPosition(&out, &st)
		})
	cmd.Flags().BoolVar(&force, "force", false, "promote even if the other trustee does not answer or does not agree")
	out.Flag(cmd)
	return cmd
}

func newTrusteeAlone() *cobra.Command {
	var out terminal.Output
	cmd := trusteeCommand("alone on|off", "Let the active trustee of this host work without the passive one",
		cobra.ExactArgs(1), refuseForDatabase,
		func(_ *cobra.Command, args []string, call func(string, any, any) error) error {
			if args[0] != "on" && args[0] != "off" {
				return &exitError{exitUsage, fmt.Errorf("%q: it must be on or off", args[0])}
			}
			var st replica.Position
			if err := call(trustee.VerbAlone, replica.AloneArgs{On: args[0] == "on"}, &st); err != nil {
				return err
			}
			return printPosition(&out, &st)
		})
	out.Flag(cmd)
	return cmd
}

func newTrusteeResync() *cobra.Command {
	var drop bool
	var out terminal.Output
	cmd := trusteeCommand("resync [--drop]", "Bring the passive trustee up to date from the active "+
		"one, and compare them by digest",
		cobra.NoArgs, refuseForDatabase,
		func(_ *cobra.Command, _ []string, call func(string, any, any) error) error {
			var r replica.ResyncResult
			if err := call(trustee.VerbResync, replica.ResyncArgs{Drop: drop}, &r); err != nil {
				return err
			}
			return out.Write(r, func(w io.Writer) {
				if !r.Dropped.None() {
					fmt.Fprintf(w, "removed from the passive trustee: %s\n", r.Dropped)
				}
				if r.Kept != "" {
					fmt.Fprintf(w, "the passive trustee's former store is %s on its host; claviger trustee "+
						"recover lists it there, and restores its deposits on the host of the active trustee\n", r.Kept)
				}
				fmt.Fprintf(w, "equal by digest, at change %d\n", r.Head.Seq)
			})
		})
	cmd.Flags().BoolVar(&drop, "drop", false, "also remove from the passive trustee what the active one lacks")
	out.Flag(cmd)
	return cmd
}

func printDatabaseStatus(ctx context.Context, out *terminal.Output, f *trustee.Folder, digest bool) error {
	st, err := location.StatusOf(ctx, f, digest)
	if err != nil {
		return err
	}
	return out.Write(st, func(w io.Writer) {
		fmt.Fprintf(w, "this   %-8s %d deposits, %d deleted, in %s\n", st.Role, st.Deposits, st.Deleted, st.Store)
		if digest {
			fmt.Fprintf(w, "digest %s\n", st.Digest)
		}
	})
}

// promoteDatabase makes the PostgreSQL standby of this trustee the primary.
func promoteDatabase(ctx context.Context, out *terminal.Output, f *trustee.Folder, force bool) error {
	uri, err := location.Promote(ctx, f, force)
	if err != nil {
		return err
	}
	return out.Write(map[string]string{"primary": uri, "role": string(server.RoleActive)}, func(w io.Writer) {
		fmt.Fprintf(w, "%s is the primary now: this trustee is the active one\n", uri)
	})
}

// refuseForDatabase refuses a command for work that PostgreSQL's replication does.
func refuseForDatabase(*cobra.Command, []string, *trustee.Folder) error {
	return &exitError{exitUsage,
		errors.New("the deposits of this trustee are in PostgreSQL, whose replication keeps the second copy: " +
			"synchronous_standby_names sets whether a deposit waits for that copy, and pg_basebackup or pg_rewind " +
			"restores a standby")}
}
