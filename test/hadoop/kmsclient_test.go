package hadoop

import (
	"slices"
	"strings"
	"testing"

	"claviger"
	"claviger/provider"
	"claviger/provider/kmsclient"
	"claviger/provider/providertest"
	"claviger/secret"
)

// fewIterations makes a Java KMS quick. Each change writes the whole keystore again, and seals each entry with this
// number of rounds. The default is 200,000; the tests of package keystore have it in both directions.
var fewIterations = []string{"JAVA_TOOL_OPTIONS=-Djdk.jceks.iterationCount=10000"}

// TestProviderOverJavaKMS runs the conformance suite of providers on a Java KMS with a kms:// URI.
func TestProviderOverJavaKMS(t *testing.T) {
	kms := StartJavaKMS(t, KMSOptions{Env: fewIterations})
	opener := func(t *testing.T) provider.Provider { return openJava(t, kms, "mig") }
	providertest.Run(t, providertest.Suite{
		New: opener,
		Reopen: func(t *testing.T, p provider.Provider) provider.Provider {
			_ = p.Close()
			return opener(t)
		},
		TakesMaterial: true,
		ShowsMaterial: true,
		Many:          20,
		// A Java keystore lists no key with an '@' in its name.
		Names: slices.DeleteFunc(slices.Clone(providertest.DefaultNames), func(n string) bool {
			return strings.Contains(n, "@") || n == "UPPER"
		}),
		Refused: []string{"Upper"},
	})
}

func openJava(t *testing.T, kms *KMS, user string) *kmsclient.Provider {
	t.Helper()
	p, err := kmsclient.New(kms.ProviderURI(), kmsclient.Options{User: user})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = p.Close() })
	return p
}

// TestRefusalsOfJavaKMS: an error about a refusal of a Java KMS, by ACL or by proxy rule, names the property that
// would allow the request. With that property, the request is allowed. An error about a wrong scheme names the right
// scheme.
func TestRefusalsOfJavaKMS(t *testing.T) {
	acls := OpenACLs().With(Conf{
		"hadoop.kms.blacklist.DECRYPT_EEK": "mig",
		"hadoop.kms.acl.DELETE":            "root",
		"key.acl.closed.MANAGEMENT":        "root",
		"key.acl.closed.GENERATE_EEK":      "root",
		"key.acl.closed.DECRYPT_EEK":       "root",
	})
	kms := StartJavaKMS(t, KMSOptions{ACLs: acls, Site: Conf{
		"hadoop.kms.proxyuser.mig.users": "alice",
		"hadoop.kms.proxyuser.mig.hosts": "*",
		"hadoop.kms.proxyuser.far.users": "alice",
		"hadoop.kms.proxyuser.far.hosts": "192.0.2.1",
	}})
	root, mig, far := openJava(t, kms, "root"), openJava(t, kms, "mig"), openJava(t, kms, "far")
	create := func(name string) []claviger.EDEK {
		t.Helper()
		if _, err := root.Create(t.Context(), provider.Spec{Name: name, Cipher: claviger.DefaultCipher,
			BitLength: 128}); err != nil {
			t.Fatal(err)
		}
		edeks, err := root.Generate(t.Context(), name, 2)
		if err != nil {
			t.Fatal(err)
		}
		return edeks
	}
	open, closed := create("open"), create("closed")

	// The proxy user is blacklisted, but only the rights of the user count.
	want, err := root.Unwrap(t.Context(), "open", "", open)
	if err != nil {
		t.Fatal(err)
	}
	got, err := mig.Unwrap(t.Context(), "open", "alice", open)
	if err != nil || !slices.EqualFunc(got, want, secret.Bytes.Equal) {
		t.Errorf("with doAs alice: %v", err)
	}
	for _, c := range []struct {
		name string
		err  error
		kind claviger.Kind
		text string
	}{
		{"blacklisted", second(mig.Unwrap(t.Context(), "open", "", open)), claviger.Denied,
			"hadoop.kms.blacklist.DECRYPT_EEK must not name that user"},
		{"not a user to act for", second(mig.Unwrap(t.Context(), "open", "mallory", open)), claviger.Denied,
			"hadoop.kms.proxyuser.mig.users"},
		{"not from here", second(far.Unwrap(t.Context(), "open", "alice", open)), claviger.Denied,
			"hadoop.kms.proxyuser.far.hosts"},
		{"no proxy at all", second(root.Unwrap(t.Context(), "open", "alice", open)), claviger.Denied,
			"hadoop.kms.proxyuser.root.users"},
		{"key of others, decrypt", second(mig.Unwrap(t.Context(), "closed", "alice", closed)), claviger.KeyDenied,
			"whitelist.key.acl.DECRYPT_EEK"},
		{"key of others, generate", second(mig.Generate(t.Context(), "closed", 1)), claviger.KeyDenied,
			"whitelist.key.acl.GENERATE_EEK"},
		{"key of others, re-encrypt", second(mig.Reencrypt(t.Context(), "closed", closed)), claviger.KeyDenied,
			"whitelist.key.acl.GENERATE_EEK"},
		{"key of others, metadata", second(mig.Metadata(t.Context(), "open", "closed")), claviger.KeyDenied,
			"whitelist.key.acl.READ"},
		{"delete", mig.Delete(t.Context(), "open"), claviger.Denied, "hadoop.kms.acl.DELETE"},
	} {
		if !claviger.Is(c.err, c.kind) || !strings.Contains(c.err.Error(), c.text) {
			t.Errorf("%s: %v; want kind %v and %q", c.name, c.err, c.kind, c.text)
		}
	}
	wrongScheme(t, kms)
}

func second[T any](_ T, err error) error { return err }

// wrongScheme checks that, if the URI says https, the error shows whether a Jetty supports only HTTP or is down.
func wrongScheme(t *testing.T, kms *KMS) {
	t.Helper()
	uri := strings.Replace(kms.ProviderURI(), "kms://http@", "kms://https@", 1)
	p, err := kmsclient.New(uri, kmsclient.Options{User: "mig"})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = p.Close() }()
	if _, err := p.Keys(t.Context()); err == nil ||
		!strings.Contains(err.Error(), "it speaks http, but the URI says https") {
		t.Errorf("%v", err)
	}
}
