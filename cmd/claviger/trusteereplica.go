package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strconv"

	"github.com/spf13/cobra"

	"claviger"
	"claviger/console"
	"claviger/trustee"
	"claviger/trustee/location"
	"claviger/trustee/replica"
	"claviger/trustee/server"
)

// peerFlags name the other of two trustees.
type peerFlags struct {
	url, cert, role string
}

func (p *peerFlags) define(cmd *cobra.Command) {
	cmd.Flags().StringVar(&p.url, "peer", "", "URL of the other of two Key Trustee Servers, as https://HOST:11371; it has the same identity")
	cmd.Flags().StringVar(&p.cert, "peer-cert", "", "file with the other's certificate, a copy of its "+trustee.TLSCert)
	cmd.Flags().StringVar(&p.role, "role", "", "active or passive: at the first start with --peer; afterwards claviger trustee promote changes it")
	cmd.MarkFlagsRequiredTogether("peer", "peer-cert")
}

// pair is what the flags say.
func (p *peerFlags) pair() replica.Pair {
	return replica.Pair{URL: p.url, Cert: p.cert, First: server.Role(p.role)}
}

// replicaMetrics adds how one of two trustees stands.
func replicaMetrics(m *console.Metrics, r *replica.Replica) {
	for name, figure := range map[string]struct {
		help string
		of   func(st *replica.Standing, synced bool) float64
	}{
		"active": {"1 where this is the active one of two, 0 the passive.", func(st *replica.Standing, _ bool) float64 { return truth(st.Role == server.RoleActive) }},
		"synced": {"1 where this is the active one and knows that the passive has all.", func(_ *replica.Standing, synced bool) float64 { return truth(synced) }},
		"alone":  {"1 while the active one goes on without the passive, as an operator said.", func(st *replica.Standing, _ bool) float64 { return truth(st.Alone) }},
		"epoch":  {"How many promotions there have been.", func(st *replica.Standing, _ bool) float64 { return float64(st.Epoch) }},
		"change": {"Number of the last change in the log.", func(st *replica.Standing, _ bool) float64 { return float64(st.Head.Seq) }},
	} {
		m.Query("claviger_trustee_"+name, figure.help, func(ctx context.Context) (float64, error) {
			st, synced, err := r.State(ctx)
			return figure.of(&st, synced), err
		})
	}
}

func truth(b bool) float64 {
	if b {
		return 1
	}
	return 0
}

// askTrustee sends an operator's request to the server of this host.
func askTrustee(ctx context.Context, folder *trustee.Folder, url, verb string, args, into any) error {
	conf, err := replica.OperatorConfig(folder, url)
	if err != nil {
		return err
	}
	c, err := trustee.NewClient(conf)
	if err != nil {
		return &exitError{exitUsage, fmt.Errorf("--url: %w", err)}
	}
	defer c.Close()
	err = c.Ask(ctx, verb, args, into)
	if claviger.Is(err, claviger.Invalid) {
		return &exitError{exitRefused, err}
	}
	return err
}

// trusteeCommand is a subcommand that asks the server of this host, or works on its
// database where the deposits are in one.
func trusteeCommand(use, short, long string, args cobra.PositionalArgs, database func(cmd *cobra.Command, args []string, folder *trustee.Folder) error,
	work func(cmd *cobra.Command, args []string, ask func(verb string, args, into any) error) error) *cobra.Command {
	var dir, url string
	cmd := &cobra.Command{Use: use, Short: short, Long: long, Args: args, RunE: func(cmd *cobra.Command, a []string) error {
		folder, err := location.Load(dir)
		if err != nil {
			return err
		}
		if folder.Store != "" {
			return database(cmd, a, folder)
		}
		return work(cmd, a, func(verb string, args, into any) error {
			return askTrustee(cmd.Context(), folder, url, verb, args, into)
		})
	}}
	trusteeDirFlag(cmd, &dir)
	cmd.Flags().StringVar(&url, "url", "https://localhost:"+strconv.Itoa(trustee.Port), "the server of this host")
	return cmd
}

