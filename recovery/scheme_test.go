package recovery

import (
	"log/slog"
	"path/filepath"
	"testing"

	"claviger/hadoopconf"
	"claviger/kms/kmstest"
	"claviger/provider/hsm"
)

// TestSchemeInCapitals: the scheme of a provider's URI may be written in capitals, as for a server. openToken then
// opens the provider's token, and does not report that there is none.
func TestSchemeInCapitals(t *testing.T) {
	file := filepath.Join(t.TempDir(), "missing.keystore")
	for _, uri := range []string{"Cloudera.HSMKP://file@" + file, "PKCS11:token=kms?module-path=" + file} {
		conf := kmstest.Conf(t, map[string]string{hadoopconf.ProviderURI: uri})
		if p, err := openToken(t.Context(), conf, nil, hsm.Inspect, slog.New(slog.DiscardHandler)); err == nil {
			t.Errorf("%s: no error although the token cannot be opened; provider %v", uri, p)
		}
	}
}
