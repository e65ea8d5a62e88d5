package provider

import (
	"errors"
	"fmt"
	"net"
	"net/url"
	"path"
	"strconv"
	"strings"

	"claviger/secret"
)

// SplitURIs splits Hadoop's comma-separated list of provider URIs (hadoop.kms.key.provider.uri,
// hadoop.security.key.provider.path). It drops blanks around a URI, and empty entries. A pkcs11: URI may contain a
// comma (RFC 7512 allows it in an attribute's value), if the text behind the comma does not begin with a scheme. At the
// end of the URI, write %2C.
func SplitURIs(list string) ([]string, error) {
	var uris []string
	for _, piece := range strings.Split(list, ",") {
		last := len(uris) - 1
		uri := strings.TrimSpace(piece)
		switch scheme, rest := cutScheme(uri); {
		case scheme != "" && !looksLikePort(rest):
			uris = append(uris, uri)
		case last >= 0 && isScheme(uris[last], "pkcs11"):
			uris[last] += "," + strings.TrimRight(piece, " \t\r\n")
		case uri == "":
		case last >= 0 && isScheme(uris[last], "kms"):
			return nil,
				fmt.Errorf("provider list %q: %s is not a provider URI; the hosts of one kms:// URI are separated by "+
					"';', not ','", secret.Value(list), showPiece(list, uri))
		default:
			return nil, fmt.Errorf("provider list %q: %s is not a provider URI: it has no scheme (such as jceks:// or "+
				"kms://)", secret.Value(list), showPiece(list, uri))
		}
	}
	for i := range uris {
		uris[i] = strings.TrimRight(uris[i], ", \t\r\n")
	}
	return uris, nil
}

// showPiece returns the text between two commas of a list for a message. If the list contains a password, the text may
// be a part of it, so it is not shown.
func showPiece(list, piece string) string {
	if secret.Value(list) != list {
		return "a piece of it"
	}
	return strconv.Quote(piece)
}

// checkNoSecrets refuses a URI that contains a password or another secret: URIs are written into logs, answers and
// journals.
func checkNoSecrets(uri string) error {
	if secret.ContainsSecret(uri) {
		return fmt.Errorf("provider URI %q contains a secret, which has no effect there and would be written into "+
			"logs; remove it", secret.Value(uri))
	}
	return nil
}

// refusal makes the error for a wrong URI. If the URI contains a password, the error quotes no part of the URI.
func refusal(uri, format string, args ...any) error {
	shown := secret.Value(uri)
	for i, arg := range args {
		if part, ok := arg.(string); ok && shown != uri && strings.Contains(uri, part) {
			args[i] = secret.Redacted
		}
	}
	return fmt.Errorf("provider URI %q: %s", shown, fmt.Sprintf(format, args...))
}

// cutScheme returns the scheme of a URI (RFC 3986 §3.1) and the text behind the ':'. If the URI has no scheme, it
// returns "" and the URI.
func cutScheme(uri string) (scheme, rest string) {
	scheme, rest, ok := strings.Cut(uri, ":")
	if !ok || scheme == "" {
		return "", uri
	}
	for i, c := range []byte(scheme) {
		letter := 'a' <= c|0x20 && c|0x20 <= 'z'
		if !letter && (i == 0 || !('0' <= c && c <= '9' || c == '+' || c == '-' || c == '.')) {
			return "", uri
		}
	}
	return scheme, rest
}

func isScheme(uri, want string) bool {
	scheme, _ := cutScheme(uri)
	return strings.EqualFold(scheme, want)
}

// looksLikePort reports whether the text behind a ':' begins with a port, as in "h2:9600/kms". Such a text in a list is
// a host behind a comma, and not a URI.
func looksLikePort(rest string) bool {
	port, _, _ := strings.Cut(rest, "/")
	_, err := strconv.ParseUint(port, 10, 16)
	return err == nil
}

// UnnestPath returns the local file that a provider URI in Hadoop's nested form names: "jceks://file@/etc/kms.keystore"
// and "jceks://file@//etc/kms.keystore" both name /etc/kms.keystore. It decodes percent escapes, and cleans the path.
// It refuses files that are not local (jceks://hdfs@nn/...).
func UnnestPath(uri string) (string, error) {
	if err := checkNoSecrets(uri); err != nil {
		return "", err // without a quoted part
	}
	refuse := func(format string, args ...any) error {
		return refusal(uri, format, args...)
	}
	scheme, rest := cutScheme(uri)
	if scheme == "" {
		return "", refuse("it has no scheme (such as jceks://)")
	}
	example := scheme + "://file@/path/to/file"
	rest, ok := strings.CutPrefix(rest, "//")
	if !ok {
		return "", refuse("a file is named as in %s", example)
	}
	authority, escaped := rest, ""
	if i := strings.IndexByte(rest, '/'); i >= 0 {
		authority, escaped = rest[:i], rest[i:]
	}
	switch inner, host, _ := strings.Cut(authority, "@"); {
	case authority == "":
		return "", refuse("it does not say where the file is; a local file is named as in %s", example)
	case inner != "file":
		return "",
			refuse("files of the file system %q are not supported: copy the file to this host and name it as in %s",
				inner, example)
	case host != "":
		return "", refuse("a local file has no host, but there is %q behind the '@'; a local file is named as in %s",
			host, example)
	case escaped == "":
		return "", refuse("the path is missing; a file is named as in %s", example)
	}
	if i := strings.IndexAny(escaped, "?#"); i >= 0 {
		return "", refuse("%q has no meaning here; write a '?' or '#' in a file's name as %%3F or %%23",
			escaped[i:])
	}
	file, err := url.PathUnescape(escaped)
	if err != nil {
		return "", refuse("%v; write a '%%' in a file's name as %%25", err)
	}
	if strings.ContainsRune(file, 0) {
		return "", refuse("the path contains a NUL byte")
	}
	if file = path.Clean(file); file == "/" {
		return "", refuse("the path is missing; a file is named as in %s", example)
	}
	return file, nil
}