func newTrusteeStatus() *cobra.Command {
	var digest bool
	var output string
	checked := func() error {
		if output != "text" && output != "json" {
			return &exitError{exitUsage, fmt.Errorf("-o %q: text or json", output)}
		}
		return nil
	}
	cmd := trusteeCommand("status [--digest] [-o json]", "Show which of two trustees is active, and whether the other has all",
		"Exit status: 0 the other has all, or there is none; 3 the other does not answer, the two are not in step, or a store takes no changes.", cobra.NoArgs,
		func(cmd *cobra.Command, _ []string, folder *trustee.Folder) error {
			if err := checked(); err != nil {
				return err
			}
			return printDatabaseStatus(cmd, folder, digest, output)
		},
		func(cmd *cobra.Command, _ []string, ask func(string, any, any) error) error {
			if err := checked(); err != nil {
				return err
			}
			var report replica.StatusReport
			err := ask(trustee.VerbStatus, replica.StatusArgs{Digest: digest}, &report)
			if server.IsSingle(err) {
				text := "this   single: it answers, and has no other Key Trustee Server that it could be compared with\n"
				if output == "json" {
					text = "{\n  \"role\": \"single\"\n}\n"
				}
				fault := server.SingleFault(err)
				if fault != "" && output != "json" {
					text = fmt.Sprintf("this   single: its store takes no changes: %s\n", fault)
				} else if fault != "" {
					list, err := json.MarshalIndent(map[string]string{"role": "single", "fault": fault}, "", "  ")
					if err != nil {
						return err
					}
					text = string(list) + "\n"
				}
				if _, err = io.WriteString(cmd.OutOrStdout(), text); err == nil && fault != "" {
					err = &exitError{code: exitRefused} // all was said
				}
				return err
			}
			if err != nil {
				return err
			}
			if output == "json" {
				enc := json.NewEncoder(cmd.OutOrStdout())
				enc.SetIndent("", "  ")
				err = enc.Encode(report)
			} else {
				err = printTrusteeStatus(cmd.OutOrStdout(), &report)
			}
			if err == nil && !report.InStep() {
				err = &exitError{code: exitRefused} // all was said
			}
			return err
		})
	cmd.Flags().BoolVar(&digest, "digest", false, "compare all that both hold, by digest")
	cmd.Flags().StringVarP(&output, "output", "o", "text", "text or json")
	return cmd
}

func printTrusteeStatus(out io.Writer, r *replica.StatusReport) error {
	line := func(who string, st *replica.Standing, digest string) error {
		_, err := fmt.Fprintf(out, "%-6s %-8s epoch %d  change %d  alone %t", who, st.Role, st.Epoch, st.Head.Seq, st.Alone)
		if err == nil && digest != "" {
			_, err = fmt.Fprintf(out, "  digest %s", digest)
		}
		if err == nil {
			_, err = fmt.Fprintln(out)
		}
		if err == nil && st.Fault != "" {
			_, err = fmt.Fprintf(out, "       its store takes no changes: %s\n", st.Fault)
		}
		return err
	}
	err := line("this", &r.Standing, r.Digest)
	if r.Peer != nil {
		err = errors.Join(err, line("other", r.Peer, r.PeerDigest))
	} else {
		_, e := fmt.Fprintf(out, "other  does not answer: %s\n", r.PeerError)
		err = errors.Join(err, e)
	}
	if r.Lag > 0 {
		_, e := fmt.Fprintf(out, "the passive lacks %d changes\n", r.Lag)
		err = errors.Join(err, e)
	}
	if r.Peer != nil && r.Peer.Role == r.Role && r.Role == server.RolePassive {
		_, e := fmt.Fprintln(out, "both are passive, so that neither takes changes: claviger trustee promote at the one whose deposits count")
		err = errors.Join(err, e)
	}
	if r.Why != "" && (r.Diverged || r.Role == server.RoleActive && !r.Synced) {
		_, e := fmt.Fprintf(out, "not in step: %s\n", r.Why)
		err = errors.Join(err, e)
	}
	return err
}

// printStanding tells what became of the server of this host.
func printStanding(cmd *cobra.Command, st *replica.Standing) error {
	_, err := fmt.Fprintf(cmd.OutOrStdout(), "%s, epoch %d, alone %t\n", st.Role, st.Epoch, st.Alone)
	return err
}

