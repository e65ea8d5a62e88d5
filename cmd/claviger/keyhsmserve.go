package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"os/signal"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"claviger/buildinfo"
	"claviger/console"
	"claviger/keyhsm"
	"claviger/owner"
	"claviger/pkcs11"
	"claviger/secret"
	"claviger/terminal"
	"claviger/web"
)

// keyHSMFlags are the flags of `keyhsm start`.
type keyHSMFlags struct {
	conf, listen, ready string
	log                 logFlags
	metrics             string
}

func newKeyHSMStart() *cobra.Command {
	var f keyHSMFlags
	cmd := &cobra.Command{
		Use: "start --conf DIR", Short: "Serve in the foreground", Args: cobra.NoArgs,
		Long: `start serves until SIGTERM or SIGINT, then lets requests under way end. SIGHUP, or claviger keyhsm reload, has it take over the
certificates, its own and those it trusts, without a restart. One server runs with a folder at a time.`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			log, _, err := f.log.open()
			if err != nil {
				return err
			}
			return serveKeyHSM(cmd.Context(), f, log)
		},
	}
	keyHSMConf(cmd, &f.conf)
	flags := cmd.Flags()
	flags.StringVar(&f.listen, "listen", "", "listen there instead of keyhsm.listen; port 0 takes any free one")
	flags.StringVar(&f.ready, "ready-file", "", "write the base URL into this file once requests are served")
	flags.StringVar(&f.metrics, "metrics-listen", "", metricsListenHelp)
	f.log.define(cmd)
	return cmd
}

func serveKeyHSM(ctx context.Context, f keyHSMFlags, log *slog.Logger) (err error) {
	buildinfo.Read().Log(log)
	set, warnings, err := keyhsm.ReadSettings(f.conf)
	if err != nil {
		return err
	}
	for _, w := range warnings {
		log.Warn(w)
	}
	if err := owner.RefuseRoot(set.PINFile); err != nil {
		return err
	}
	secrets := watchSecrets(log, func() []secret.File { return set.SecretFiles(f.conf) })
	if f.listen != "" {
		set.Listen = f.listen
	}
	limits, err := set.Connections(f.conf)
	if err != nil {
		return err
	}
	// Before anybody can learn of this process and send it one.
	hangup := make(chan os.Signal, 1)
	signal.Notify(hangup, syscall.SIGHUP)
	defer signal.Stop(hangup)
	run, err := claimRun(f.conf)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, run.Close()) }()
	cfg, err := set.PKCS11()
	if err != nil {
		return err
	}
	cfg.Log = log
	tok, err := pkcs11.Open(ctx, cfg)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, tok.Close()) }()
	keeper := keyhsm.NewKeeper(tok, set.ID(), set.KeyLabel)
	server, err := keyhsm.NewServer(keeper, set.Identity, log)
	if err != nil {
		return err
	}
	st := keeper.Status(ctx)
	if st.State != keyhsm.Ready {
		// It serves all the same: older deposits may have another pair, and the HSM may
		// come back; but nobody shall learn of it only from a trustee.
		log.Error("the pair that wraps new deposits does not work", "state", st.State, "detail", st.Detail)
	}
	connections := web.NewConnections(limits, log)
	stopConsole, err := console.Serve(ctx, metricsListenName, f.metrics, console.Config{Log: log, Metrics: keyHSMMetrics(server, tok, connections), Checks: append(keyHSMChecks(server, keeper), console.ConnectionCheck(connections), secrets.check())})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, stopConsole()) }()
	background, stop := context.WithCancel(ctx)
	var group sync.WaitGroup
	defer func() { stop(); group.Wait() }()
	group.Go(func() { reloadOnHangup(background, hangup, server, log) })
	group.Go(func() {
		web.WarnOfExpiry(background, server.Certificate, "claviger keyhsm settings tells which files hold it; SIGHUP, or claviger keyhsm reload, has new ones taken over; have the trustees trust it first", log)
	})
	return (&web.Server{
		Address: set.Listen, AddressName: "keyhsm.listen", Connections: connections, Limits: keyhsm.Limits, TLS: server.TLS(),
		Handler: server.Handler(), OnReady: run.write, ReadyFile: f.ready,
		About: []any{"token", st.Token, "key", st.KeyID, "state", st.State}, Log: log,
	}).Run(ctx)
}

func reloadOnHangup(ctx context.Context, hangup <-chan os.Signal, server *keyhsm.Server, log *slog.Logger) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-hangup:
			if err := server.Reload(); err != nil {
				log.Error("the certificates cannot be read anew; those read before stay in force", "err", err)
			} else {
				log.Info("certificates were read anew")
			}
		}
	}
}

// runFile tells which process serves a folder. It is locked for as long as that
// process lives, so that one that was killed leaves nothing that misleads.
type runFile struct{ *os.File }

// runState is its content.
type runState struct {
	PID int    `json:"pid"`
	URL string `json:"url"`
}

func runPath(dir string) string { return filepath.Join(dir, "keyhsm.run") }

// claimRun takes the file for this process.
func claimRun(dir string) (*runFile, error) {
	f, err := os.OpenFile(runPath(dir), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	// Those who only look hold the lock for a moment.
	for range 10 {
		if err = syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); !errors.Is(err, syscall.EWOULDBLOCK) { //nolint:gosec // a descriptor is small
			break
		}
		time.Sleep(50 * time.Millisecond)
	}
	if err != nil {
		if errors.Is(err, syscall.EWOULDBLOCK) {
			err = fmt.Errorf("a Key HSM runs with the folder %s already; claviger keyhsm status --conf %s shows it", dir, dir)
		}
		return nil, errors.Join(err, f.Close())
	}
	return &runFile{f}, nil
}

