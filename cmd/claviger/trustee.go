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
	"claviger/durable"
	"claviger/keyhsm"
	"claviger/keystore"
	"claviger/owner"
	"claviger/secret"
	"claviger/trustee"
	"claviger/trustee/server"
	"claviger/web"
)

// Places in a trustee's folder. Those of TLS are Cloudera's.
const (
	trusteeFolder  = "/var/lib/keytrustee/.keytrustee"
	trusteeTLSCert = ".ssl/ssl-cert-keytrustee.pem"
	trusteeTLSKey  = ".ssl/ssl-cert-keytrustee-pk.pem"
)

// trusteeCertificateLife is that of the certificate that init makes.
const trusteeCertificateLife = 2 * 365 * 24 * time.Hour

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
	cmd := &cobra.Command{
		Use:   "init [--confdir DIR] [--hostname NAME]... [--store URI] [--empty-store]",
		Short: "Make a trustee's identity, certificate and store",
		Long: `init makes DIR: the OpenPGP identity that signs answers (4096 bits, which takes some seconds), a store, and a self-signed TLS certificate, unless
one lies in DIR/` + trusteeTLSCert + ` and DIR/` + trusteeTLSKey + ` already. An identity that is there is never overwritten; init may be called again after
it was broken off. Where a trustee has served a store from DIR that is gone, an empty one is made with --empty-store alone.

The store is the file DIR/` + trusteeStore + `, or with --store a PostgreSQL database (postgresql://USER@HOST:PORT/DATABASE?sslmode=verify-full), which DB_CONNECT in DIR/` + trustee.ConfFile + ` then names. On the host of a
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
			return initTrustee(cmd.Context(), cmd.OutOrStdout(), dir, hosts, store, empty)
		},
	}
	trusteeDirFlag(cmd, &dir)
	cmd.Flags().StringVar(&store, "store", "", trusteeStoreHelp)
	cmd.Flags().BoolVar(&empty, "empty-store", false, "make an empty store in the place of one that was served and is gone")
	cmd.Flags().StringArrayVar(&hosts, "hostname", nil, "a name or address by which clients know this host; may be given several times, the first being its own; otherwise the system's")
	return cmd
}

// initTrustee makes what is not there yet, for a host of these names, the first its
// own. store is the URI of a database, or "".
func initTrustee(ctx context.Context, out io.Writer, dir string, hosts []string, store string, empty bool) error {
	if err := owner.RefuseRoot(dir); err != nil {
		return err
	}
	folder, err := trustee.LoadFolder(dir)
	if _, missing := os.Stat(filepath.Join(dir, trustee.ConfFile)); errors.Is(missing, fs.ErrNotExist) || trustee.Unfinished(dir) {
		if err := trustee.MakeFolder(dir); err != nil {
			return err
		}
		id, err := trustee.NewIdentity("keytrustee", "keytrustee Server Key", "keytrustee@"+hosts[0], trustee.KeyBits, time.Now())
		if err != nil {
			return err
		}
		if folder, err = trustee.NewFolder(dir, id); err != nil {
			return err
		}
	} else if err != nil {
		return err
	} else if err := notOfClient(folder); err != nil {
		return err
	}
	cert, key := filepath.Join(dir, trusteeTLSCert), filepath.Join(dir, trusteeTLSKey)
	made := false
	if _, err := os.Stat(key); errors.Is(err, fs.ErrNotExist) {
		if _, err := os.Stat(cert); err == nil && !initBrokenOff(folder) {
			return fmt.Errorf("%s is there without its key %s: put that beside it, or remove the certificate to have a new one made", cert, key)
		}
		if err := selfSigned(cert, key, hosts); err != nil {
			return err
		}
		made = true
	}
	if err := initTrusteeStore(ctx, folder, store, empty); err != nil {
		return err
	}
	fmt.Fprintf(out, "Initialized directory for %s\n", folder.Identity)
	if made {
		fmt.Fprintf(out, "self-signed certificate for %s, good until %s: %s; clients must trust it, or put one of your authority in its place\n",
			strings.Join(hosts, ", "), time.Now().Add(trusteeCertificateLife).UTC().Format(time.DateOnly), cert)
	}
	return nil
}

// initBrokenOff: the store, which init makes last, is not there. A certificate
// without a key is its own then.
func initBrokenOff(f *trustee.Folder) bool {
	_, err := os.Stat(filepath.Join(f.Path, trusteeStore))
	return f.Store == "" && errors.Is(err, fs.ErrNotExist)
}

// selfSigned makes a certificate. The key comes last, as a whole: it is what init
// looks for.
func selfSigned(certFile, keyFile string, hosts []string) error {
	cert, key, err := keystore.SelfSigned(hosts[0], hosts, trusteeCertificateLife)
	if err != nil {
		return err
	}
	defer clear(key)
	if err := durable.MakeFolder(filepath.Dir(keyFile), 0o700); err != nil {
		return err
	}
	if err := durable.Replace(certFile, cert, 0o600); err != nil {
		return err
	}
	return durable.Create(keyFile, key, 0o600)
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
	cert, key := filepath.Join(dir, trusteeTLSCert), filepath.Join(dir, trusteeTLSKey)
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
		return nil, errors.Join(fmt.Errorf("--keyhsm %s: %w; see claviger keyhsm status and validate on its host, and claviger keyhsm trust %s", f.keyhsm, err, filepath.Join(f.dir, trusteeTLSCert)), c.Close())
	}
	log.Info("deposits are wrapped by the Key HSM", "url", f.keyhsm, "key", status.KeyID)
	return c, nil
}

// serveTrustee runs the server until ctx ends.
func serveTrustee(ctx context.Context, f trusteeFlags, log *slog.Logger) (err error) {
	buildinfo.Read().Log(log)
	folder, err := loadTrustee(f.dir)
	if err != nil {
		return err
	}
	if err := owner.RefuseRoot(folder.Path); err != nil {
		return err
	}
	secrets := console.WatchSecretFiles(log, func() []secret.File { return trusteeSecretFiles(folder) })
	store, err := openTrusteeStore(ctx, folder, log)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, store.Close()) }()
	release, err := claimTrusteeStore(folder)
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
	wrapped := &wrappedDeposits{store: store}
	if keeper != nil {
		wrapped.keeper = keeper
	}
	if err := wrapped.mayServe(ctx, f.withoutKeyHSM); err != nil {
		return err
	}
	if err := wrapped.check(ctx); err != nil {
		log.Error("not all deposits can be opened", "err", err)
	}
	replica, closePeer, err := trusteeReplica(ctx, f, folder.Identity, store, log)
	if err != nil {
		return err
	}
	defer closePeer()
	limits, err := f.connections.limits()
	if err != nil {
		return err
	}
	cfg := server.Config{Identity: folder.Identity, Store: store, Log: log}
	if replica != nil {
		cfg.Replica = replica
	}
	if keeper != nil {
		cfg.Keeper = keeper
	}
	connections := web.NewConnections(limits, log)
	certificate := conf.Certificate
	metrics := trusteeMetrics(&cfg, certificate, connections) // it sets cfg.Observe
	if replica != nil {
		replicaMetrics(metrics, replica)
	}
	handler := server.New(cfg)
	checks := append(trusteeChecks(store, replica, keeper, certificate), console.Check{Name: "wrapped deposits", Run: wrapped.check}, console.ConnectionCheck(connections),
		secrets.Check(), console.Check{Name: "requests", Informational: true, Run: handler.CheckTurns})
	stopConsole, err := console.Serve(ctx, metricsListenName, f.metrics, console.Config{Log: log, Metrics: metrics, Checks: checks})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, stopConsole()) }()
	background, stopBackground := context.WithCancel(ctx)
	var group sync.WaitGroup
	defer func() { stopBackground(); group.Wait() }()
	group.Go(func() {
		web.WarnOfExpiry(background, certificate, "put another into "+filepath.Join(f.dir, trusteeTLSCert)+" and its key beside it, which is taken over without a restart; have clients trust it first", log)
	})
	if replica != nil {
		group.Go(func() { replica.Run(background) })
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
