package console

import (
	"context"
	"crypto/x509"
	"net"
	"net/http"
	"time"

	"claviger/web"
)

// maxConnections limits the connections to the port of a console.
const maxConnections = 64

// Serve serves a console at its own address, over plain HTTP and without authentication: Prometheus has neither the
// certificate nor the signature that the ports of the trustee and Key HSM demand. It returns as soon as the console
// listens; stop ends it. name is the flag of the address, for errors. If address is "", nothing is served.
func Serve(ctx context.Context, name, address string, cfg Config) (stop func() error, err error) {
	if address == "" {
		return func() error { return nil }, nil
	}
	server := &web.Server{
		Address: address, AddressName: name,
		Connections: web.NewConnections(web.FixedLimits(maxConnections), cfg.Log),
		Limits: web.Limits{HeadBytes: 16 << 10, Head: 10 * time.Second, Request: 10 * time.Second,
			Answer: 30 * time.Second, Idle: 2 * time.Minute}, // no Stop: an answer to Prometheus may be cut off
		Handler: New(cfg, http.NotFoundHandler()), Log: cfg.Log,
	}
	running, err := server.Start(ctx)
	if err != nil {
		return nil, err
	}
	if tcp, ok := running.Addr().(*net.TCPAddr); ok && !tcp.IP.IsLoopback() {
		cfg.Log.Warn("other hosts can read the metrics, without authentication", "address", running.Addr())
	}
	cfg.Log.Info("serving metrics", "url", "http://"+running.Addr().String()+"/metrics")
	return running.Stop, nil
}

// ConnectionCheck fails while connections are refused. It is informational, since open
// connections are served.
func ConnectionCheck(c *web.Connections) Check {
	return Check{Name: "connections", Informational: true, Run: c.Check}
}

// CertificateCheck fails when a server's certificate has ended or will end soon. It is informational, since clients may
// accept the certificate until then.
func CertificateCheck(certificate func() (*x509.Certificate, error)) Check {
	return Check{Name: "certificate", Informational: true,
		Run: func(context.Context) error { return web.CheckExpiry(certificate, time.Now()) }}
}

// ServerCertificate adds the metric of the end of the certificate that a server shows to clients.
func (m *Metrics) ServerCertificate(certificate func() (*x509.Certificate, error)) {
	m.Expiries("claviger_certificate_expiry_seconds", "When the server's certificate expires, in seconds since 1970.",
		func() ([]Expiry, error) {
			cert, err := certificate()
			if err != nil {
				return nil, err
			}
			return []Expiry{{Name: "server", Subject: cert.Subject.String(), Ends: cert.NotAfter}}, nil
		})
}
