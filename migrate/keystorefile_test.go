package migrate

import "testing"

// TestKeystoreFile: the path of a keystore file is found in each spelling of its URI.
func TestKeystoreFile(t *testing.T) {
	for uri, want := range map[string]string{
		"jceks://file@/etc/kms.jceks": "/etc/kms.jceks", "JCEKS://file@/etc/kms.jceks": "/etc/kms.jceks",
		"LocalJCEKS://file/etc/kms.jceks": "/etc/kms.jceks", "kms://https@h:9600/kms": "",
	} {
		if got := keystoreFile(uri); got != want {
			t.Errorf("%s: %q, want %q", uri, got, want)
		}
	}
}