func (r *runFile) write(url string) error {
	data, err := json.Marshal(runState{os.Getpid(), url})
	if err != nil {
		return err
	}
	if err := r.Truncate(0); err != nil {
		return err
	}
	_, err = r.WriteAt(append(data, '\n'), 0)
	return err
}

// readRun tells which process serves the folder now.
func readRun(dir string) (runState, error) {
	var st runState
	none := fmt.Errorf("no Key HSM runs with the folder %s; start it: claviger keyhsm start --conf %s", dir, dir)
	f, err := os.Open(runPath(dir))
	if errors.Is(err, fs.ErrNotExist) {
		return st, none
	}
	if err != nil {
		return st, err
	}
	defer f.Close()
	err = syscall.Flock(int(f.Fd()), syscall.LOCK_SH|syscall.LOCK_NB) //nolint:gosec // a descriptor is small
	if err == nil {
		return st, none // the lock ends with the file
	}
	if !errors.Is(err, syscall.EWOULDBLOCK) {
		return st, err
	}
	data, err := io.ReadAll(io.LimitReader(f, 4<<10))
	if err != nil {
		return st, err
	}
	if err := json.Unmarshal(data, &st); err != nil || st.PID <= 0 || st.URL == "" {
		return st, fmt.Errorf("the Key HSM of folder %s is starting; try again", dir)
	}
	return st, nil
}

// askKeyHSM asks the server of a folder for its status.
func askKeyHSM(ctx context.Context, set *keyhsm.Settings, run runState) (st keyhsm.Status, err error) {
	c, err := set.Admin(run.URL)
	if err != nil {
		return st, err
	}
	defer func() { err = errors.Join(err, c.Close()) }()
	return c.Status(ctx)
}

func newKeyHSMStatus() *cobra.Command {
	var conf string
	var out terminal.Output
	cmd := &cobra.Command{
		Use: "status --conf DIR", Short: "Show how the server is that runs", Args: cobra.NoArgs,
		Long: "status asks the server that runs with DIR, which has its pair wrap and unwrap once. Exit status 3 where it cannot, or where none runs.",
		RunE: func(cmd *cobra.Command, _ []string) error {
			set, err := readKeyHSM(cmd.ErrOrStderr(), conf)
			if err != nil {
				return err
			}
			run, err := readRun(conf)
			if err != nil {
				return noAnswer(err)
			}
			st, err := askKeyHSM(cmd.Context(), &set, run)
			if err != nil {
				return noAnswer(err)
			}
			err = out.Write(struct {
				runState
				keyhsm.Status
			}{run, st}, func(w io.Writer) {
				row := func(name, format string, args ...any) { fmt.Fprintf(w, "%s\t%s\n", name, fmt.Sprintf(format, args...)) }
				row("state", "%s", st.State)
				if st.Detail != "" {
					row("because", "%s", st.Detail)
				}
				row("serves", "%s, process %d, since %s", run.URL, run.PID, st.Started.Format(time.RFC3339))
				row("token", "%s, serial %s, %s %s", st.Token, st.Serial, st.Manufacturer, st.Model)
				row("key", "%s, id %s", st.KeyLabel, st.KeyID)
				if st.KeyBits > 0 {
					row("wraps by", "RSA of %d bits, OAEP with %s", st.KeyBits, st.OAEP)
				}
				row("certificate", "good until %s", st.CertificateUntil.Format(time.DateOnly))
				row("trusted", "%d certificates, read at %s", st.Trusted, st.Loaded.Format(time.RFC3339))
				if st.LoadError != "" {
					row("not reloaded", "%s", st.LoadError)
				}
				row("since the start", "%d wrapped, %d unwrapped, %d refused", st.Wrapped, st.Unwrapped, st.Refused)
			})
			if err == nil && st.State != keyhsm.Ready {
				err = &exitError{code: exitRefused}
			}
			return err
		},
	}
	keyHSMConf(cmd, &conf)
	out.Flag(cmd)
	return cmd
}

// reloadPatience is how long reload waits for the server to say that it has.
const reloadPatience = 15 * time.Second

func newKeyHSMReload() *cobra.Command {
	var conf string
	cmd := &cobra.Command{
		Use: "reload --conf DIR", Short: "Have the server that runs take over its certificates anew", Args: cobra.NoArgs,
		Long: "reload sends SIGHUP to the server that runs with DIR, and waits until it has read its own certificate and those that it trusts. Where it cannot read them, those in force stay.",
		RunE: func(cmd *cobra.Command, _ []string) error {
			set, err := readKeyHSM(cmd.ErrOrStderr(), conf)
			if err != nil {
				return err
			}
			run, err := readRun(conf)
			if err != nil {
				return err
			}
			since := time.Now()
			if err := syscall.Kill(run.PID, syscall.SIGHUP); err != nil {
				return fmt.Errorf("sending SIGHUP to process %d: %w", run.PID, err)
			}
			ctx, cancel := context.WithTimeout(cmd.Context(), reloadPatience)
			defer cancel()
			for {
				st, err := askKeyHSM(ctx, &set, run)
				switch {
				case err == nil && !st.Loaded.Before(since) && st.LoadError != "":
					return fmt.Errorf("the server keeps the certificates that it had: %s", st.LoadError)
				case err == nil && !st.Loaded.Before(since):
					fmt.Fprintf(cmd.OutOrStdout(), "reloaded: %d certificates are trusted; the server's own is good until %s\n", st.Trusted, st.CertificateUntil.Format(time.DateOnly))
					return nil
				}
				select {
				case <-ctx.Done():
					return errors.Join(fmt.Errorf("the server, process %d, does not say that it has reloaded; its log tells more", run.PID), err)
				case <-time.After(100 * time.Millisecond):
				}
			}
		},
	}
	keyHSMConf(cmd, &conf)
	return cmd
}
