package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/spf13/cobra"

	"claviger/buildinfo"
	"claviger/console"
	"claviger/keyhsm"
	"claviger/owner"
	"claviger/secret"
	"claviger/terminal"
	"claviger/trustee"
	"claviger/trustee/location"
	"claviger/trustee/replica"
	"claviger/trustee/server"
	"claviger/web"
)

// trusteeFolder is where Cloudera keeps a trustee's folder.
const trusteeFolder = "/var/lib/keytrustee/.keytrustee"

const trusteeStoreHelp = "PostgreSQL database for the deposits, as postgresql://USER@HOST:PORT/DATABASE, without a " +
	"password; otherwise the file " + location.FileName

func newTrusteeCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "trustee", Short: "Set up and run a Key Trustee Server", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() }}
	cmd.AddCommand(newTrusteeInit(), newTrusteeBackup(), newTrusteeRestore(), newTrusteeServe(), newTrusteeStatus(), newTrusteePromote(), newTrusteeAlone(), newTrusteeResync(), newTrusteeRecover(), newTrusteeAdopt())
	return cmd
}

func trusteeDirFlag(cmd *cobra.Command, dir *string) {
	cmd.Flags().StringVar(dir, "confdir", trusteeFolder, "the trustee's folder")
}

func newTrusteeInit() *cobra.Command {
	var dir, store string
	var hosts []string
	var empty bool
	var out terminal.Output
	cmd := &cobra.Command{
		Use:   "init [--confdir DIR] [--hostname NAME]... [--store URI] [--empty-store]",
		Short: "Make a trustee's identity, certificate and store",
		Long: `init makes DIR: the OpenPGP identity that signs answers (4096 bits, which takes some seconds), a store, and a self-signed TLS certificate, unless
one lies in DIR/` + trustee.TLSCert + ` and DIR/` + trustee.TLSKey + ` already. An identity that is there is never overwritten; init may be called again after
it was broken off. Where a trustee has served a store from DIR that is gone, an empty one is made with --empty-store alone.

The store is the file DIR/` + location.FileName + `, or with --store a PostgreSQL database (postgresql://USER@HOST:PORT/DATABASE?sslmode=verify-full), which DB_CONNECT in DIR/` + trustee.ConfFile + ` then names. On the host of a
standby, with DIR copied from the other trustee, --store names the standby.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if len(hosts) == 0 {
				host, err := os.Hostname()
				if err != nil {
					return fmt.Errorf("this host has no name (%w): give one by --hostname", err)
				}
				hosts = []string{host}
			}
			if slices.Contains(hosts, "") {
				return &exitError{exitUsage, errors.New("--hostname: a name is empty")}
			}
			return initTrustee(cmd.Context(), &out, dir, location.InitOptions{Hosts: hosts, Store: store, Empty: empty})
		},
	}
	trusteeDirFlag(cmd, &dir)
	out.Flag(cmd)
	cmd.Flags().StringVar(&store, "store", "", trusteeStoreHelp)
	cmd.Flags().BoolVar(&empty, "empty-store", false, "make an empty store in the place of one that was served and is gone")
	cmd.Flags().StringArrayVar(&hosts, "hostname", nil, "a name or address by which clients know this host; may be given several times, the first being its own; otherwise the system's")
	return cmd
}

// initializedTrustee is the report of trustee init.
type initializedTrustee struct {
	Identity    string     `json:"identity"`
	Certificate string     `json:"certificate,omitempty"` // file; empty: the certificate existed
	Expires     *time.Time `json:"expires,omitempty"`
}

// initTrustee makes what is missing in a folder, and prints what it made.
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
			fmt.Fprintf(w, "self-signed certificate for %s, good until %s: %s; clients must trust it, or put one of your "+
				"authority in its place\n", strings.Join(o.Hosts, ", "), report.Expires.UTC().Format(time.DateOnly), report.Certificate)
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
				return &exitError{exitUsage, fmt.Errorf("--role %q: it must be %s or %s", r, server.RoleActive, server.RolePassive)}
			}
			return serveTrustee(cmd.Context(), f, log)
		},
	}
	trusteeDirFlag(cmd, &f.dir)
	cmd.Flags().StringVar(&f.listen, "listen", ":"+strconv.Itoa(trustee.Port), "address and port; port 0 is any that is free")
	cmd.Flags().StringVar(&f.ready, "ready-file", "", "file that gets the base URL when requests are taken")
	cmd.Flags().StringVar(&f.keyhsm, "keyhsm", "", "URL of the Key HSM that wraps each new deposit, as https://localhost:9090; it must trust the trustee's certificate")
	cmd.Flags().StringVar(&f.keyhsmCert, "keyhsm-cert", "", "file with the Key HSM's certificate, its server.crt")
	cmd.Flags().BoolVar(&f.withoutKeyHSM, "without-keyhsm", false, "serve although a Key HSM has wrapped deposits in the store; they are not opened")
	cmd.Flags().StringVar(&f.metrics, "metrics-listen", "", metricsListenHelp)
	f.connections.define(cmd)
	cmd.MarkFlagsRequiredTogether("keyhsm", "keyhsm-cert")
	cmd.MarkFlagsMutuallyExclusive("keyhsm", "without-keyhsm")
	f.peer.define(cmd)
	f.log.define(cmd)
	return cmd
}

// trusteeTLS reads the certificate, and follows its files.
func trusteeTLS(dir string, log *slog.Logger) (*web.TLS, error) {
	cert, key := filepath.Join(dir, trustee.TLSCert), filepath.Join(dir, trustee.TLSKey)
	for _, file := range []string{cert, key} {
		if _, err := os.Stat(file); errors.Is(err, fs.ErrNotExist) {
			return nil, fmt.Errorf("%s is missing: a copy without .ssl, as rsync --exclude .ssl makes it, needs a certificate of this host's own; claviger trustee init makes one", file)
		}
	}
	load := func() (tls.Certificate, error) { return tls.LoadX509KeyPair(cert, key) }
	t, err := web.FollowCertificate([]string{cert, key}, load, log)
	if err != nil {
		return nil, fmt.Errorf("%s and %s: %w", cert, key, err)
	}
	return t, nil
}

// trusteeKeeper is the Key HSM; nil where there is none. It is asked once: a server
// whose deposits cannot be opened is not to start as if all were well.
func trusteeKeeper(ctx context.Context, f trusteeFlags, own *tls.Config, log *slog.Logger) (*keyhsm.Client, error) {
	if f.keyhsm == "" {
		return nil, nil
	}
	pem, err := os.ReadFile(f.keyhsmCert)
	if err != nil {
		return nil, fmt.Errorf("--keyhsm-cert: %w", err)
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(pem) {
		return nil, fmt.Errorf("--keyhsm-cert: %s holds no certificate in PEM", f.keyhsmCert)
	}
	// The certificate by which clients know the trustee is the one that the Key HSM
	// knows it by.
	certificate := func() (*tls.Certificate, error) { return own.GetCertificate(nil) }
	c, err := keyhsm.NewClient(keyhsm.ClientConfig{URL: f.keyhsm, Servers: roots, Certificate: certificate})
	if err != nil {
		return nil, fmt.Errorf("--keyhsm: %w", err)
	}
	status, err := c.Status(ctx)
	if err == nil && status.State != keyhsm.Ready {
		err = fmt.Errorf("its state is %s", status.State)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("--keyhsm %s: %w; see claviger keyhsm status and validate on its host, and claviger keyhsm trust %s", f.keyhsm, err, filepath.Join(f.dir, trustee.TLSCert)), c.Close())
	}
	log.Info("deposits are wrapped by the Key HSM", "url", f.keyhsm, "key", status.KeyID)
	return c, nil
}

// serveTrustee runs the server until ctx ends.
func serveTrustee(ctx context.Context, f trusteeFlags, log *slog.Logger) (err error) {
	buildinfo.Read().Log(log)
	folder, err := location.Load(f.dir)
	if err != nil {
		return err
	}
	if err := owner.RefuseRoot(folder.Path); err != nil {
		return err
	}
	secrets := console.WatchSecretFiles(log, func() []secret.File { return trusteeSecretFiles(folder) })
	store, err := location.Open(ctx, folder, log)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, store.Close()) }()
	release, err := location.Claim(folder)
	if err != nil {
		return err
	}
	defer release()
	conf, err := trusteeTLS(f.dir, log)
	if err != nil {
		return err
	}
	defer conf.Close()
	keeper, err := trusteeKeeper(ctx, f, conf.Config, log)
	if err != nil {
		return err
	}
	if keeper != nil {
		defer func() { err = errors.Join(err, keeper.Close()) }()
	}
	wrapped := server.NewWrapped(store, nil)
	if keeper != nil {
		wrapped = server.NewWrapped(store, keeper)
	}
	if err := wrapped.MayServe(ctx, f.withoutKeyHSM); err != nil {
		return err
	}
	if err := wrapped.Check(ctx); err != nil {
		log.Error("not all deposits can be opened", "err", err)
	}
	one, closePeer, err := replica.Open(ctx, folder, store, f.peer.pair(), log)
	if err != nil {
		return err
	}
	defer closePeer()
	limits, err := f.connections.limits()
	if err != nil {
		return err
	}
	cfg := server.Config{Identity: folder.Identity, Store: store, Log: log}
	if one != nil {
		cfg.Replica = one
	}
	if keeper != nil {
		cfg.Keeper = keeper
	}
	connections := web.NewConnections(limits, log)
	certificate := conf.Certificate
	metrics := trusteeMetrics(&cfg, certificate, connections) // it sets cfg.Observe
	if one != nil {
		replicaMetrics(metrics, one)
	}
	handler := server.New(cfg)
	checks := append(trusteeChecks(store, one, keeper, certificate), console.Check{Name: "wrapped deposits", Run: wrapped.Check}, console.ConnectionCheck(connections),
		secrets.Check(), console.Check{Name: "requests", Informational: true, Run: handler.CheckSlots})
	stopConsole, err := console.Serve(ctx, metricsListenName, f.metrics, console.Config{Log: log, Metrics: metrics, Checks: checks})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, stopConsole()) }()
	background, stopBackground := context.WithCancel(ctx)
	var group sync.WaitGroup
	defer func() { stopBackground(); group.Wait() }()
	group.Go(func() {
		web.WarnOfExpiry(background, certificate, "put another into "+filepath.Join(f.dir, trustee.TLSCert)+" and its key beside it, which is taken over without a restart; have clients trust it first", log)
	})
	if one != nil {
		group.Go(func() { one.Run(background) })
	}
	server := &web.Server{
		Address: f.listen, AddressName: "--listen", Connections: connections, Limits: trusteeLimits, TLS: conf.Config,
		Handler: handler, ReadyFile: f.ready, About: []any{"identity", folder.Identity}, Log: log,
	}
	return server.Run(ctx)
}

// trusteeLimits are the limits of the requests to a trustee.
var trusteeLimits = web.Limits{HeadBytes: 16 << 10, Head: 10 * time.Second, Request: time.Minute, Answer: time.Minute,
	Idle: 2 * time.Minute, Stop: 15 * time.Second}
