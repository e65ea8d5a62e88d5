package kmsclient_test

import (
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"

	"claviger"
	"claviger/provider"
	"claviger/provider/kmsclient"
)

// TestLogin checks that one login serves all calls, including parallel ones, and that one more login replaces a
// rejected cookie.
func TestLogin(t *testing.T) {
	f := newFake(t)
	s := serve(t, f)
	p := open(t, uriOf(s), kmsclient.Options{User: "we & co"})
	burst := func() {
		var wg sync.WaitGroup
		for range 20 {
			wg.Go(func() {
				if _, err := p.Keys(t.Context()); err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
	}
	burst()
	if f.logins != 1 {
		t.Errorf("%d logins, want 1", f.logins)
	}
	f.lock(func() { clear(f.cookies) }) // the KMS was restarted
	burst()
	f.lock(func() {
		if f.logins != 2 {
			t.Errorf("%d logins, want 2", f.logins)
		}
	})
	if got := f.takeCalls(); len(got) != 40 || !strings.HasSuffix(got[0], " as we & co") {
		t.Errorf("%d calls, the first %q", len(got), got[0])
	}
	// A change also logs in again, because a 401 means that the KMS did not execute the request.
	f.lock(func() { clear(f.cookies) })
	if _, err := p.Create(t.Context(), spec("k")); err != nil {
		t.Errorf("Create with a stale cookie: %v", err)
	}
}

// TestLoginRefused: the error of each way in which a KMS refuses a login.
func TestLoginRefused(t *testing.T) {
	for name, c := range map[string]struct {
		answer func(w http.ResponseWriter)
		kind   claviger.Kind
		want   string
	}{
		"kerberos": {func(w http.ResponseWriter) {
			w.Header().Set("WWW-Authenticate", "Negotiate")
			w.WriteHeader(401)
		}, claviger.Denied, "requires Kerberos"},
		"forbidden": {func(w http.ResponseWriter) { w.WriteHeader(403) }, claviger.Denied,
			`refuses the login of user "mig"`},
		"no cookie": {func(w http.ResponseWriter) {}, claviger.Denied, "gave no hadoop.auth cookie"},
		"not a KMS": {func(w http.ResponseWriter) { w.WriteHeader(404) }, claviger.Unavailable,
			"does the URI have the path of the KMS?"},
		"starting": {func(w http.ResponseWriter) { w.WriteHeader(503) }, claviger.Unavailable,
			"503 Service Unavailable"},
	} {
		s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.Method != http.MethodOptions || r.URL.Query().Get("user.name") != "mig" {
				t.Errorf("%s: %s %s without a login", name, r.Method, r.URL)
			}
			c.answer(w)
		}))
		p := open(t, uriOf(s), kmsclient.Options{})
		if _, err := p.Keys(t.Context()); !claviger.Is(err, c.kind) || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v", name, err)
		}
		if err := p.Check(t.Context()); err == nil {
			t.Errorf("%s: Check succeeds", name)
		}
		_ = p.Close()
		s.Close()
	}

	// The KMS rejects its own cookie: the client gives up after the second attempt.
	f := newFake(t)
	n := 0
	f.fault = func(w http.ResponseWriter, r *http.Request) bool {
		if r.Method == http.MethodOptions {
			return false
		}
		n++
		w.WriteHeader(401)
		return true
	}
	p := open(t, uriOf(serve(t, f)), kmsclient.Options{})
	if _, err := p.Keys(t.Context()); !claviger.Is(err, claviger.Denied) ||
		!strings.Contains(err.Error(), "signer secrets") || n != 2 {
		t.Errorf("after %d requests: %v", n, err)
	}
}

