package kms

import (
	"crypto/tls"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"claviger/hadoopconf"
	"claviger/internal/certtest"
	"claviger/kms/kmstest"
	"claviger/migrate"
)

// TestPlanTriesTrustees: a plan tries TLS to each Key Trustee Server of kts-site.xml with the
// configured truststore. It calls no other server trusted.
func TestPlanTriesTrustees(t *testing.T) {
	for _, name := range javaOptions {
		t.Setenv(name, "")
	}
	dir := t.TempDir()
	authority := certtest.New(t, dir)
	pair, err := tls.LoadX509KeyPair(authority.Issue("kts", "127.0.0.1"), filepath.Join(dir, "kts.pem"))
	if err != nil {
		t.Fatal(err)
	}
	port := listenTLS(t, &tls.Config{Certificates: []tls.Certificate{pair}})
	dead := listenTLS(t, &tls.Config{}) // without a certificate every handshake fails
	other := certtest.New(t, t.TempDir()).CA
	for _, tt := range []struct {
		name     string
		kts      []string
		site     []string
		status   migrate.Status
		measured string
	}{
		{"no truststore", []string{"hostname-ACTIVE", "127.0.0.1:" + port}, nil, migrate.Failure, "unknown authority"},
		{"another truststore", []string{"hostname-ACTIVE", "127.0.0.1:" + port}, []string{"claviger.ssl.truststore",
			other}, migrate.Failure, "unknown authority"},
		{"trusted", []string{"hostname-ACTIVE", "127.0.0.1:" + port}, []string{"claviger.ssl.truststore", authority.CA},
			migrate.OK, "127.0.0.1:" + port + " is trusted"},
		{"the passive one is not", []string{"hostname-ACTIVE", "127.0.0.1:" + port, "hostname-PASSIVE", "127.0.0.1:" +
			dead}, []string{"claviger.ssl.truststore", authority.CA}, migrate.Failure, "127.0.0.1:" + dead + ": "},
		{"not verified", []string{"hostname-ACTIVE", "127.0.0.1:" + port, "insecure", "true"}, nil, migrate.NotTried,
			"no certificate is verified"},
		{"no such file", nil, nil, migrate.Failure, "kts-site.xml"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			conf := t.TempDir()
			if tt.kts != nil {
				pairs := []string{"cloudera.trustee.keyprovider.org", "o", "cloudera.trustee.keyprovider.auth",
					"secret"}
				for i := 0; i < len(tt.kts); i += 2 {
					pairs = append(pairs, "cloudera.trustee.keyprovider."+tt.kts[i], tt.kts[i+1])
				}
				kmstest.WriteFile(t, filepath.Join(conf, "kts-site.xml"), kmstest.SiteXML(pairs...))
			}
			kmstest.WriteFile(t, filepath.Join(conf, "kms-site.xml"),
				kmstest.SiteXML(append([]string{"hadoop.kms.key.provider.uri", "jceks://file@/nowhere"},
					tt.site...)...))
			c, err := hadoopconf.LoadKMS(conf, os.LookupEnv)
			if err != nil {
				t.Fatal(err)
			}
			s := &Service{Conf: c, Log: slog.New(slog.DiscardHandler)}
			got := s.trusteesTLS(t.Context(), filepath.Join(conf, "kts-site.xml"), migrate.Failure)
			if got.Status != tt.status || !strings.Contains(got.Measured, tt.measured) ||
				(got.Status == migrate.Failure) != (got.Cure != "") {
				t.Errorf("%+v, want %v, %q", got, tt.status, tt.measured)
			}
		})
	}
}
