package builtin_test

import (
	"context"
	"errors"
	"strings"
	"testing"

	"claviger/metastore"
	"claviger/provider"
	"claviger/provider/builtin"
)

func registry() *provider.Registry {
	return builtin.Registry(builtin.Options{Store: func(context.Context, func(context.Context,
		string) error) (metastore.Store, error) {
		return nil, errors.New("no store here")
	}})
}

// TestUnknownScheme: the error names the known schemes.
func TestUnknownScheme(t *testing.T) {
	_, err := registry().Open(t.Context(), "vault://file@/x", provider.Env{})
	if err == nil || !strings.Contains(err.Error(),
		`unknown scheme "vault"; known schemes: cloudera.hsmkp, jceks, keytrustee, kms, localjceks, pkcs11`) {
		t.Error(err)
	}
}

// TestFailedOpenReturnsNil checks that a failed Open returns a nil interface, and not an interface that holds a nil
// pointer.
func TestFailedOpenReturnsNil(t *testing.T) {
	env := provider.Env{Get: func(string) (string, bool) { return "", false },
		Getenv: func(string) string { return "" }}
	for _, uri := range []string{"cloudera.hsmkp://file@/nowhere/luna.keystore", "pkcs11:token=x",
		"jceks://file@/nowhere/k", "localjceks://file/nowhere/k", "keytrustee://file@/nowhere/.keytrustee",
		"kms://ftp@x"} {
		if p, err := registry().Open(t.Context(), uri, env); err == nil || p != nil {
			t.Errorf("%s: %v, %v", uri, p, err)
		}
	}
}