// TestDoAs checks that doAs names the user on whose behalf EDEKs are opened, and is missing in other requests.
func TestDoAs(t *testing.T) {
	f := newFake(t)
	f.proxies["mig"] = []string{"alice", "o'neil & co"}
	p := open(t, uriOf(serve(t, f)), kmsclient.Options{})
	if _, err := p.Create(t.Context(), spec("k")); err != nil {
		t.Fatal(err)
	}
	edeks, err := p.Generate(t.Context(), "k", 3)
	if err != nil {
		t.Fatal(err)
	}
	f.takeCalls()
	for _, user := range []string{"alice", "o'neil & co"} {
		if _, err := p.Unwrap(t.Context(), "k", user, edeks); err != nil {
			t.Fatal(err)
		}
		for _, c := range f.takeCalls() {
			if !strings.HasSuffix(c, " as "+user) || !strings.Contains(c, "eek_op=decrypt") {
				t.Errorf("call %q", c)
			}
		}
	}
	if _, err := p.Unwrap(t.Context(), "k", "", edeks); err != nil {
		t.Fatal(err)
	}
	for _, c := range f.takeCalls() {
		if !strings.HasSuffix(c, " as mig") || strings.Contains(c, "doAs") {
			t.Errorf("in our own name: %q", c)
		}
	}
	_, err = p.Unwrap(t.Context(), "k", "mallory", edeks)
	want := "User: mig is not allowed to impersonate mallory (hadoop.kms.proxyuser.mig.users or .groups in that " +
		"KMS's kms-site.xml must admit mallory, and .hosts this host; restart that KMS after the change)"
	if !claviger.Is(err, claviger.Denied) || !strings.HasSuffix(err.Error(), want) {
		t.Errorf("%v", err)
	}
}

// TestRefusals checks that the error of a refusal names the setting of the KMS that would allow the request.
func TestRefusals(t *testing.T) {
	f := newFake(t)
	f.proxies["mig"] = []string{"alice"}
	p := open(t, uriOf(serve(t, f)), kmsclient.Options{})
	if _, err := p.Create(t.Context(), spec("k")); err != nil {
		t.Fatal(err)
	}
	edeks, err := p.Generate(t.Context(), "k", 1)
	if err != nil {
		t.Fatal(err)
	}
	denied := func(class string, status int, message string) error {
		return &remoteError{status, class, message}
	}
	const auth = "org.apache.hadoop.security.authorize.AuthorizationException"
	for _, c := range []struct {
		op     string
		refuse error
		call   func() error
		kind   claviger.Kind
		want   string
	}{
		{
			"GET_KEYS mig", denied(auth, 403, "User:mig not allowed to do 'GET_KEYS'"),
			func() error { _, err := p.Keys(t.Context()); return err },
			claviger.Denied,
			"(hadoop.kms.acl.GET_KEYS in that KMS's kms-acls.xml must admit mig, and " +
				"hadoop.kms.blacklist.GET_KEYS must not name that user)",
		},
		{
			"DECRYPT_EEK alice", denied(auth, 403, "User:alice not allowed to do 'DECRYPT_EEK' on 'k'"),
			func() error { _, err := p.Unwrap(t.Context(), "k", "alice", edeks); return err },
			claviger.Denied,
			"(hadoop.kms.acl.DECRYPT_EEK in that KMS's kms-acls.xml must admit alice, and " +
				"hadoop.kms.blacklist.DECRYPT_EEK must not name that user)",
		},
		{
			"DECRYPT_EEK mig",
			denied(auth, 403, "User [mig] is not authorized to perform [DECRYPT_EEK] on key with ACL name [k]!!"),
			func() error { _, err := p.Unwrap(t.Context(), "k", "", edeks); return err },
			claviger.KeyDenied,
			"(whitelist.key.acl.DECRYPT_EEK, or key.acl.k.DECRYPT_EEK if that key has its own entries, in " +
				"that KMS's kms-acls.xml must admit mig)",
		},
		{
			"REENCRYPT_EEK_BATCH mig", denied(auth, 403, "User:mig not allowed to do 'REENCRYPT_EEK_BATCH' on 'k'"),
			func() error { _, err := p.Reencrypt(t.Context(), "k", edeks); return err },
			claviger.Denied, "hadoop.kms.acl.GENERATE_EEK",
		},
		{
			// In the wrapping of a real KMS.
			"GENERATE_EEK mig",
			denied("java.io.IOException", 500,
				"org.apache.hadoop.thirdparty.com.google.common.util.concurrent.UncheckedExecutionException: "+auth+
					": User [mig] is not authorized to perform [GENERATE_EEK] on key with ACL name [k]!!"),
			func() error { _, err := p.Generate(t.Context(), "k", 1); return err },
			claviger.KeyDenied, "whitelist.key.acl.GENERATE_EEK",
		},
		{
			"DELETE_KEY mig", denied("java.lang.SecurityException", 403, ""),
			func() error { return p.Delete(t.Context(), "k") },
			claviger.Denied, "403 Forbidden",
		},
	} {
		f.lock(func() { f.deny = map[string]error{c.op: c.refuse} })
		f.takeCalls()
		if err := c.call(); !claviger.Is(err, c.kind) || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: kind %v: %v", c.op, claviger.KindOf(err), err)
		}
		if n := len(f.takeCalls()); n != 1 {
			t.Errorf("%s: refused, and sent %d times", c.op, n)
		}
	}
}

