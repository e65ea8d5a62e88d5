package kmsapi

import (
	"strings"

	"claviger/secret"
)

// shownParameters are those whose values an audit record may show. All others
// stand there without: a credential may be spelt in more ways than can be listed
// (escapes, case, a ';' where '&' is meant), and most of what this server does not
// know was meant for something else.
var shownParameters = map[string]bool{
	"user.name": true, "doAs": true, "doas": true, "op": true, "renewer": true, "service": true, // authn
	"eek_op": true, "num_keys": true, "key": true, "trusteeOp": true, // the operations
	"name": true, "qry": true, "get": true, "log": true, "level": true, "format": true, // the servlets
}

// maxParameterName of a parameter that the server does not know, and is shown.
const maxParameterName = 32

// An URL in an audit record ends after so many bytes, for a user and for a request that
// has not been authenticated: else anybody could fill the disk.
const (
	maxAuditURL     = 8 << 10
	maxStrangersURL = 512
)

// auditURL is the request's URL without what would let a reader of the log in.
func (c *call) auditURL() string {
	most := maxAuditURL
	if c.caller.Name == "" {
		most = maxStrangersURL
	}
	url := c.baseURL() + withoutCredentials(rawPath(c.r), c.r.URL.RawQuery)
	if len(url) <= most {
		return url
	}
	return strings.ToValidUTF8(url[:most], "") + "..."
}

// withoutCredentials cuts a query as authn does, at '&' and ';', and shows the
// values of shownParameters alone, where they are spelt as there. Matrix
// parameters of the path, which mean nothing here, are cut whole.
func withoutCredentials(path, query string) string {
	var b strings.Builder
	for i, segment := range strings.Split(path, "/") {
		if i > 0 {
			b.WriteByte('/')
		}
		name, _, matrix := strings.Cut(segment, ";")
		b.WriteString(name)
		if matrix {
			b.WriteString(";***")
		}
	}
	for sep := byte('?'); query != ""; {
		b.WriteByte(sep)
		end := strings.IndexAny(query, "&;")
		part := query
		if end >= 0 {
			part, sep, query = query[:end], query[end], query[end+1:]
		} else {
			query = ""
		}
		name, value, hasValue := strings.Cut(part, "=")
		switch {
		case shownParameters[name]:
			b.WriteString(part[:len(part)-len(value)])
			if secret.Mask(value) == value {
				b.WriteString(value)
			} else {
				b.WriteString("***")
			}
		case !plainName(name):
			b.WriteString("***")
		case hasValue:
			b.WriteString(name + "=***")
		default:
			b.WriteString(name)
		}
	}
	return secret.Mask(b.String())
}

// plainName: letters, digits, '.', '_' and '-', and not too many.
func plainName(name string) bool {
	return len(name) <= maxParameterName && !strings.ContainsFunc(name, func(r rune) bool {
		return !(r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || r == '.' || r == '_' || r == '-')
	})
}
