// Package host runs a Key HSM on one host: Setup makes its folder, Run serves requests, Validate checks the
// parts that Run needs, and Reload makes a running server read its certificates again.
package host

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"sync"
	"syscall"
	"time"

	"claviger/buildinfo"
	"claviger/console"
	"claviger/keyhsm"
	"claviger/owner"
	"claviger/pkcs11"
	"claviger/secret"
	"claviger/web"
)

// Config is the configuration of Run.
type Config struct {
	// Folder holds the settings.
	Folder string
	// Listen replaces keyhsm.listen, unless it is "". Port 0 is any free port.
	Listen string
	// ReadyFile gets the base URL when the server accepts requests; "" for no file.
	ReadyFile string
	// Metrics is the address of a separate console, and MetricsName the flag of that address; "" for none.
	Metrics, MetricsName string
	Log                  *slog.Logger
}

// expiryCure says what to do about a certificate that expires soon.
const expiryCure = "claviger keyhsm settings shows which files hold the certificate; replace them, then run " +
	"claviger keyhsm reload or send SIGHUP; have the trustees trust the new certificate first"

// Run serves until ctx ends, then waits for running requests. SIGHUP makes it read its certificates again.
// Only one process serves a folder at a time.
func Run(ctx context.Context, c Config) (err error) {
	log := c.Log
	buildinfo.Read().Log(log)
	set, err := readSettings(c)
	if err != nil {
		return err
	}
	limits, err := set.Connections(c.Folder)
	if err != nil {
		return err
	}
	secrets := console.WatchSecretFiles(log, func() []secret.File { return set.SecretFiles(c.Folder) })
	// Catch SIGHUP before the run file names this process, so that Reload cannot end the process.
	hangup := make(chan os.Signal, 1)
	signal.Notify(hangup, syscall.SIGHUP)
	defer signal.Stop(hangup)
	run, err := claim(c.Folder)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, run.Close()) }()
	tok, keeper, err := open(ctx, &set, log)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, tok.Close()) }()
	server, err := keyhsm.NewServer(keeper, set.Identity, log)
	if err != nil {
		return err
	}
	st := keeper.Status(ctx)
	if st.State != keyhsm.Ready {
		// The server starts anyway, because older deposits may have another pair, and the HSM may
		// become available later. Without this line in the log, only trustees would notice.
		log.Error("the pair that wraps new deposits does not work", "state", st.State, "detail", st.Detail)
	}
	connections := web.NewConnections(limits, log)
	checks := append(checks(server, keeper), console.ConnectionCheck(connections), secrets.Check())
	stopConsole, err := console.Serve(ctx, c.MetricsName, c.Metrics,
		console.Config{Log: log, Metrics: metrics(server, tok, connections), Checks: checks})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, stopConsole()) }()
	background, stop := context.WithCancel(ctx)
	var group sync.WaitGroup
	defer func() { stop(); group.Wait() }()
	group.Go(func() { reloadOnHangup(background, hangup, server, log) })
	group.Go(func() { web.WarnOfExpiry(background, server.Certificate, expiryCure, log) })
	return (&web.Server{
		Address: set.Listen, AddressName: "keyhsm.listen", Connections: connections, Limits: keyhsm.Limits,
		TLS: server.TLS(), Handler: server.Handler(), OnReady: run.write, ReadyFile: c.ReadyFile,
		About: []any{"token", st.Token, "key", st.KeyID, "state", st.State}, Log: log,
	}).Run(ctx)
}

// readSettings reads the settings of a folder, and logs warnings.
func readSettings(c Config) (keyhsm.Settings, error) {
	set, warnings, err := keyhsm.ReadSettings(c.Folder)
	if err != nil {
		return set, err
	}
	for _, w := range warnings {
		c.Log.Warn(w)
	}
	if c.Listen != "" {
		set.Listen = c.Listen
	}
	return set, owner.RefuseRoot(set.PINFile)
}

// open opens the token that the settings name, and its keeper.
func open(ctx context.Context, set *keyhsm.Settings, log *slog.Logger) (*pkcs11.Token, *keyhsm.Keeper, error) {
	cfg, err := set.PKCS11()
	if err != nil {
		return nil, nil, err
	}
	cfg.Log = log
	tok, err := pkcs11.Open(ctx, cfg)
	if err != nil {
		return nil, nil, err
	}
	return tok, keyhsm.NewKeeper(tok, set.ID(), set.KeyLabel), nil
}

// metrics returns the metrics of a Key HSM.
func metrics(s *keyhsm.Server, token *pkcs11.Token, connections *web.Connections) *console.Metrics {
	m := console.NewServiceMetrics("keyhsm")
	buildinfo.Read().Metric(m)
	s.OnRequest(m.Served)
	m.HSMFunctions(token.Sessions)
	token.OnFunction(func(f pkcs11.Function) { m.Function(f.Name, f.Result, f.Took) })
	m.Counter("claviger_keyhsm_refused_total", "Handshakes and requests that were refused.",
		func() float64 { return float64(s.Refused()) })
	m.ServerCertificate(s.Certificate)
	connections.AddMetrics(m)
	return m
}

// checks returns the readiness checks of a Key HSM.
func checks(s *keyhsm.Server, keeper *keyhsm.Keeper) []console.Check {
	return []console.Check{
		{Name: "HSM key", Run: func(ctx context.Context) error {
			if st := keeper.Status(ctx); st.State != keyhsm.Ready {
				return fmt.Errorf("%s: %s", st.State, st.Detail)
			}
			return nil
		}},
		console.CertificateCheck(s.Certificate),
	}
}

// reloadOnHangup reads the certificates again at each signal, until ctx ends.
func reloadOnHangup(ctx context.Context, hangup <-chan os.Signal, server *keyhsm.Server, log *slog.Logger) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-hangup:
			if err := server.Reload(); err != nil {
				log.Error("the certificates cannot be read again; the server keeps those that it had", "err", err)
			} else {
				log.Info("certificates were read again")
			}
		}
	}
}

// Status requests the status of the server that serves a folder.
func Status(ctx context.Context, set *keyhsm.Settings, p Process) (st keyhsm.Status, err error) {
	c, err := set.Admin(p.URL)
	if err != nil {
		return st, err
	}
	defer func() { err = errors.Join(err, c.Close()) }()
	return c.Status(ctx)
}

// reloadTimeout is how long Reload waits until the server has read its certificates.
const reloadTimeout = 15 * time.Second

// Reload sends SIGHUP to the server that serves a folder, and waits until the server has read its
// certificates again.
func Reload(ctx context.Context, set *keyhsm.Settings, p Process) (keyhsm.Status, error) {
	since := time.Now()
	if err := syscall.Kill(p.PID, syscall.SIGHUP); err != nil {
		return keyhsm.Status{}, fmt.Errorf("sending SIGHUP to process %d: %w", p.PID, err)
	}
	ctx, cancel := context.WithTimeout(ctx, reloadTimeout)
	defer cancel()
	for {
		st, err := Status(ctx, set, p)
		switch {
		case err == nil && !st.Loaded.Before(since) && st.LoadError != "":
			return st, fmt.Errorf("the server keeps the certificates that it had: %s", st.LoadError)
		case err == nil && !st.Loaded.Before(since):
			return st, nil
		}
		select {
		case <-ctx.Done():
			return st, errors.Join(fmt.Errorf("the server, process %d, has not reported that it reloaded; see its log",
				p.PID), err)
		case <-time.After(100 * time.Millisecond):
		}
	}
}
