package provider_test

import (
	"context"
	"os"
	"reflect"
	"slices"
	"strings"
	"testing"

	"claviger/provider"
)

// TestRegistry: a URI is opened by the provider of its scheme.
func TestRegistry(t *testing.T) {
	var opened string
	scheme := func(name string) provider.Scheme {
		return provider.Scheme{Name: name, Open: func(_ context.Context, uri string,
			env provider.Env) (provider.Provider, error) {
			opened = name + " " + uri + " " + env.User
			return nil, nil
		}}
	}
	r := provider.NewRegistry(scheme("kms"), scheme("jceks"), scheme("cloudera.hsmkp"))
	if got := r.Schemes(); !slices.Equal(got, []string{"cloudera.hsmkp", "jceks", "kms"}) {
		t.Errorf("schemes %q", got)
	}
	env := provider.Env{User: "u"}
	for _, uri := range []string{"jceks://file@/x", "JCEKS://file@/x"} {
		if _, err := r.Open(t.Context(), uri, env); err != nil || opened != "jceks "+uri+" u" {
			t.Errorf("%s opened %q, %v", uri, opened, err)
		}
	}
	for uri, want := range map[string]string{
		"":               `"" is not a provider URI`,
		"/etc/x":         "no scheme; known schemes: cloudera.hsmkp, jceks, kms",
		"jcek://file@/x": `unknown scheme "jcek"; known schemes: cloudera.hsmkp, jceks, kms`,
		":x":             "unknown scheme",
	} {
		if _, err := r.Open(t.Context(), uri, env); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want %q", uri, err, want)
		}
	}
	defer func() {
		if p := recover(); p == nil || !strings.Contains(p.(string), "kms") {
			t.Errorf("a scheme named twice: panic %v", p)
		}
	}()
	provider.NewRegistry(scheme("kms"), scheme("kms"))
}

// TestSplitURIs: a list of URIs is split at commas, but not within a PKCS #11 URI.
func TestSplitURIs(t *testing.T) {
	for list, want := range map[string][]string{
		"":                  nil,
		" , ,":              nil,
		"jceks://file@/a":   {"jceks://file@/a"},
		" jceks://file@/a,": {"jceks://file@/a"},
		"jceks://file@/a , kms://http@h:9600/kms\n,": {"jceks://file@/a", "kms://http@h:9600/kms"},
		"kms://https@h1;h2:9600/kms,memory:":         {"kms://https@h1;h2:9600/kms", "memory:"},
		"pkcs11:token=a,b;object=c,jceks://file@/a":  {"pkcs11:token=a,b;object=c", "jceks://file@/a"},
		"pkcs11:token=a, b,,c":                       {"pkcs11:token=a, b,,c"},
		"PKCS11:token=a,b":                           {"PKCS11:token=a,b"},
		"pkcs11:token=a%2C,pkcs11:token=b":           {"pkcs11:token=a%2C", "pkcs11:token=b"},
		"pkcs11:token=a,":                            {"pkcs11:token=a"},
		"cloudera.hsmkp://file@//x/luna.keystore":    {"cloudera.hsmkp://file@//x/luna.keystore"},
	} {
		got, err := provider.SplitURIs(list)
		if err != nil || !slices.Equal(got, want) {
			t.Errorf("%q: %q, %v; want %q", list, got, err, want)
		}
	}
	for list, want := range map[string]string{
		"/etc/kms.keystore":               "it has no scheme",
		"jceks://file@/a,b":               `"b" is not a provider URI`,
		"jceks://file@/a,1x:y":            `"1x:y" is not`,
		"kms://https@h1,h2:9600/kms":      "separated by ';'",
		"kms://https@h1,h2,h3:9600/kms":   "separated by ';'",
		"jceks://file@/a,h2:9600/kms":     `"h2:9600/kms" is not`,
		"kms://http@a/k,:,jceks://file@/": "separated by ';'",
		"jceks ://u:p,hunter2@h/x":        "a piece of it is not a provider URI",
	} {
		if got, err := provider.SplitURIs(list); err == nil || !strings.Contains(err.Error(), want) ||
			strings.Contains(err.Error(), "hunter2") {
			t.Errorf("%q: %q, %v; want %q", list, got, err, want)
		}
	}
}