func newTrusteePromote() *cobra.Command {
	var force bool
	cmd := trusteeCommand("promote [--force]", "Make the passive trustee of this host the active one",
		`promote has the active one yield, takes over what it has more, and becomes active; the other is passive from then on. It is refused where the other
does not answer: it may have acknowledged deposits alone. --force does it nevertheless. With the other away, changes need claviger trustee alone on too.

Where the deposits are in PostgreSQL, the standby that this trustee uses becomes the primary; that needs --force, since a standby cannot ask its
primary to yield, and EXECUTE on the function pg_promote.`, cobra.NoArgs,
		func(cmd *cobra.Command, _ []string, folder *trustee.Folder) error {
			return promoteDatabase(cmd, folder, force)
		},
		func(cmd *cobra.Command, _ []string, ask func(string, any, any) error) error {
			var st replica.Standing
			if err := ask(trustee.VerbPromote, replica.PromoteArgs{Force: force}, &st); err != nil {
				if claviger.Is(err, claviger.Unavailable) {
					return &exitError{exitRefused, err}
				}
				return err
			}
			return printStanding(cmd, &st)
		})
	cmd.Flags().BoolVar(&force, "force", false, "whatever the other one says, or does not say")
	return cmd
}

func newTrusteeAlone() *cobra.Command {
	return trusteeCommand("alone on|off", "Let the active trustee of this host go on without the passive",
		`alone on has the active acknowledge deposits that it alone has, while the passive is away. It ends by itself as soon as the passive has all again, or
by off.`, cobra.ExactArgs(1), notOfDatabase, func(cmd *cobra.Command, args []string, ask func(string, any, any) error) error {
			if args[0] != "on" && args[0] != "off" {
				return &exitError{exitUsage, fmt.Errorf("%q: on or off", args[0])}
			}
			var st replica.Standing
			if err := ask(trustee.VerbAlone, replica.AloneArgs{On: args[0] == "on"}, &st); err != nil {
				return err
			}
			return printStanding(cmd, &st)
		})
}

func newTrusteeResync() *cobra.Command {
	var drop bool
	cmd := trusteeCommand("resync [--drop]", "Bring the passive trustee up to date from the active one of this host, and compare them by digest",
		`resync is what the active does by itself. Where the passive holds what the active lacks, organizations, clients, deposits, or another state of them, it
names that and changes nothing. With --drop the passive loses it; a copy of the passive's store stays beside it, of which claviger trustee recover brings things back.`, cobra.NoArgs, notOfDatabase, func(cmd *cobra.Command, _ []string, ask func(string, any, any) error) error {
			var r replica.ResyncResult
			if err := ask(trustee.VerbResync, replica.ResyncArgs{Drop: drop}, &r); err != nil {
				return err
			}
			if !r.Dropped.None() {
				fmt.Fprintf(cmd.OutOrStdout(), "dropped at the passive: %s\n", r.Dropped)
			}
			if r.Kept != "" {
				fmt.Fprintf(cmd.OutOrStdout(), "what the passive held before is in %s on its host; claviger trustee recover lists it there, and with its name at the active one brings it back\n", r.Kept)
			}
			_, err := fmt.Fprintf(cmd.OutOrStdout(), "equal by digest, at change %d\n", r.Head.Seq)
			return err
		})
	cmd.Flags().BoolVar(&drop, "drop", false, "even where the passive holds what the active lacks")
	return cmd
}

func printDatabaseStatus(cmd *cobra.Command, f *trustee.Folder, digest bool, output string) error {
	st, err := location.StatusOf(cmd.Context(), f, digest)
	if err != nil {
		return err
	}
	if output == "json" {
		enc := json.NewEncoder(cmd.OutOrStdout())
		enc.SetIndent("", "  ")
		return enc.Encode(st)
	}
	_, err = fmt.Fprintf(cmd.OutOrStdout(), "this   %-8s %d deposits, %d deleted, in %s\n", st.Role, st.Deposits, st.Deleted, st.Store)
	if err == nil && digest {
		_, err = fmt.Fprintf(cmd.OutOrStdout(), "digest %s\n", st.Digest)
	}
	return err
}

// promoteDatabase makes the standby that holds the deposits a primary.
func promoteDatabase(cmd *cobra.Command, f *trustee.Folder, force bool) error {
	uri, err := location.Promote(cmd.Context(), f, force)
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(cmd.OutOrStdout(), "%s is the primary now: this trustee is the active one\n", uri)
	return err
}

// notOfDatabase refuses what PostgreSQL's replication does by itself.
func notOfDatabase(*cobra.Command, []string, *trustee.Folder) error {
	return &exitError{exitUsage, errors.New("the deposits of this trustee are in PostgreSQL, whose replication keeps the " +
		"second copy: synchronous_standby_names says whether a deposit waits for it, and pg_basebackup or pg_rewind brings " +
		"a standby back")}
}
