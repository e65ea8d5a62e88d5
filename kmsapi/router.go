package kmsapi

import (
	"net/http"
	"strconv"
	"strings"
)

// Paths are matched on the raw request target, as Jersey 1 on Jetty does. A key's
// name may contain slashes, raw or escaped, "//" and "..". A router that cleans
// paths, or redirects to clean ones, would serve the wrong key. Literal segments
// match only without escapes.
const (
	base = "/kms"

	patternRoot       = ""
	patternKeys       = "keys"
	patternMetadata   = "keys/metadata"
	patternNames      = "keys/names"
	patternKey        = "key/{name}"
	patternKeyVersion = "keyversion/{name}"

	// Paths of the Key Trustee KMS that Hadoop does not have. The second is our own.
	patternTrusteeKey = "trustee/key/{name}"
	patternDeleted    = "trustee/keys/deleted"
)

// resource is a kind of path with a name: the prefix, the name, and optionally a last segment from subs, which does not
// belong to the name.
type resource struct {
	prefix, pattern string
	subs            []sub
}

type sub struct{ suffix, pattern string }

func newResource(prefix string, subs ...string) resource {
	r := resource{prefix: prefix, pattern: prefix + "{name}"}
	for _, s := range subs {
		r.subs = append(r.subs, sub{"/" + s, r.pattern + "/" + s})
	}
	return r
}

var resources = []resource{
	newResource("key/",
		"_invalidatecache", "_metadata", "_currentversion", "_versions", "_eek", "_dek", "_reencryptbatch"),
	newResource("keyversion/", "_eek"),
	newResource("trustee/key/"),
}

// match returns the pattern that a raw path matches, and the raw name in the path.
// ok is false if it matches none.
func match(path string) (pattern, rawName string, ok bool) {
	rest, ok := strings.CutPrefix(path, base+"/v1")
	if !ok || rest != "" && rest[0] != '/' {
		return "", "", false
	}
	rest = strings.TrimPrefix(rest, "/")
	switch strings.TrimSuffix(rest, "/") {
	case patternRoot, patternKeys, patternMetadata, patternNames, patternDeleted:
		return strings.TrimSuffix(rest, "/"), "", !strings.HasPrefix(rest, "/")
	}
	for i := range resources {
		r := &resources[i]
		name, ok := strings.CutPrefix(rest, r.prefix)
		if !ok {
			continue
		}
		trimmed := strings.TrimSuffix(name, "/")
		for _, s := range r.subs {
			if n, ok := strings.CutSuffix(trimmed, s.suffix); ok {
				return s.pattern, n, true
			}
		}
		return r.pattern, name, true
	}
	return "", "", false
}

// withoutMatrix removes the matrix parameters (";x=y") of each segment of a raw
// path.
func withoutMatrix(path string) string {
	if strings.IndexByte(path, ';') < 0 {
		return path
	}
	var b strings.Builder
	for i, seg := range strings.Split(path, "/") {
		if i > 0 {
			b.WriteByte('/')
		}
		seg, _, _ = strings.Cut(seg, ";")
		b.WriteString(seg)
	}
	return b.String()
}

// decodeName decodes the percent escapes of a raw name; a '+' stays a '+'. Bytes
// that are not UTF-8 become U+FFFD, as in Java. ok is false for a broken escape or
// a NUL, which Jetty refuses before any filter.
func decodeName(raw string) (name string, ok bool) {
	if strings.IndexByte(raw, '%') < 0 {
		return strings.ToValidUTF8(raw, "\ufffd"), true
	}
	b := make([]byte, 0, len(raw))
	for i := 0; i < len(raw); i++ {
		c := raw[i]
		if c == '%' {
			if i+2 >= len(raw) {
				return "", false
			}
			n, err := strconv.ParseUint(raw[i+1:i+3], 16, 8)
			if err != nil || n == 0 {
				return "", false
			}
			c = byte(n)
			i += 2
		}
		b = append(b, c)
	}
	return strings.ToValidUTF8(string(b), "\ufffd"), true
}

// find returns the route of a method on a pattern, or nil. HEAD has GET's route.
func find(pattern, method string) *route {
	if method == http.MethodHead {
		method = http.MethodGet
	}
	for i := range routes {
		if routes[i].pattern == pattern && routes[i].method == method {
			return &routes[i]
		}
	}
	return nil
}

// allowed returns the value of a pattern's Allow header, in Jersey's order.
func allowed(pattern string) string {
	methods := []string{http.MethodOptions}
	if find(pattern, http.MethodGet) != nil {
		methods = append(methods, http.MethodHead)
	}
	for _, m := range []string{http.MethodDelete, http.MethodPost, http.MethodGet} {
		if find(pattern, m) != nil {
			methods = append(methods, m)
		}
	}
	return strings.Join(methods, ",")
}