// TestUnnestPath: the path in each form of Hadoop's nested URIs.
func TestUnnestPath(t *testing.T) {
	for uri, want := range map[string]string{
		"jceks://file@/etc/kms.keystore":                 "/etc/kms.keystore",
		"jceks://file/etc/kms.keystore":                  "/etc/kms.keystore", // Hadoop accepts this form too
		"cloudera.hsmkp://file@//home/x/luna.keystore":   "/home/x/luna.keystore",
		"cloudera.hsmkp://file@///home//x/luna.keystore": "/home/x/luna.keystore",
		"jceks://file@/a%20b/c%3Fd%25":                   "/a b/c?d%",
		"jceks://file@/a+b@c:d;e":                        "/a+b@c:d;e",
		"jceks://file@/a/../b":                           "/b",
		"jceks://file@/é":                                "/é",
	} {
		if got, err := provider.UnnestPath(uri); err != nil || got != want {
			t.Errorf("%s: %q, %v; want %q", uri, got, err, want)
		}
	}
	for uri, want := range map[string]string{
		"":                           "no scheme",
		"/etc/x":                     "no scheme",
		"jceks:/etc/x":               "as in jceks://file@/path/to/file",
		"jceks:///etc/x":             "does not say where the file is",
		"jceks://hdfs@nn1:8020/x":    `file system "hdfs" are not supported`,
		"jceks://s3a@bucket/x":       `"s3a"`,
		"jceks://file@host/x":        `there is "host" behind`,
		"jceks://file@":              "path is missing",
		"jceks://file@/":             "path is missing",
		"jceks://file@//":            "path is missing",
		"jceks://file@/x?y":          "%3F",
		"jceks://file@/x#y":          "%23",
		"jceks://file@/x%zz":         "%25",
		"jceks://file@/x%00":         "NUL",
		"cloudera.hsmkp://dbfs@/x/y": "cloudera.hsmkp://file@/path",
	} {
		if got, err := provider.UnnestPath(uri); err == nil || !strings.Contains(err.Error(), want) ||
			!strings.Contains(err.Error(), "provider URI") {
			t.Errorf("%q: %q, %v; want %q", uri, got, err, want)
		}
	}
}

// TestParseKMS: the parts of kms:// URIs, and which ones are refused.
func TestParseKMS(t *testing.T) {
	for uri, want := range map[string]struct {
		k    provider.KMSURI
		urls []string
	}{
		"kms://https@h1;h2:9600/kms": {
			provider.KMSURI{Scheme: "https", Hosts: []string{"h1", "h2"}, Port: 9600, Path: "/kms"},
			[]string{"https://h1:9600/kms", "https://h2:9600/kms"},
		},
		"kms://http@127.0.0.1:16000/kms/": {
			provider.KMSURI{Scheme: "http", Hosts: []string{"127.0.0.1"}, Port: 16000, Path: "/kms"},
			[]string{"http://127.0.0.1:16000/kms"},
		},
		"KMS://HTTPS@h/a/b": {
			provider.KMSURI{Scheme: "https", Hosts: []string{"h"}, Port: 443, Path: "/a/b"},
			[]string{"https://h:443/a/b"},
		},
		"kms://http@h": {
			provider.KMSURI{Scheme: "http", Hosts: []string{"h"}, Port: 80},
			[]string{"http://h:80"},
		},
		"kms://http@[::1];[fe80::2]:9600/kms#x": {
			provider.KMSURI{Scheme: "http", Hosts: []string{"::1", "fe80::2"}, Port: 9600, Path: "/kms"},
			[]string{"http://[::1]:9600/kms", "http://[fe80::2]:9600/kms"},
		},
	} {
		got, err := provider.ParseKMS(uri)
		if err != nil || !reflect.DeepEqual(got, want.k) || !slices.Equal(got.BaseURLs(), want.urls) {
			t.Errorf("%s: %+v %q, %v; want %+v", uri, got, got.BaseURLs(), err, want)
		}
	}
	for uri, want := range map[string]string{
		"":                                 "does not begin with kms://",
		"jceks://file@/x":                  "does not begin with kms://",
		"kms:https@h/kms":                  "does not begin with kms://",
		"kms://h:9600/kms":                 "http@ or https@",
		"kms://ftp@h:9600/kms":             "http@ or https@",
		"kms://https@/kms":                 "name of a host is missing",
		"kms://https@h1;;h2/kms":           "name of a host is missing",
		"kms://https@h1,h2:9600/kms":       "separated by ';'",
		"kms://https@h1:1;h2:2/kms":        "all hosts have one port",
		"kms://https@h:x/kms":              `"<redacted>" is not a port`, // a password, if the '@' is missing
		"kms://https@u:hunter2/kms":        `"<redacted>" is not a port`,
		"kms://https@u:hunter2.h:9600/kms": "all hosts have one port",
		"kms://https@h:0/kms":              "not a port",
		"kms://https@h:65536/kms":          "not a port",
		"kms://https@h:/kms":               "not a port",
		"kms://https@u@h:9600/kms":         "more than one '@'",
		"kms://https@[::1:9600/kms":        "brackets",
		"kms://https@[1.2.3.4]/kms":        "brackets",
		"kms://https@::1/kms":              "brackets",
		"kms://https@a b:9600/kms":         "cannot be in the name of a host",
		"kms://https@h:9600/kms?x=y":       "query",
		"kms://https@h:9600/k%zz":          "cannot be read",
	} {
		if got, err := provider.ParseKMS(uri); err == nil || !strings.Contains(err.Error(), want) ||
			strings.Contains(err.Error(), "hunter2") ||
			!strings.Contains(err.Error(), "kms://https@host1;host2:9600/kms") {
			t.Errorf("%q: %+v, %v; want %q", uri, got, err, want)
		}
	}
}

