package replica

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	"claviger/trustee"
	"claviger/trustee/server"
)

// requestTimeout is the timeout of a request to a server. The longest request reads a whole store.
const requestTimeout = time.Minute

// Pair names the other one of two servers.
type Pair struct {
	URL  string // "" for a server that is not one of two
	Cert string // the file with the other server's certificate
	// First is the role of this server at its first start with a peer; see New.
	First server.Role
}

// Open makes the server of a folder one of two, like New. If p has no URL, Open returns nil, or an error
// if the store says that the server is one of two. closePeer closes the connections.
func Open(ctx context.Context, f *trustee.Folder, held server.Store, p Pair, log *slog.Logger) (
	_ *Replica, closePeer func(), err error) {
	none := func() {}
	store, ok := held.(Logged)
	switch {
	case !ok && p.URL == "" && p.First == "":
		return nil, none, nil
	case !ok:
		return nil, none, errors.New("--peer and --role are not for a trustee whose deposits are in PostgreSQL: " +
			"streaming replication makes the second copy; run the other trustee on a standby, which makes it the " +
			"passive one")
	case p.URL == "":
		return nil, none, checkSingle(ctx, store)
	}
	text, err := os.ReadFile(p.Cert)
	if err != nil {
		return nil, none, fmt.Errorf("--peer-cert: %w", err)
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(text) {
		return nil, none, fmt.Errorf("--peer-cert: %s holds no certificate in PEM", p.Cert)
	}
	id := f.Identity
	peer, err := trustee.NewClient(trustee.ClientConfig{
		Identity: id, Servers: []trustee.Endpoint{{URL: p.URL, Server: &id.Party}},
		TLS: &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12}, Timeout: requestTimeout, Log: log,
	})
	if err != nil {
		return nil, none, fmt.Errorf("--peer: %w", err)
	}
	r, err := New(ctx, Config{Identity: id, Store: store, Peer: peer, Spool: f.Path, Log: log}, p.First)
	if err != nil { // peer has no connection yet
		return nil, none, err
	}
	return r, peer.Close, nil
}

// checkSingle returns an error if a store belongs to one of two servers.
func checkSingle(ctx context.Context, store server.Store) error {
	role, err := store.Role(ctx)
	if err != nil || role == server.RoleSingle {
		return err
	}
	promote := ""
	if role == server.RolePassive {
		promote = "claviger trustee promote --force, "
	}
	return fmt.Errorf("this Key Trustee Server is the %s one of two: name the other by --peer and --peer-cert. If "+
		"the other is lost forever, start this server with both options anyway, and then: %sclaviger trustee "+
		"alone on", role, promote)
}

// OperatorConfig returns the configuration of a client that sends an operator's requests to the server of
// this host. The client has the identity in the folder, and trusts only the certificate in the folder.
func OperatorConfig(f *trustee.Folder, url string) (c trustee.ClientConfig, err error) {
	file := filepath.Join(f.Path, trustee.TLSCert)
	text, err := os.ReadFile(file)
	if err != nil {
		return c, err
	}
	block, _ := pem.Decode(text)
	if block == nil {
		return c, fmt.Errorf("%s holds no certificate in PEM", file)
	}
	cert, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		return c, fmt.Errorf("%s: %w", file, err)
	}
	// The URL has this host's name, and the certificate may be for another name of the host.
	conf := &tls.Config{RootCAs: x509.NewCertPool(), MinVersion: tls.VersionTLS12}
	conf.RootCAs.AddCert(cert)
	switch {
	case len(cert.DNSNames) > 0:
		conf.ServerName = cert.DNSNames[0]
	case len(cert.IPAddresses) > 0:
		conf.ServerName = cert.IPAddresses[0].String()
	}
	return trustee.ClientConfig{
		Identity: f.Identity, Servers: []trustee.Endpoint{{URL: url, Server: &f.Identity.Party}},
		TLS: conf, Timeout: requestTimeout,
	}, nil
}
