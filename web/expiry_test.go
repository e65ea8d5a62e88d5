package web

import (
	"context"
	"crypto/x509"
	"encoding/pem"
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"claviger/internal/logtest"
	"claviger/keystore"
)

// TestWarnOfExpiry: warnings begin 30 days before the end, and repeat each 12 hours.
func TestWarnOfExpiry(t *testing.T) {
	for name, tt := range map[string]struct {
		life  time.Duration
		after time.Duration
		want  int // warnings
	}{
		"31 days":         {31 * 24 * time.Hour, time.Minute, 0},
		"29 days":         {29 * 24 * time.Hour, time.Minute, 1},
		"ended":           {-time.Minute, time.Minute, 1},
		"31 days, waited": {31 * 24 * time.Hour, 37 * time.Hour, 1},
		"29 days, waited": {29 * 24 * time.Hour, 37 * time.Hour, 4},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				certPEM, _, err := keystore.SelfSigned("kts-1.example.com", []string{"kts-1.example.com"}, tt.life)
				if err != nil {
					t.Fatal(err)
				}
				block, _ := pem.Decode(certPEM)
				certificate := func() (*x509.Certificate, error) { return x509.ParseCertificate(block.Bytes) }
				var text logtest.Buffer
				ctx, cancel := context.WithCancel(t.Context())
				go WarnOfExpiry(ctx, certificate, "make another", slog.New(slog.NewTextHandler(&text, nil)))
				time.Sleep(tt.after)
				cancel()
				synctest.Wait()
				n := strings.Count(text.String(), "CN=kts-1.example.com expires at")
				if n != tt.want || n != strings.Count(text.String(), "make another") {
					t.Errorf("%d warnings, want %d\n%s", n, tt.want, &text)
				}
			})
		})
	}
}
