package kmsapi_test

import (
	"context"
	"errors"
	"log/slog"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"claviger"
	"claviger/keyring"
	"claviger/kmsapi"
	"claviger/provider"
	"claviger/provider/memory"
)

// allMethods are methods of HTTP and WebDAV, and some that do not exist.
var allMethods = []string{"GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH", "TRACE", "CONNECT", "PROPFIND",
	"MKCOL", "M-SEARCH", "get", "FOO", "X"}

// TestMethods sends every method to every path. A method that a path does not have is a 405 with
// the list of its methods, and no answer is a 5xx.
func TestMethods(t *testing.T) {
	primary := memory.New(memory.Config{SequentialIDs: true})
	t.Cleanup(func() { _ = primary.Close() })
	addr := start(t, stack{Primary: primary, KeyAuthorization: true, Operations: kmsapi.Operations{
		Level: new(slog.LevelVar), Prometheus: http.NotFoundHandler(),
		Properties: func() ([]kmsapi.Property, error) { return nil, nil },
	}})
	const one = `{"name":"k","iv":"AAAAAAAAAAAAAAAAAAAAAA","material":"AAAAAAAAAAAAAAAAAAAAAA"}`
	for _, r := range []struct{ path, methods, body string }{
		{"/kms/v1", "", ""},
		{"/kms/v1/", "", ""},
		{"/kms/v1/keys", "POST", `{"name":"new","length":128}`},
		{"/kms/v1/keys/metadata?key=k", "GET HEAD", ""},
		{"/kms/v1/keys/names", "GET HEAD", ""},
		{"/kms/v1/key/k", "GET HEAD POST DELETE", "{}"},
		{"/kms/v1/key/k/_metadata", "GET HEAD", ""},
		{"/kms/v1/key/k/_invalidatecache", "POST", ""},
		{"/kms/v1/key/k/_currentversion", "GET HEAD", ""},
		{"/kms/v1/key/k/_versions", "GET HEAD", ""},
		{"/kms/v1/key/k/_eek?eek_op=generate&num_keys=1", "GET HEAD", ""},
		{"/kms/v1/key/k/_dek", "GET HEAD", ""},
		{"/kms/v1/key/k/_reencryptbatch", "POST", "[]"},
		{"/kms/v1/keyversion/k@0", "GET HEAD", ""},
		{"/kms/v1/keyversion/k@0/_eek?eek_op=decrypt", "POST", one},
		{"/kms/v1/trustee/key/k", "GET HEAD POST", ""}, // 400: without an operation
		{"/kms/v1/trustee/keys/deleted", "GET HEAD", ""},
		{"/kms/api/status", "GET HEAD", ""},
		{"/kms/metrics/json", "GET HEAD", ""},
		{"/kms/metrics/prometheus", "GET HEAD", ""},
		{"/jmx", "GET HEAD", ""},
		{"/kms/jmx", "GET HEAD", ""},
		{"/conf", "GET HEAD", ""},
		{"/stacks", "GET HEAD", ""},
		{"/logLevel", "GET HEAD", ""},
		{"/prom", "GET HEAD", ""},
		{"/kms/unknown", "404", ""},
		{"/kms/v2/keys", "404", ""},
		{"/", "404", ""},
		{"/elsewhere", "404", ""},
		{"*", "404", ""},
	} {
		for _, method := range allMethods {
			if _, err := primary.Create(t.Context(), provider.Spec{Name: "k", Cipher: claviger.DefaultCipher,
				BitLength: 128}); err != nil && !claviger.Is(err, claviger.KeyExists) {
				t.Fatal(err)
			}
			if err := primary.Delete(t.Context(), "new"); err != nil && !claviger.Is(err, claviger.KeyNotFound) {
				t.Fatal(err)
			}
			target := r.path + "?user.name=alice"
			if strings.Contains(r.path, "?") {
				target = r.path + "&user.name=alice"
			}
			if r.path == "*" {
				target = r.path
			}
			a := sendAs(t, addr, method, target, r.body)
			if a.status >= 500 {
				t.Errorf("%s %s: %d %s", method, r.path, a.status, a.body)
			}
			allow := strings.FieldsFunc(a.header("Allow"), func(c rune) bool { return c == ',' || c == ' ' })
			has := slices.Contains(strings.Fields(r.methods), method)
			switch {
			case r.methods == "404": // for an unknown path, any 4xx is right
			case method == http.MethodOptions:
				if a.status != http.StatusOK || len(allow) == 0 {
					t.Errorf("%s %s: %d, Allow %q", method, r.path, a.status, allow)
				}
			case has && a.status == http.StatusMethodNotAllowed:
				t.Errorf("%s %s: %d", method, r.path, a.status)
			case !has && method != "CONNECT" && (a.status != http.StatusMethodNotAllowed || len(allow) == 0 ||
				slices.Contains(allow, method)):
				t.Errorf("%s %s: %d, Allow %q", method, r.path, a.status, allow)
			}
		}
	}
}

// absent is a provider that can be unavailable, like an HSM or a store.
type absent struct {
	*memory.Provider
	err func() error // its result nil means that the provider is available
}

func (a absent) Keys(ctx context.Context) ([]string, error) {
	if err := a.err(); err != nil {
		return nil, err
	}
	return a.Provider.Keys(ctx)
}

func (a absent) Metadata(ctx context.Context, names ...string) ([]*claviger.Metadata, error) {
	if err := a.err(); err != nil {
		return nil, err
	}
	return a.Provider.Metadata(ctx, names...)
}

func (a absent) Versions(ctx context.Context, key string) ([]claviger.KeyVersion, error) {
	if err := a.err(); err != nil {
		return nil, err
	}
	return a.Provider.Versions(ctx, key)
}

