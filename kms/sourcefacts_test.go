package kms

import (
	"testing"

	"claviger/hadoopconf"
)

// TestUsesTrustee: a Key Trustee Server is found in each place of a list of providers, also behind a blank or in a new
// line, and as the source.
func TestUsesTrustee(t *testing.T) {
	const kt, file = "keytrustee://file@/kt/.keytrustee", "jceks://file@/k.jceks"
	for _, c := range []struct {
		providers, source string
		want              bool
	}{{kt, "", true}, {file + "," + kt, "", true}, {file + ", " + kt, "", true}, {file + ",\n  " + kt, "", true},
		{file, kt, true}, {file, "kms://https@h:16000/kms", false}, {"jceks://file@/keytrustee:/k.jceks", "", false}} {
		conf := hadoopconf.New(t.TempDir(), nil)
		conf.Override(hadoopconf.ProviderURI, c.providers, "--flag")
		if c.source != "" {
			conf.Override(hadoopconf.SourceURI, c.source, "--flag")
		}
		if got := usesTrustee(conf); got != c.want {
			t.Errorf("%q and the source %q: %v", c.providers, c.source, got)
		}
	}
}

// TestIsPublicKey: a Key Trustee Server answers with a public key of OpenPGP, in binary form or in armor. A secret key,
// another packet and a page are none.
func TestIsPublicKey(t *testing.T) {
	for text, want := range map[string]bool{"\xc6\x04": true, "\x98\x04": true, "\x99\x04": true, "\x9b": true,
		"-----BEGIN PGP PUBLIC KEY BLOCK-----\n": true, "": false, "<html>": false, "\xc5\x04": false,
		"\x95\x04": false, "\x9c\x04": false, "-----BEGIN PGP PRIVATE KEY BLOCK-----\n": false} {
		if got := isPublicKey(text); got != want {
			t.Errorf("%q: %t, want %t", text, got, want)
		}
	}
}
