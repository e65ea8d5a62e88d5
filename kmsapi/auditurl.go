package kmsapi

import (
	"strings"

	"claviger/secret"
)

// shownParameters are the parameters whose values an audit record may show. Other
// values become "***": a credential may be written in more ways than a list can
// hold (escapes, case, ';' instead of '&'), and a parameter that this server does
// not know was mostly meant for another program.
var shownParameters = map[string]bool{
	"user.name": true, "doAs": true, "doas": true, "op": true, "renewer": true, "service": true, // authn
	"eek_op": true, "num_keys": true, "key": true, "trusteeOp": true, // the operations
	"name": true, "qry": true, "get": true, "log": true, "level": true, "format": true, // the servlets
}

// maxParameterName is the longest name of an unknown parameter that is shown.
const maxParameterName = 32

// The URL in an audit record is cut, so that clients cannot fill the disk.
const (
	maxAuditURL     = 8 << 10 // bytes, for an authenticated user
	maxAnonymousURL = 512     // bytes, for a request that is not authenticated
)

// auditURL returns the request's URL without credentials.
func (c *call) auditURL() string {
	most := maxAuditURL
	if c.caller.Name == "" {
		most = maxAnonymousURL
	}
	url := c.baseURL() + withoutCredentials(rawPath(c.r), c.r.URL.RawQuery)
	if len(url) <= most {
		return url
	}
	return strings.ToValidUTF8(url[:most], "") + "..."
}

// withoutCredentials shows only the values of shownParameters, and only if a name
// is written exactly as there. It splits the query as authn does, at '&' and ';'.
// Matrix parameters of the path mean nothing here and are hidden whole.
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

// plainName reports whether name is short, and has only letters, digits, '.', '_'
// and '-'.
func plainName(name string) bool {
	return len(name) <= maxParameterName && !strings.ContainsFunc(name, func(r rune) bool {
		letter := r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z'
		return !(letter || r >= '0' && r <= '9' || r == '.' || r == '_' || r == '-')
	})
}
