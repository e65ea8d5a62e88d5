package kmsapi

import (
	"net/http"
	"net/url"
	"os"
	"strings"
	"testing"
	"unicode/utf8"
)

// FuzzPath uses any text as a raw path, and as a key's name in a path. A path matches one resource
// or none, and a name that a client has escaped is decoded to the same name.
func FuzzPath(f *testing.F) {
	if seeds, err := os.ReadDir("testdata/fuzz/FuzzPath"); err != nil || len(seeds) == 0 {
		f.Fatalf("no seeds: %v", err)
	}
	f.Fuzz(func(t *testing.T, text string) {
		cut := withoutMatrix(text) // "/kms;x/v1" is /kms/v1
		if pattern, raw, ok := match(cut); ok {
			if !strings.HasPrefix(cut, base+"/v1") {
				t.Errorf("%q, outside of %s/v1, matches %s", text, base, pattern)
			}
			if allowed(pattern) == "" || raw != "" && !strings.Contains(pattern, "{name}") {
				t.Errorf("%q is %s with the name %q", text, pattern, raw)
			}
			if name, ok := decodeName(raw); ok && (!utf8.ValidString(name) || strings.Contains(raw, "%00")) {
				t.Errorf("%q is the name %q", raw, name)
			}
		} else if pattern != "" || raw != "" {
			t.Errorf("%q matches nothing, but returns %q and %q", text, pattern, raw)
		}
		if !utf8.ValidString(text) || strings.ContainsRune(text, 0) {
			return
		}
		for _, r := range routes {
			before, after, ok := strings.Cut(r.pattern, "{name}")
			if !ok {
				continue
			}
			path := base + "/v1/" + before + url.PathEscape(text) + after
			pattern, raw, ok := match(withoutMatrix(path))
			if name, whole := decodeName(raw); !ok || !whole || pattern != r.pattern || name != text {
				t.Errorf("%s matches %s with the name %q, want %s with %q", path, pattern, name, r.pattern, text)
			}
		}
	})
}

// TestMatch: the route and the escaped key name of each kind of path; a matrix parameter and a slash at the end do not
// count.
func TestMatch(t *testing.T) {
	for path, want := range map[string]string{
		"/kms/v1":                            " ",
		"/kms/v1/":                           " ",
		"/kms/v1//":                          "none",
		"/kms/v12/keys":                      "none",
		"/kms/v1/keys":                       "keys ",
		"/kms/v1/keys/":                      "keys ",
		"/kms/v1/keys/names/x":               "none",
		"/kms/v1/%6Beys/names":               "none",
		"/kms/v1/key/a/b/_metadata":          "key/{name}/_metadata a/b",
		"/kms/v1/key/a/_metadata/_eek":       "key/{name}/_eek a/_metadata",
		"/kms/v1/key/a/%5Fmetadata":          "key/{name} a/%5Fmetadata",
		"/kms/v1/key/_metadata":              "key/{name} _metadata",
		"/kms/v1/key/a/_foo":                 "key/{name} a/_foo",
		"/kms/v1/keyversion/a/_metadata":     "keyversion/{name} a/_metadata",
		"/kms/v1/keyversion/a@0/_eek/":       "keyversion/{name}/_eek a@0",
		"/kms/v1/trustee/key/a/_metadata":    "trustee/key/{name} a/_metadata",
		"/kms/v1/trustee/keys/deleted/":      "trustee/keys/deleted ",
		"/kms/v1/trustee/keys":               "none",
		"/kms/v1/key;v=1/a;b=c/_metadata;q":  "key/{name}/_metadata a",
		"/kms/v1/key/../../secret/_metadata": "key/{name}/_metadata ../../secret",
	} {
		pattern, raw, ok := match(withoutMatrix(path))
		got := pattern + " " + raw
		if !ok {
			got = "none"
		}
		if got != want {
			t.Errorf("%s is %q, want %q", path, got, want)
		}
	}
}

// TestRawPath: the path as the client escaped it, for each form of a request's target.
func TestRawPath(t *testing.T) {
	for uri, want := range map[string]string{
		"/kms/v1/key/a%2Fb?x=/": "/kms/v1/key/a%2Fb", "*": "*", "": "",
		"http://kms:9600/kms/v1/keys/names?user.name=a": "/kms/v1/keys/names", "https://kms": "/",
	} {
		if got := rawPath(&http.Request{RequestURI: uri}); got != want {
			t.Errorf("%s: %s, want %s", uri, got, want)
		}
	}
}

// TestRoutes checks the table of routes for contradictions.
func TestRoutes(t *testing.T) {
	seen := map[string]bool{}
	for _, r := range routes {
		if key := r.method + " " + r.pattern; seen[key] {
			t.Errorf("%s is in the table twice", key)
		} else {
			seen[key] = true
		}
		if r.deadline <= 0 || r.handle == nil || meterOf[r.op] == "" ||
			(r.body != noBody) != (r.method == http.MethodPost && r.op != "invalidate_cache" &&
				r.op != "undelete_key") {
			t.Errorf("%+v", r)
		}
	}
	// Fourteen routes are of Hadoop's KMS. Its fifteenth operation, OPTIONS, has no route. Two routes are
	// about deleted keys, one describes a key, and one is Ranger's.
	if len(seen) != 18 {
		t.Errorf("%d routes", len(seen))
	}
}

// TestFirstValue: a parameter is read as url.ParseQuery does, in all queries of up to four of these parts.
func TestFirstValue(t *testing.T) {
	parts := []string{"", "eek_op=decrypt", "eek_op=a%20b+c", "eek%5Fop=x", "eek_op", "eek_op=", "eek_op=%zz",
		"=eek_op", "eek_op=a;b", "x=eek_op=y", "%zz=1", "eek+op=1"}
	var try func(query string, more int)
	try = func(query string, more int) {
		want := (&url.URL{RawQuery: query}).Query()["eek_op"]
		got, ok := firstValue(query, "eek_op")
		if ok != (len(want) > 0) || ok && got != want[0] {
			t.Fatalf("%q: %q, %v, want the first of %q", query, got, ok, want)
		}
		for _, p := range parts {
			if more > 0 {
				try(query+"&"+p, more-1)
			}
		}
	}
	for _, p := range parts {
		try(p, 3)
	}
}