// KMSURI is a parsed kms:// URI: one KMS on one or more hosts.
type KMSURI struct {
	Scheme string   // "http" or "https"
	Hosts  []string // names or addresses, IPv6 ones without brackets; at least one
	Port   int      // the same on every host
	Path   string   // e.g. "/kms"; it has no slash at its end, so it is "" for the root
}

// ParseKMS parses Hadoop's "kms://https@h1;h2:9600/kms". All hosts have the same port. Without a port it is the
// scheme's default, 80 or 443, and not the KMS's own 9600, as with Hadoop's client.
func ParseKMS(uri string) (KMSURI, error) {
	const example = "kms://https@host1;host2:9600/kms"
	var none KMSURI
	refuse := func(format string, args ...any) (KMSURI, error) {
		return none, fmt.Errorf("%w; it is written as in %s", refusal(uri, format, args...), example)
	}
	if err := checkNoSecrets(uri); err != nil {
		return none, err
	}
	scheme, rest := cutScheme(uri)
	rest, ok := strings.CutPrefix(rest, "//")
	if !strings.EqualFold(scheme, "kms") || !ok {
		return refuse("it does not begin with kms://")
	}
	rest, _, _ = strings.Cut(rest, "#") // Hadoop drops the fragment
	if strings.ContainsRune(rest, '?') {
		return refuse("a query has no meaning here")
	}
	authority, urlPath := rest, ""
	if i := strings.IndexByte(rest, '/'); i >= 0 {
		authority, urlPath = rest[:i], rest[i:]
	}
	inner, hostPort, ok := strings.Cut(authority, "@")
	k := KMSURI{Scheme: strings.ToLower(inner), Path: strings.TrimRight(urlPath, "/")}
	switch {
	case !ok || k.Scheme != "http" && k.Scheme != "https":
		return refuse("before the hosts there must be http@ or https@")
	case strings.ContainsRune(hostPort, '@'):
		return refuse("there is more than one '@' before the path")
	case strings.ContainsRune(hostPort, ','):
		return refuse("hosts are separated by ';', not ','")
	}
	if _, err := url.Parse("http://h" + k.Path); err != nil {
		return refuse("the path %q cannot be read", k.Path)
	}
	hosts := hostPort
	k.Port = map[string]int{"http": 80, "https": 443}[k.Scheme]
	// The port is behind the last ':', unless that is inside the brackets of an IPv6 address.
	if i := strings.LastIndexByte(hostPort, ':'); i > strings.LastIndexByte(hostPort, ']') {
		hosts = hostPort[:i]
		port, err := strconv.ParseUint(hostPort[i+1:], 10, 16)
		if err != nil || port == 0 {
			return refuse("%q is not a port; all hosts have one port, which is written behind the last host",
				hostPort[i+1:])
		}
		k.Port = int(port)
	}
	for _, h := range strings.Split(hosts, ";") {
		name, err := hostName(strings.TrimSpace(h))
		if err != nil {
			return refuse("%v", err) // err quotes no host
		}
		k.Hosts = append(k.Hosts, name)
	}
	return k, nil
}

// hostName checks the name or address of a host, and removes brackets.
func hostName(h string) (string, error) {
	if inner, ok := strings.CutPrefix(h, "["); ok {
		inner, ok = strings.CutSuffix(inner, "]")
		if ip := net.ParseIP(inner); !ok || ip == nil || ip.To4() != nil {
			return "", errors.New("the text in brackets is not an IPv6 address")
		}
		return inner, nil
	}
	if h == "" {
		return "", errors.New("the name of a host is missing")
	}
	if strings.ContainsRune(h, ':') {
		return "",
			errors.New("a host contains a ':': all hosts have one port, which is written behind the last host; an " +
				"IPv6 address needs brackets")
	}
	for _, c := range []byte(h) {
		if c|0x20 >= 'a' && c|0x20 <= 'z' || c >= '0' && c <= '9' || c == '-' || c == '.' || c == '_' {
			continue
		}
		return "", fmt.Errorf("%q cannot be in the name of a host", c)
	}
	return h, nil
}

// BaseURLs returns the URL of each host, without a slash at its end: "https://h1:9600/kms".
func (k KMSURI) BaseURLs() []string {
	urls := make([]string, len(k.Hosts))
	for i, h := range k.Hosts {
		urls[i] = k.Scheme + "://" + net.JoinHostPort(h, strconv.Itoa(k.Port)) + k.Path
	}
	return urls
}