// TestRequests checks the requests byte for byte, as a Java KMS reads them.
func TestRequests(t *testing.T) {
	f := newFake(t)
	p := open(t, uriOf(serve(t, f)), kmsclient.Options{})
	name := "a b+c/d%e@f~*é"
	v, err := p.Create(t.Context(), spec(name))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := p.Version(t.Context(), v.Name); err != nil {
		t.Fatal(err)
	}
	if _, err := p.Current(t.Context(), name); err != nil {
		t.Fatal(err)
	}
	if _, err := p.Metadata(t.Context(), name, "x y"); err != nil {
		t.Fatal(err)
	}
	const escaped = "a%20b%2Bc%2Fd%25e%40f%7E*%C3%A9"
	want := []string{
		"POST /kms/v1/keys as mig",
		"GET /kms/v1/keyversion/" + escaped + "%400 as mig",
		"GET /kms/v1/key/" + escaped + "/_currentversion as mig",
		"GET /kms/v1/keys/metadata?key=a+b%2Bc%2Fd%25e%40f~%2A%C3%A9&key=x+y as mig",
	}
	if got := f.takeCalls(); !slices.Equal(got, want) {
		t.Errorf("requests:\n%s\nwant:\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}

	// Metadata of many names is requested in URLs of a bounded length.
	var names []string
	for i := range 100 {
		names = append(names, fmt.Sprintf("%0100d", i))
	}
	if list, err := p.Metadata(t.Context(), names...); err != nil || len(list) != 100 {
		t.Errorf("%d, %v", len(list), err)
	}
	calls := f.takeCalls()
	for _, c := range calls {
		if len(c) > 2000 {
			t.Errorf("a request of %d bytes", len(c))
		}
	}
	if len(calls) != 7 {
		t.Errorf("%d requests for 100 names of 100 bytes, want 7", len(calls))
	}
}

// TestInvalidate checks that a rollover and a deletion invalidate the caches of all hosts.
func TestInvalidate(t *testing.T) {
	f1, f2 := newFake(t), newFake(t)
	f2.keys = f1.keys
	s1, s2 := twoHosts(t, f1, f2)
	p := open(t, uriOf(s1, s2), kmsclient.Options{})
	if _, err := p.Create(t.Context(), spec("k")); err != nil {
		t.Fatal(err)
	}
	for _, call := range []func() error{
		func() error { _, err := p.Roll(t.Context(), "k", nil); return err },
		func() error { return p.Delete(t.Context(), "k") },
	} {
		_, _ = f1.takeCalls(), f2.takeCalls()
		if err := call(); err != nil {
			t.Fatal(err)
		}
		for i, f := range []*fakeKMS{f1, f2} {
			if got := f.takeCalls(); !slices.Contains(got, "POST /kms/v1/key/k/_invalidatecache as mig") {
				t.Errorf("host %d got no _invalidatecache: %q", i+1, got)
			}
		}
	}
}

// TestBadAnswers checks the errors of answers that no KMS sends.
func TestBadAnswers(t *testing.T) {
	for name, c := range map[string]struct {
		contentType, body string
		want              string
	}{
		"html":           {"text/html", "<html>", `the answer is "text/html", not application/json`},
		"no type":        {"", "[]", "not application/json"},
		"broken":         {"application/json", "[", "cannot be read"},
		"wrong shape":    {"application/json", `{"a":1}`, "cannot be read"},
		"endless":        {"application/json", "", "is longer than 67108864 bytes"},
		"charset is ok":  {"Application/JSON; charset=utf-8", `["k"]`, ""},
		"indented is ok": {"application/json", "[ \"k\" ]\n", ""},
	} {
		f := newFake(t)
		f.fault = func(w http.ResponseWriter, r *http.Request) bool {
			if r.Method == http.MethodOptions {
				return false
			}
			w.Header()["Content-Type"] = nil
			if c.contentType != "" {
				w.Header().Set("Content-Type", c.contentType)
			}
			if name == "endless" {
				_, _ = io.WriteString(w, "[")
				spaces := strings.Repeat(" ", 1<<20)
				for range 65 {
					if _, err := io.WriteString(w, spaces); err != nil {
						break
					}
				}
				return true
			}
			_, _ = io.WriteString(w, c.body)
			return true
		}
		p := open(t, uriOf(serve(t, f)), kmsclient.Options{})
		keys, err := p.Keys(t.Context())
		if c.want == "" && (err != nil || !slices.Equal(keys, []string{"k"})) {
			t.Errorf("%s: %q, %v", name, keys, err)
		}
		if c.want != "" && (claviger.KindOf(err) != claviger.Internal || !strings.Contains(err.Error(), c.want)) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// openAnswering makes a client of a KMS whose answer to each request is *answer.
func openAnswering(t *testing.T) (p *kmsclient.Provider, answer *string) {
	t.Helper()
	answer = new(string)
	f := newFake(t)
	f.fault = func(w http.ResponseWriter, r *http.Request) bool {
		if r.Method == http.MethodOptions {
			return false
		}
		w.Header().Set("Content-Type", "application/json")
		_, _ = io.WriteString(w, *answer)
		return true
	}
	return open(t, uriOf(serve(t, f)), kmsclient.Options{}), answer
}

// zeroEDEK is an EDEK of key k whose IV and material are zeros.
func zeroEDEK() claviger.EDEK {
	return claviger.EDEK{Version: "k@0", IV: make([]byte, 16), Material: make([]byte, 16)}
}

// TestWrongAnswers checks that the client refuses an answer with a DEK of another length, a version of another key or
// too few EDEKs.
func TestWrongAnswers(t *testing.T) {
	p, answer := openAnswering(t)
	e := zeroEDEK()
	unwrap := func() error { _, err := p.Unwrap(t.Context(), "k", "", []claviger.EDEK{e}); return err }
	generate := func() error { _, err := p.Generate(t.Context(), "k", 1); return err }
	current := func() error { _, err := p.Current(t.Context(), "k"); return err }
	const iv = "AAAAAAAAAAAAAAAAAAAAAA"
	for _, c := range []struct {
		answer string
		call   func() error
	}{
		{`{"versionName":"EK","material":"AAAA"}`, unwrap},
		{`{"versionName":"EK","material":null}`, unwrap},
		{`{}`, unwrap},
		{`{"versionName":"EK","material":"hunter2!"}`, unwrap},
		{`[]`, generate},
		{`[{"versionName":"other@0","iv":"` + iv + `","encryptedKeyVersion":{"material":"AA"}}]`, generate},
		{`[{"versionName":"k@0","iv":"AA","encryptedKeyVersion":{"material":"AA"}}]`, generate},
		{`[{"versionName":"k@0","iv":"` + iv + `"}]`, generate},
		{`{"name":"k","versionName":"other@0","material":"` + iv + `"}`, current},
	} {
		*answer = c.answer
		if err := c.call(); claviger.KindOf(err) != claviger.Internal || strings.Contains(err.Error(), "hunter2") {
			t.Errorf("%s: %v", c.answer, err)
		}
	}
}

// TestBase64OfAnswers checks that the client reads every variant of base64.
func TestBase64OfAnswers(t *testing.T) {
	p, answer := openAnswering(t)
	e := zeroEDEK()
	for _, m := range []string{"-_-_-_-_-_-_-_-_-_-_-w", "+/+/+/+/+/+/+/+/+/+/+w==", `+\/+\/+\/+\/+\/+\/+\/+\/+\/+\/+w`,
		"-_-_-_-_-_-_-_-_-_-_-w=="} {
		*answer = `{"versionName":"EK","material":"` + m + `"}`
		deks, err := p.Unwrap(t.Context(), "k", "", []claviger.EDEK{e})
		if err != nil || len(deks) != 1 || deks[0][0] != 0xfb || deks[0][15] != 0xfb {
			t.Errorf("%s: %v", m, err)
		}
	}
}

// TestScheme: a provider is opened by its URI and the properties.
func TestScheme(t *testing.T) {
	props := map[string]string{}
	env := provider.Env{User: "mig", Get: func(name string) (string, bool) { v, ok := props[name]; return v, ok }}
	f := newFake(t)
	s := serve(t, f)
	r := provider.NewRegistry(kmsclient.Scheme(nil, nil, nil))
	p, err := r.Open(t.Context(), uriOf(s), env)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := p.Keys(t.Context()); err != nil || p.URI() != uriOf(s) {
		t.Errorf("%s: %v", p.URI(), err)
	}
	_ = p.Close()

	for name, bad := range map[string]string{
		"hadoop.security.kms.client.timeout":                    "1m",
		"hadoop.security.kms.client.failover.max.retries":       "-1",
		"hadoop.security.kms.client.failover.sleep.base.millis": "x",
		"hadoop.security.kms.client.failover.sleep.max.millis":  "99999999999",
	} {
		props = map[string]string{name: bad}
		_, err := r.Open(t.Context(), uriOf(s), env)
		var of *claviger.PropertyError
		if !errors.As(err, &of) || of.Name != name || of.Value != bad {
			t.Errorf("%s = %s: %v", name, bad, err)
		}
	}
	props = nil
	if _, err := r.Open(t.Context(), "kms://nowhere", env); err == nil ||
		!strings.Contains(err.Error(), "kms://https@host1;host2:9600/kms") {
		t.Errorf("a wrong URI: %v", err)
	}
	if _, err := r.Open(t.Context(), uriOf(s), provider.Env{}); err == nil ||
		!strings.Contains(err.Error(), "no user name") {
		t.Errorf("no user: %v", err)
	}
	errTLS := errors.New("no such truststore")
	tlsFails := kmsclient.Scheme(func(provider.Env) (*tls.Config, error) { return nil, errTLS }, nil, nil)
	if _, err := tlsFails.Open(t.Context(), "kms://https@h:1/kms", env); !errors.Is(err, errTLS) {
		t.Errorf("TLS: %v", err)
	}
	if p, err := tlsFails.Open(t.Context(), uriOf(s), env); err != nil {
		t.Errorf("a TLS configuration was made for http: %v", err)
	} else {
		_ = p.Close()
	}
}

func BenchmarkUnwrap100(b *testing.B) {
	f := newFake(b)
	s := httptest.NewServer(f)
	defer s.Close()
	p, err := kmsclient.New(uriOf(s), kmsclient.Options{User: "mig"})
	if err != nil {
		b.Fatal(err)
	}
	defer func() { _ = p.Close() }()
	if _, err := p.Create(b.Context(), spec("k")); err != nil {
		b.Fatal(err)
	}
	edeks, err := p.Generate(b.Context(), "k", 100)
	if err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	for b.Loop() {
		f.takeCalls()
		if _, err := p.Unwrap(b.Context(), "k", "", edeks); err != nil {
			b.Fatal(err)
		}
	}
}

// TestLongAnswers checks that the limit for an answer depends on the number of requested entries. Users choose how many
// requests run at the same time, so long answers about single keys could fill the memory.
func TestLongAnswers(t *testing.T) {
	f := newFake(t)
	answer := ""
	f.fault = func(w http.ResponseWriter, r *http.Request) bool {
		if r.Method == http.MethodOptions {
			return false
		}
		w.Header().Set("Content-Type", "application/json")
		_, _ = io.WriteString(w, answer)
		return true
	}
	p := open(t, uriOf(serve(t, f)), kmsclient.Options{})
	e := claviger.EDEK{Version: "k@0", IV: make([]byte, 16), Material: make([]byte, 16)}
	metadata := func(names ...string) func() error {
		return func() error { _, err := p.Metadata(t.Context(), names...); return err }
	}
	names := func() error { _, err := p.Keys(t.Context()); return err }
	const over = 3 << 20
	for name, c := range map[string]struct {
		text    string
		call    func() error
		refused bool
	}{
		"metadata of one key":   {"[null]", metadata("a"), true},
		"metadata of four keys": {"[null,null,null,null]", metadata("a", "b", "c", "d"), false},
		"a DEK": {`{"material":"AAAA"}`, func() error {
			_, err := p.Unwrap(t.Context(), "k", "", []claviger.EDEK{e})
			return err
		}, true},
		"a version":           {"{}", func() error { _, err := p.Version(t.Context(), "k@0"); return err }, true},
		"the current version": {"{}", func() error { _, err := p.Current(t.Context(), "k"); return err }, true},
		"all versions":        {"[]", func() error { _, err := p.Versions(t.Context(), "k"); return err }, false},
		"one EDEK":            {"[]", func() error { _, err := p.Generate(t.Context(), "k", 1); return err }, true},
		"names":               {`["a"]`, names, false},
	} {
		answer = c.text + strings.Repeat(" ", over)
		err := c.call()
		if refused := err != nil && strings.Contains(err.Error(), "answer is longer than"); refused != c.refused {
			t.Errorf("%s, of %d bytes: refused %v, %v", name, len(answer), refused, err)
		}
	}
	// Many parallel long answers are all read, a few at a time.
	answer = `["a"]` + strings.Repeat(" ", over)
	var wg sync.WaitGroup
	for range 12 {
		wg.Go(func() {
			if err := names(); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
}