func (a absent) Current(ctx context.Context, key string) (claviger.KeyVersion, error) {
	if err := a.err(); err != nil {
		return claviger.KeyVersion{}, err
	}
	return a.Provider.Current(ctx, key)
}

func (a absent) Version(ctx context.Context, version string) (claviger.KeyVersion, error) {
	if err := a.err(); err != nil {
		return claviger.KeyVersion{}, err
	}
	return a.Provider.Version(ctx, version)
}

func (a absent) EncryptBlocks(ctx context.Context, version string, blocks []byte) error {
	if err := a.err(); err != nil {
		return err
	}
	return a.Provider.EncryptBlocks(ctx, version, blocks)
}

// EncryptBlocksOf is called by the keyring instead of EncryptBlocks.
func (a absent) EncryptBlocksOf(ctx context.Context, v claviger.KeyVersion, blocks []byte) error {
	return a.EncryptBlocks(ctx, v.Name, blocks)
}

func (a absent) Create(ctx context.Context, spec provider.Spec) (claviger.KeyVersion, error) {
	if err := a.err(); err != nil {
		return claviger.KeyVersion{}, err
	}
	return a.Provider.Create(ctx, spec)
}

func (a absent) RollIf(ctx context.Context, key string, material []byte, may func(*claviger.Metadata) error) (
	claviger.KeyVersion, error) {
	if err := a.err(); err != nil {
		return claviger.KeyVersion{}, err
	}
	return a.Provider.RollIf(ctx, key, material, may)
}

func (a absent) DeleteIf(ctx context.Context, key string, may func(*claviger.Metadata) error) error {
	if err := a.err(); err != nil {
		return err
	}
	return a.Provider.DeleteIf(ctx, key, may)
}

// TestUnavailable: if an operation fails because a part is unavailable, the answer makes stock
// clients try the next node, and does not name the part.
func TestUnavailable(t *testing.T) {
	const secretText = "pkcs11:token=inner refused at 10.0.0.7"
	var fail error
	primary := absent{memory.New(memory.Config{SequentialIDs: true}), func() error { return fail }}
	t.Cleanup(func() { _ = primary.Close() })
	source := memory.New(memory.Config{URI: "kms://http@inner.example.com:9600/kms"})
	t.Cleanup(func() { _ = source.Close() })
	addr := start(t, stack{
		Primary: primary, KeyAuthorization: true, Reencryption: true, SourceTimeout: time.Second,
		Sources: []keyring.Source{{Provider: absent{source, func() error { return fail }}, Reencryption: true}},
	})
	const edek = `"iv":"AAAAAAAAAAAAAAAAAAAAAA","encryptedKeyVersion":{"versionName":"EEK",` +
		`"material":"AAAAAAAAAAAAAAAAAAAAAA"}`
	const one = `{"name":"k","iv":"AAAAAAAAAAAAAAAAAAAAAA","material":"AAAAAAAAAAAAAAAAAAAAAA"}`
	ops := []struct {
		method, target, body string
		changes              bool
	}{
		{"POST", "/kms/v1/keys", `{"name":"fresh","length":128}`, true},
		{"POST", "/kms/v1/key/k", "{}", true},
		{"DELETE", "/kms/v1/key/k", "", true},
		{"GET", "/kms/v1/keys/names", "", false},
		{"GET", "/kms/v1/keys/metadata?key=k", "", false},
		{"GET", "/kms/v1/key/k/_metadata", "", false},
		{"GET", "/kms/v1/key/k/_currentversion", "", false},
		{"GET", "/kms/v1/key/k/_versions", "", false},
		{"GET", "/kms/v1/key/k/_eek?eek_op=generate&num_keys=1", "", false},
		{"GET", "/kms/v1/key/k/_dek", "", false},
		{"GET", "/kms/v1/keyversion/k@0", "", false},
		{"POST", "/kms/v1/keyversion/k@0/_eek?eek_op=decrypt", one, false},
		{"POST", "/kms/v1/keyversion/k@0/_eek?eek_op=reencrypt", one, false},
		{"POST", "/kms/v1/key/k/_reencryptbatch", `[{"versionName":"k@0",` + edek + `}]`, false},
	}
	for what, err := range map[string]error{
		"not reached":  claviger.E("inner.call", claviger.Unavailable, "k", errors.New(secretText)),
		"source":       claviger.E("inner.call", claviger.SourceUnreachable, "k", errors.New(secretText)),
		"closed":       claviger.E("inner.call", claviger.Closed, "k", errors.New(secretText)),
		"did not end":  context.DeadlineExceeded,
		"did not end'": claviger.E("inner.call", claviger.Internal, "k", context.DeadlineExceeded),
	} {
		for _, o := range ops {
			fail = err
			a := send(t, addr, o.method, o.target, o.body)
			fail = nil
			class, message := a.thrown(t)
			if errors.Is(err, context.DeadlineExceeded) && o.changes {
				// The change may have been made.
				if a.status != http.StatusInternalServerError && a.status != http.StatusServiceUnavailable {
					t.Errorf("%s: %s %s: %d %s", what, o.method, o.target, a.status, message)
				}
			} else if a.status != http.StatusServiceUnavailable || class != "org.apache.hadoop.ipc.StandbyException" ||
				a.header("Retry-After") == "" {
				t.Errorf("%s: %s %s: %d %s %s", what, o.method, o.target, a.status, class, message)
			}
			for _, inner := range []string{"inner", "10.0.0.7", "pkcs11"} {
				if strings.Contains(message, inner) {
					t.Errorf("%s: %s %s shows %q: %s", what, o.method, o.target, inner, message)
				}
			}
		}
	}
}
