// Package host runs a Key Trustee Server on one host: it opens the store and the Key HSM of a trustee, and
// serves deposits, metrics and readiness checks.
package host

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"time"

	"claviger/buildinfo"
	"claviger/console"
	"claviger/keyhsm"
	"claviger/owner"
	"claviger/pgdb"
	"claviger/secret"
	"claviger/sqlitedb"
	"claviger/tlskey"
	"claviger/trustee"
	"claviger/trustee/location"
	"claviger/trustee/replica"
	"claviger/trustee/server"
	"claviger/web"
)

// Config is the configuration of Run.
type Config struct {
	// Folder is the path of the trustee's folder, which has its identity and its certificate.
	Folder string
	// Listen is the address and port. Port 0 is any free port.
	Listen string
	// ReadyFile gets the base URL when the server accepts requests; "" for no file.
	ReadyFile   string
	Connections web.ConnectionLimits
	// KeyHSM is the URL of the Key HSM that wraps each new deposit, and KeyHSMCertificate the file with
	// its certificate; "" for none.
	KeyHSM, KeyHSMCertificate string
	// WithoutKeyHSM allows a store with wrapped deposits although KeyHSM is "".
	WithoutKeyHSM bool
	// Pair names the other trustee of a pair.
	Pair replica.Pair
	// Metrics is the address of a separate console, and MetricsName the flag of that address; "" for none.
	Metrics, MetricsName string
	Log                  *slog.Logger
}

// limits are the limits of the requests to a trustee.
var limits = web.Limits{HeadBytes: 16 << 10, Head: 10 * time.Second, Request: time.Minute, Answer: time.Minute,
	Idle: 2 * time.Minute, Stop: 15 * time.Second}

// Run serves until ctx ends, then waits for running requests. SIGHUP changes nothing, because the server reads
// its files when they change.
func Run(ctx context.Context, c Config) (err error) {
	log := c.Log
	buildinfo.Read().Log(log)
	folder, err := location.Load(c.Folder)
	if err != nil {
		return err
	}
	if err := owner.RefuseRoot(folder.Path); err != nil {
		return err
	}
	secrets := console.WatchSecretFiles(log, func() []secret.File { return SecretFiles(folder) })
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
	ownTLS, err := serverTLS(c.Folder, false, log)
	if err != nil {
		return err
	}
	defer ownTLS.Close()
	keeper, err := openKeeper(ctx, c, ownTLS.Config)
	if err != nil {
		return err
	}
	if keeper != nil {
		defer func() { err = errors.Join(err, keeper.Close()) }()
	}
	wrapped, err := checkWrapped(ctx, c, store, keeper)
	if err != nil {
		return err
	}
	pair, closePeer, err := replica.Open(ctx, folder, store, c.Pair, log)
	if err != nil {
		return err
	}
	defer closePeer()
	r := &running{folder: folder, store: store, tls: ownTLS, keeper: keeper, wrapped: wrapped, replica: pair,
		secrets: secrets, connections: web.NewConnections(c.Connections, log)}
	return r.serve(ctx, c)
}

// running are the open parts of a trustee.
type running struct {
	folder      *trustee.Folder
	store       server.Store
	tls         *ownTLS
	keeper      *keyhsm.Client // or nil
	wrapped     *server.Wrapped
	replica     *replica.Replica // nil if there is no pair
	secrets     *console.SecretFiles
	connections *web.Connections
}

