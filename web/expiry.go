package web

import (
	"context"
	"crypto/x509"
	"fmt"
	"log/slog"
	"time"
)

// ExpiryNotice is how long before the end of a certificate checks begin to fail, and
// warnings begin.
const ExpiryNotice = 30 * 24 * time.Hour

// expiryInterval is how often WarnOfExpiry checks the certificate.
const expiryInterval = 12 * time.Hour

// CheckExpiry fails if a server's certificate has ended or will end within ExpiryNotice.
func CheckExpiry(certificate func() (*x509.Certificate, error), now time.Time) error {
	cert, err := certificate()
	if err != nil {
		return err
	}
	if cert.NotAfter.Sub(now) < ExpiryNotice {
		return fmt.Errorf("the certificate of %s expires at %s; clients then refuse this server", cert.Subject,
			cert.NotAfter.UTC().Format(time.RFC3339))
	}
	return nil
}

// WarnOfExpiry logs at once, and then twice a day until ctx ends, that the certificate expires
// within ExpiryNotice. cure says how to replace the certificate.
func WarnOfExpiry(ctx context.Context, certificate func() (*x509.Certificate, error), cure string, log *slog.Logger) {
	tick := time.NewTicker(expiryInterval)
	defer tick.Stop()
	for {
		if err := CheckExpiry(certificate, time.Now()); err != nil {
			log.Warn("the server's certificate must be renewed", "why", err, "cure", cure)
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}
