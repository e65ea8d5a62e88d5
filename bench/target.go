package bench

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"

	"claviger"
	"claviger/kmswire"
	"claviger/provider"
	"claviger/provider/kmsclient"
)

// target is a KMS under load, with a key of its own there.
type target struct {
	name    string // as the command line has it
	base    *url.URL
	address string      // host and port
	tls     *tls.Config // nil for http
	kms     *kmsclient.Provider
	auth    string // the header line that authenticates, without a line end; "" with negotiate
	// negotiate makes the ticket of each request; nil if the requests have a cookie or a token.
	negotiate kmsclient.Negotiate
	key       string
	made      bool // the key is ours, to be removed afterwards
	local     Processes

	decrypts []request // one for each EDEK of the key's first version
	batch    request   // re-encrypts a batch of EDEKs of the first version
	generate request
	sent     []claviger.EDEK // of batch
}

// request is a request that is ready to be sent.
type request struct {
	bytes []byte
	edeks int    // how many EDEKs it generates, opens or re-encrypts
	want  []byte // the only right answer; nil if answers differ
}

// parseTarget reads the URL of a KMS: http://HOST:PORT/kms, or a URI of Hadoop's form kms://http@HOST:PORT/kms.
func parseTarget(text string) (*target, error) {
	uri := text
	if scheme, rest, ok := strings.Cut(text, "://"); ok && (scheme == "http" || scheme == "https") {
		uri = "kms://" + scheme + "@" + rest
	}
	k, err := provider.ParseKMS(uri)
	if err != nil {
		return nil, fmt.Errorf("%s is not the URL of a KMS, as in https://HOST:9600/kms: %w",
			claviger.Printable(text), err)
	}
	if len(k.Hosts) != 1 {
		return nil, fmt.Errorf("%s names %d hosts; name each host in an argument of its own", claviger.Printable(text),
			len(k.Hosts))
	}
	address := net.JoinHostPort(k.Hosts[0], strconv.Itoa(k.Port))
	return &target{name: text, base: &url.URL{Scheme: k.Scheme, Host: address, Path: k.Path}, address: address}, nil
}

// uri is the target as kmsclient names it.
func (t *target) uri() string { return "kms://" + t.base.Scheme + "@" + t.base.Host + t.base.Path }

// open logs in, and makes the key or uses an existing one.
func (t *target) open(ctx context.Context, o *Options) error {
	var err error
	if t.kms, err = kmsclient.New(t.uri(), o.Client); err != nil {
		return err
	}
	cookie, err := t.kms.Cookie(ctx)
	if err != nil {
		return err
	}
	t.auth = "Cookie: " + cookie
	if t.base.Scheme == "https" {
		t.tls = &tls.Config{MinVersion: tls.VersionTLS12}
		if o.Client.TLS != nil {
			t.tls = o.Client.TLS.Clone()
		}
		t.tls.ServerName = t.base.Hostname()
		if o.Connect == connectResume {
			t.tls.ClientSessionCache = tls.NewLRUClientSessionCache(0)
		}
	}
	if o.Auth == authKerberos {
		t.auth, t.negotiate = "", o.Client.Negotiate
	}
	if o.Auth == authToken {
		if err := t.useToken(ctx, o.Client.User); err != nil {
			return err
		}
	}
	t.local = t.processes()
	return t.openKey(ctx, o.Key)
}

// processes returns the server's processes; none if it runs on another host.
func (t *target) processes() Processes {
	host, port, err := net.SplitHostPort(t.address)
	if err != nil || !isLoopback(host) {
		return nil
	}
	return localProcesses(port)
}

// useToken requests a delegation token, which takes the place of the cookie.
func (t *target) useToken(ctx context.Context, renewer string) error {
	c := &connection{t: t}
	defer c.close()
	status, body, err := c.do(ctx, t.request(http.MethodGet,
		"/v1/?op=GETDELEGATIONTOKEN&renewer="+url.QueryEscape(renewer), nil))
	if err != nil {
		return fmt.Errorf("%s: requesting a delegation token: %w", t.name, err)
	}
	var answer struct{ Token struct{ URLString string } }
	if err := json.Unmarshal(body, &answer); err != nil || status != http.StatusOK || answer.Token.URLString == "" {
		return fmt.Errorf("%s gave no delegation token: it answered %s", t.name, answered(status, body))
	}
	t.auth = "X-Hadoop-Delegation-Token: " + answer.Token.URLString
	return nil
}

// answered describes an answer that is not the expected one, for an error.
func answered(status int, body []byte) string {
	const shown = 300
	return fmt.Sprintf("%d %s: %.*s", status, http.StatusText(status), shown, claviger.Printable(string(body)))
}

// request makes the bytes of a request.
func (t *target) request(method, path string, body []byte) []byte {
	b := fmt.Appendf(nil, "%s %s%s HTTP/1.1\r\nHost: %s\r\n", method, t.base.EscapedPath(), path, t.base.Host)
	if t.auth != "" {
		b = append(b, t.auth+"\r\n"...)
	}
	if body != nil {
		b = fmt.Appendf(b, "Content-Type: application/json\r\nContent-Length: %d\r\n", len(body))
	}
	b = append(b, "\r\n"...)
	return append(b, body...)
}

// keyPrefix begins the names of the keys that a load makes.
const keyPrefix = "claviger-bench-"

// keyBits is the length of these keys, which is what sites choose.
const keyBits = 256

// openKey makes a key, or finds the existing one.
func (t *target) openKey(ctx context.Context, existing string) error {
	if existing != "" {
		t.key = existing
		_, err := t.kms.Current(ctx, existing)
		return err
	}
	t.key = keyPrefix + strings.ToLower(rand.Text())
	t.made = true // also if the answer is lost: the KMS may have the key
	_, err := t.kms.Create(ctx, provider.Spec{Name: t.key, Cipher: "AES/CTR/NoPadding", BitLength: keyBits})
	return err
}

// close removes what open made. left says what stays behind, for people; "" if nothing does.
func (t *target) close(ctx context.Context) (left string, err error) {
	if t.kms == nil {
		return "", nil
	}
	if t.made {
		left, err = t.remove(ctx)
	}
	return left, errors.Join(err, t.kms.Close())
}

// remove deletes the key, and destroys the deleted key where the KMS keeps it and lets this user do so.
func (t *target) remove(ctx context.Context) (left string, err error) {
	err = t.kms.Delete(ctx, t.key)
	if claviger.Is(err, claviger.KeyNotFound) {
		return "", nil
	}
	if err != nil {
		return "", fmt.Errorf("%s still has the key %s; remove it with 'hadoop key delete %[2]s': %w", t.name,
			t.key, err)
	}
	deleted, err := t.kms.DeletedKeys(ctx)
	if err != nil || !slices.ContainsFunc(deleted, func(k kmswire.DeletedKey) bool { return k.Name == t.key }) {
		return "", nil //nolint:nilerr // a KMS without such a list keeps no deleted keys
	}
	if err := t.kms.Purge(ctx, t.key, ""); err != nil {
		return fmt.Sprintf("%s keeps the deleted key %s: %v", t.name, t.key, err), nil
	}
	return "", nil
}