func seeds(f *testing.F, dir string) {
	if list, err := os.ReadDir("testdata/fuzz/" + dir); err != nil || len(list) == 0 {
		f.Fatalf("no seeds in testdata/fuzz/%s: %v", dir, err)
	}
}

// FuzzSplitURIs: each URI of a list has a scheme, and the URIs joined by commas split into the same URIs.
func FuzzSplitURIs(f *testing.F) {
	seeds(f, "FuzzSplitURIs")
	f.Fuzz(func(t *testing.T, list string) {
		uris, err := provider.SplitURIs(list)
		if err != nil {
			return
		}
		// The joined URIs split into the same URIs.
		again, err := provider.SplitURIs(strings.Join(uris, ","))
		if err != nil || !slices.Equal(uris, again) {
			t.Errorf("%q: %q, again: %q, %v", list, uris, again, err)
		}
		for _, u := range uris {
			if !strings.Contains(u, ":") {
				t.Errorf("%q: %q has no scheme", list, u)
			}
		}
	})
}

// FuzzUnnestPath: a path is absolute, clean, and not the root.
func FuzzUnnestPath(f *testing.F) {
	seeds(f, "FuzzUnnestPath")
	f.Fuzz(func(t *testing.T, uri string) {
		got, err := provider.UnnestPath(uri)
		if err == nil && (!strings.HasPrefix(got, "/") || got == "/" || strings.Contains(got, "//") ||
			strings.Contains(got+"/", "/../")) {
			t.Errorf("%q: %q", uri, got)
		}
	})
}

// FuzzParseKMS: a kms:// URI that is parsed and written again is the same URI.
func FuzzParseKMS(f *testing.F) {
	seeds(f, "FuzzParseKMS")
	f.Fuzz(func(t *testing.T, uri string) {
		k, err := provider.ParseKMS(uri)
		if err != nil {
			return
		}
		again, err := provider.ParseKMS("kms://" + k.Scheme + "@" + strings.TrimPrefix(k.BaseURLs()[0], k.Scheme+"://"))
		if err != nil || again.Scheme != k.Scheme || again.Port != k.Port || again.Path != k.Path ||
			again.Hosts[0] != k.Hosts[0] {
			t.Errorf("%q: %+v, again: %+v, %v", uri, k, again, err)
		}
	})
}

// TestNoSecretsInURIs checks that a URI with a secret is refused, and that no message quotes the secret.
func TestNoSecretsInURIs(t *testing.T) {
	r := provider.NewRegistry()
	for _, uri := range []string{
		"kms://http@u:sekret@h:9600/kms", "kms://u:sekret@http@h:9600/kms", "kms://http@h:9600/kms;password=sekret",
		"kms://http@h:9600/kms?user.name=x&delegation=sekret",
		"jceks://u:sekret@file@/k", "jceks://file@/k?password=sekret", "jceks://u:sekret@/k", "nosuch://u:sekret@h/",
		"nosuch:u:sekret@h", "x,kms://http@u:sekret@h",
	} {
		_, err := provider.ParseKMS(uri)
		_, err2 := provider.UnnestPath(uri)
		_, err3 := r.Open(t.Context(), uri, provider.Env{})
		_, err4 := provider.SplitURIs("jceks://file@/k," + strings.TrimPrefix(uri, "nosuch:"))
		for i, err := range []error{err, err2, err3, err4} {
			if i < 3 && err == nil || err != nil && strings.Contains(err.Error(), "sekret") {
				t.Errorf("%s, %d: %v", uri, i, err)
			}
		}
	}
}