// serve serves until ctx ends.
func (r *running) serve(ctx context.Context, c Config) (err error) {
	cfg := server.Config{Identity: r.folder.Identity, Store: r.store, Log: c.Log}
	if r.replica != nil {
		cfg.Replica = r.replica
	}
	if r.keeper != nil {
		cfg.Keeper = r.keeper
	}
	metrics := r.metrics(&cfg)
	handler := server.New(cfg)
	checks := append(r.checks(),
		console.Check{Name: "requests", Informational: true, Run: handler.CheckSlots})
	stopConsole, err := console.Serve(ctx, c.MetricsName, c.Metrics,
		console.Config{Log: c.Log, Metrics: metrics, Checks: checks})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, stopConsole()) }()
	background, stop := context.WithCancel(ctx)
	var group sync.WaitGroup
	defer func() { stop(); group.Wait() }()
	cure := "replace " + filepath.Join(c.Folder, trustee.TLSCert) + " and its key beside it; the server reads them " +
		"without a restart; have clients trust the new certificate first"
	group.Go(func() { web.WarnOfExpiry(background, r.tls.Certificate, cure, c.Log) })
	// Tools send SIGHUP to make a server read its files again or reopen its logs. It must not end the server.
	defer web.OnHangup(func() {
		c.Log.Info("SIGHUP: nothing to do; the server reads its certificate when the files change")
	})()
	// The replica sends requests to the other trustee only after this server has opened its address. A second
	// instance, started by mistake, cannot open the address, so it sends none.
	ready := func(string) error {
		if r.replica != nil {
			group.Go(func() { r.replica.Run(background) })
		}
		return nil
	}
	return (&web.Server{
		Address: c.Listen, AddressName: "--listen", Connections: r.connections, Limits: limits, TLS: r.tls.Config,
		Handler: handler, OnReady: ready, ReadyFile: c.ReadyFile, About: []any{"identity", r.folder.Identity},
		Log: c.Log,
	}).Run(ctx)
}

// openKeeper returns the client of the Key HSM, or nil if no Key HSM is configured. It requests the status
// of the Key HSM, so that a trustee that cannot open deposits does not start.
func openKeeper(ctx context.Context, c Config, own *tls.Config) (*keyhsm.Client, error) {
	if c.KeyHSM == "" {
		return nil, nil
	}
	pem, err := os.ReadFile(c.KeyHSMCertificate)
	if err != nil {
		return nil, fmt.Errorf("--keyhsm-cert: %w", err)
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(pem) {
		return nil, fmt.Errorf("--keyhsm-cert: %s holds no certificate in PEM", c.KeyHSMCertificate)
	}
	// The Key HSM trusts the certificate that the trustee shows to its clients.
	certificate := func() (*tls.Certificate, error) { return own.GetCertificate(nil) }
	client, err := keyhsm.NewClient(keyhsm.ClientConfig{URL: c.KeyHSM, Servers: roots, Certificate: certificate})
	if err != nil {
		return nil, fmt.Errorf("--keyhsm: %w", err)
	}
	status, err := client.Status(ctx)
	if err == nil && status.State != keyhsm.Ready {
		err = fmt.Errorf("its state is %s", status.State)
	}
	if err != nil {
		err = fmt.Errorf("--keyhsm %s: %w; see claviger keyhsm status and validate on its host, and claviger keyhsm "+
			"trust %s", c.KeyHSM, err, filepath.Join(c.Folder, trustee.TLSCert))
		return nil, errors.Join(err, client.Close())
	}
	c.Log.Info("deposits are wrapped by the Key HSM", "url", c.KeyHSM, "key", status.KeyID)
	return client, nil
}

// checkWrapped refuses to serve wrapped deposits without a Key HSM. It logs an error if the Key HSM cannot
// open all deposits.
func checkWrapped(ctx context.Context, c Config, store server.Store, keeper *keyhsm.Client) (*server.Wrapped, error) {
	wrapped := server.NewWrapped(store, nil)
	if keeper != nil {
		wrapped = server.NewWrapped(store, keeper)
	}
	if err := wrapped.MayServe(ctx, c.WithoutKeyHSM); err != nil {
		return nil, err
	}
	if err := wrapped.Check(ctx); err != nil {
		c.Log.Error("not all deposits can be opened", "err", err)
	}
	return wrapped, nil
}

// SecretFiles are the files of a trustee that other users must not read or change.
func SecretFiles(folder *trustee.Folder) []secret.File {
	key := secret.File{Path: filepath.Join(folder.Path, trustee.TLSKey), Kind: "private key"}
	list := append(trustee.SecretFiles(folder.Path), key)
	if uris, ok, _ := tlskey.ReadURIs(key.Path); ok {
		list = append(list, tlskey.SecretFiles(uris)...)
	}
	if folder.Store != "" {
		return append(list, pgdb.SecretFiles(folder.Store)...)
	}
	for _, path := range sqlitedb.Files(filepath.Join(folder.Path, location.FileName)) {
		list = append(list, secret.File{Path: path, Kind: "store"})
	}
	return list
}
