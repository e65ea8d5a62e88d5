package kmsapi_test

import (
	"bufio"
	"bytes"
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"claviger"
	"claviger/authn"
	"claviger/authz"
	"claviger/internal/openapitest"
	"claviger/internal/pagetest"
	"claviger/provider"
	"claviger/provider/jceks"
	"claviger/secret"
)

// recording is one exchange of testdata/wire.
type recording struct {
	name, server string
	request      []byte // as it is sent, with CRLF; the test signs cookies again
	method       string
	answer       answer
	cut          bool // the recording does not have the whole body of the answer
}

// answer is an answer, recorded or received.
type answer struct {
	status  int
	reason  string
	headers map[string][]string
	body    []byte
}

func (a answer) header(name string) string { return strings.Join(a.headers[name], "; ") }

// signingSecret is the secret of all test servers.
const signingSecret = "of the replay"

type fixedSecret struct{}

func (fixedSecret) Secrets() (secret.Bytes, []secret.Bytes) {
	s := secret.Bytes(signingSecret)
	return s, []secret.Bytes{s}
}

func sign(text string) string {
	mac := hmac.New(sha256.New, []byte(signingSecret))
	mac.Write([]byte(text))
	return text + "&s=" + base64.StdEncoding.EncodeToString(mac.Sum(nil))
}

// notGenuine are the recordings whose cookie was changed, or signed with an old secret. The cookies
// of other recordings are signed again.
var notGenuine = words(`auth-cookie-bad-signature auth-cookie-bad-signature-options auth-cookie-bad-with-username
	auth-token-type auth-cookie-garbage auth-cookie-unsigned auth-cookie-empty-value expired-cookie-secret-rolled`)

func words(s string) map[string]bool {
	set := map[string]bool{}
	for _, w := range strings.Fields(s) {
		set[w] = true
	}
	return set
}

var genuineCookie = regexp.MustCompile(`(u=[^;"]*?&e=\d+)&s=[^;"\s]*`)

func readRecording(t *testing.T, server, name string) recording {
	t.Helper()
	data, err := os.ReadFile(filepath.Join("testdata/wire", name+".http"))
	if err != nil {
		t.Fatal(err)
	}
	return parseRecording(t, server, name, data)
}

// parseRecording reads the request, an empty line, and the answer.
func parseRecording(t *testing.T, server, name string, data []byte) recording {
	t.Helper()
	for bytes.HasPrefix(data, []byte("#")) {
		_, data, _ = bytes.Cut(data, []byte("\n"))
	}
	cut := bytes.Index(data, []byte("\nHTTP/1.1 "))
	if cut < 0 {
		t.Fatalf("%s has no answer", name)
	}
	head, body, _ := bytes.Cut(data[:cut+1], []byte("\n\n"))
	if !notGenuine[name] {
		head = genuineCookie.ReplaceAllFunc(head, func(b []byte) []byte {
			return []byte(sign(string(genuineCookie.FindSubmatch(b)[1])))
		})
	}
	head = bytes.TrimRight(head, "\n")
	rec := recording{name: name, server: server, method: string(head[:bytes.IndexByte(head, ' ')])}
	rec.request = append(bytes.ReplaceAll(head, []byte("\n"), []byte("\r\n")), "\r\n\r\n"...)
	switch m := regexp.MustCompile(`(?m)^Content-Length: (\d+)$`).FindSubmatch(head); {
	case m != nil:
		n, _ := strconv.Atoi(string(m[1]))
		if len(body) < n {
			t.Fatalf("%s: its body has %d bytes, not %d", name, len(body), n)
		}
		rec.request = append(rec.request, body[:n]...)
	case bytes.Contains(head, []byte("\nTransfer-Encoding: chunked")):
		// The recording contains the CRs of this body.
		rec.request = append(rec.request, bytes.TrimRight(body, "\n")...)
		rec.request = append(rec.request, '\n')
	}
	rec.answer = readHead(t, bufio.NewReader(bytes.NewReader(data[cut+1:])), "\n")
	_, rec.answer.body, _ = bytes.Cut(data[cut+1:], []byte("\n\n"))
	return rec
}

// readHead reads a status line and headers.
func readHead(t *testing.T, in *bufio.Reader, eol string) answer {
	t.Helper()
	a := answer{headers: map[string][]string{}}
	line := func() string {
		s, err := in.ReadString('\n')
		if err != nil {
			t.Fatalf("in the head of an answer, after %+v: %v", a, err)
		}
		return strings.TrimSuffix(s, eol)
	}
	var status string
	first := strings.TrimPrefix(line(), "HTTP/1.1 ")
	status, a.reason, _ = strings.Cut(first, " ")
	a.status, _ = strconv.Atoi(status)
	for {
		s := line()
		if s == "" {
			return a
		}
		name, value, _ := strings.Cut(s, ": ")
		a.headers[name] = append(a.headers[name], value)
	}
}

// exchange sends bytes over a new connection and reads one answer.
func exchange(t *testing.T, addr, method string, request []byte) answer {
	t.Helper()
	conn, err := net.DialTimeout("tcp", addr, 5*time.Second)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	if err := conn.SetDeadline(time.Now().Add(20 * time.Second)); err != nil {
		t.Fatal(err)
	}
	if _, err := conn.Write(request); err != nil {
		t.Fatal(err)
	}
	in := bufio.NewReader(conn)
	a := readHead(t, in, "\r\n")
	for a.status == http.StatusContinue {
		a = readHead(t, in, "\r\n")
	}
	if a.headers["Content-Length"] == nil && a.header("Connection") == "close" {
		if a.body, err = io.ReadAll(in); err != nil {
			t.Fatal(err)
		}
		return a
	}
	n, err := strconv.Atoi(a.header("Content-Length"))
	if err != nil {
		t.Fatalf("Content-Length of %+v: %v", a, err)
	}
	if method == http.MethodHead {
		n = 0
	}
	a.body = make([]byte, n)
	if _, err := io.ReadFull(in, a.body); err != nil {
		t.Fatal(err)
	}
	if in.Buffered() > 0 {
		t.Errorf("%d bytes follow the answer", in.Buffered())
	}
	return a
}

// recordedKeys is a provider that makes the keys of the recordings: if a recorded answer shows the
// material of a new version, the version gets that material. So the test can compare the DEKs of
// recorded EDEKs.
type recordedKeys struct {
	provider.Provider
	provider.BlockEncrypter
	next secret.Bytes
	uri  string
}

// URI returns the URI in the messages of the recorded server.
func (p *recordedKeys) URI() string { return p.uri }

func (p *recordedKeys) Create(ctx context.Context, spec provider.Spec) (claviger.KeyVersion, error) {
	if spec.Material == nil {
		spec.Material = p.next
	}
	return p.Provider.Create(ctx, spec)
}

func (p *recordedKeys) Roll(ctx context.Context, key string, material secret.Bytes) (claviger.KeyVersion, error) {
	if material == nil {
		material = p.next
	}
	return p.Provider.Roll(ctx, key, material)
}

// server is our server with the configuration of a recorded server.
type server struct {
	addr  string
	keys  *recordedKeys
	trail *trail
	// tokens are our delegation tokens, by the recorded server's tokens for the same requests.
	tokens map[string]string
	doc    *openapitest.Document // the answers must be as it says; nil: they are not compared
}

var openRules = []authz.Property{
	{Name: "default.key.acl.MANAGEMENT", Value: "*"}, {Name: "default.key.acl.GENERATE_EEK", Value: "*"},
	{Name: "default.key.acl.DECRYPT_EEK", Value: "*"}, {Name: "default.key.acl.READ", Value: "*"},
}

func readRules(t *testing.T, path string) []authz.Property {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var file struct {
		Properties []struct {
			Name  string `xml:"name"`
			Value string `xml:"value"`
		} `xml:"property"`
	}
	if err := xml.Unmarshal(text, &file); err != nil {
		t.Fatal(err)
	}
	var rules []authz.Property
	for _, p := range file.Properties {
		rules = append(rules, authz.Property{Name: p.Name, Value: p.Value})
	}
	return rules
}

func startRecorded(t *testing.T, name string) *server {
	t.Helper()
	ctx := t.Context()
	log := slog.New(slog.DiscardHandler)
	dir := t.TempDir()
	opened, err := jceks.Open(ctx, "jceks://file@"+filepath.Join(dir, "kms.keystore"), provider.Env{
		Get: func(string) (string, bool) { return "", false }, Getenv: func(string) string { return "" }, ConfDir: dir,
		User: "kms", Log: log,
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = opened.Close() })
	keys := &recordedKeys{Provider: opened, BlockEncrypter: opened.(provider.BlockEncrypter),
		uri: "jceks://file@/srv/hadoop/data/kms1.keystore"}

	rules := openRules
	now := time.UnixMilli(1795442610000) // the time of the first recording
	auth := authn.Config{Validity: 10 * time.Hour, Secrets: fixedSecret{}, Now: func() time.Time { return now }}
	keyAuthorization := true
	auth.Delegations = delegations(t, auth.Now)
	switch name {
	case "acl":
		rules = readRules(t, "testdata/wire/acl-kms-acls.xml")
		keys.uri = "jceks://file@/srv/hadoop/data/kms2.keystore"
	case "expired":
		now, auth.Validity = time.UnixMilli(1795442902112), time.Second
	case "open":
		auth.Handler, keyAuthorization = authn.Simple{Anonymous: true}, false
		auth.Cookie = authn.CookieAttributes{Domain: "localhost", Path: "/kms", Persistent: true}
	case "krb":
		withKerberos(t, &auth)
	}
	auth.ProxyUsers, _ = authn.NewProxyUsers(map[string]string{
		"migr.users": "alice,bob", "migr.hosts": "127.0.0.1", "hdfs.users": "*", "hdfs.hosts": "*", "far.users": "*",
		"far.hosts": "10.1.2.3",
	}, nil, log)
	policy, warnings := authz.Parse(rules)
	if len(warnings) > 0 {
		t.Fatal(warnings)
	}
	tr := &trail{}
	addr := start(t, stack{Primary: keys, Auth: auth, Policy: policy, KeyAuthorization: keyAuthorization, Trail: tr,
		Operations: recordedOperations()})
	return &server{addr: addr, keys: keys, trail: tr, tokens: map[string]string{}}
}

// TestWire replays the recordings in their order and compares the answers. Each difference must be
// in divergences, with an id that docs/hadoop-divergences explains, and each difference in
// divergences must occur.
func TestWire(t *testing.T) {
	text, err := os.ReadFile("testdata/wire/order.txt")
	if err != nil {
		t.Fatal(err)
	}
	servers, doc := map[string]*server{}, openapitest.Load(t)
	of := func(name string) *server {
		if servers[name] == nil {
			servers[name] = startRecorded(t, name)
			servers[name].doc = doc
		}
		return servers[name]
	}
	seen := map[string]bool{}
	everywhere := map[string]bool{}
	for _, line := range strings.Split(strings.TrimSpace(string(text)), "\n") {
		if strings.HasPrefix(line, "#") {
			continue
		}
		kind, name, _ := strings.Cut(line, " ")
		switch kind {
		case "setup":
			setup(t, of, name)
			continue
		case "java":
			kind, name, _ = strings.Cut(name, " ")
			of(kind).replayJavaClient(t, kind, name, everywhere, seen)
			continue
		}
		seen[name] = true
		t.Run(name, func(t *testing.T) { of(kind).replay(t, readRecording(t, kind, name), everywhere) })
	}
	compareAuditLog(t, servers["acl"].trail.all())
	compareAuditSample(t, servers["main"].trail.all())
	files, err := filepath.Glob("testdata/wire/*.http")
	if err != nil || len(files) < 300 {
		t.Fatalf("%d recordings, %v", len(files), err)
	}
	for _, f := range files {
		if name := strings.TrimSuffix(filepath.Base(f), ".http"); !seen[name] {
			t.Errorf("%s is not in order.txt", name)
		}
	}
	allJavaClients(t, seen)
	for name := range divergences {
		if !seen[name] {
			t.Errorf("divergences lists %s, which was not replayed", name)
		}
	}
	for id := range everywhereIDs {
		if !everywhere[id] {
			t.Errorf("%s does not occur any more", id)
		}
	}
	marked := map[string]bool{}
	for _, m := range regexp.MustCompile(`(?m)^- ▸ \*\*(D-[a-z-]+)\*\* `).FindAllStringSubmatch(
		pagetest.Topic(t, "hadoop-divergences"), -1) {
		marked[m[1]] = true
	}
	for id := range allIDs() {
		if !marked[id] {
			t.Errorf("docs/hadoop-divergences has no marked line for %s", id)
		}
	}
	for id := range marked {
		if !allIDs()[id] {
			t.Errorf("docs/hadoop-divergences marks %s, which no recording shows", id)
		}
	}
}

// setup sends a request without a recording.
func setup(t *testing.T, of func(string) *server, line string) {
	t.Helper()
	parts := strings.SplitN(line, " ", 4) // server, method, path, body
	request := fmt.Sprintf("%s %s?user.name=alice HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"+
		"Content-Length: %d\r\n\r\n%s", parts[1], parts[2], len(parts[3]), parts[3])
	if parts[0] == "krb" {
		cookie := sign("u=alice&p=alice@EXAMPLE.COM&t=kerberos-dt&e=1795480407400")
		request = strings.Replace(request, "\r\n", "\r\nCookie: hadoop.auth=\""+cookie+"\"\r\n", 1)
	}
	s := of(parts[0])
	s.keys.next = nil
	if a := exchange(t, s.addr, parts[1], []byte(request)); a.status/100 != 2 {
		t.Fatalf("%s: %d %s", line, a.status, a.body)
	}
}

// checkDocument compares our answer to a recorded request with docs/openapi.yaml, if the document has the operation. If
// it does not, the answer must be an error.
func (s *server) checkDocument(t *testing.T, rec recording, got answer) {
	t.Helper()
	if s.doc == nil || rec.method == http.MethodOptions {
		return
	}
	r, err := http.ReadRequest(bufio.NewReader(bytes.NewReader(rec.request)))
	if err != nil {
		return // it is no request for net/http
	}
	err = s.doc.Check(&openapitest.Exchange{Method: rec.method, Target: r.RequestURI, RequestHeader: r.Header,
		Status: got.status, Header: got.headers, Body: got.body}, false)
	if errors.Is(err, openapitest.ErrNotDocumented) && got.status/100 != 2 {
		return
	}
	if err != nil {
		t.Error(err)
	}
}

// replay sends a recorded request and compares the answer with the recorded one.
func (s *server) replay(t *testing.T, rec recording, everywhere map[string]bool) {
	s.keys.next = nil
	var shown struct{ Material *string }
	if rec.method == http.MethodPost && rec.answer.status/100 == 2 && json.Unmarshal(rec.answer.body, &shown) == nil &&
		shown.Material != nil {
		s.keys.next, _ = base64.RawURLEncoding.DecodeString(*shown.Material)
	}
	before := len(s.trail.all())
	rec.request = delegationToken.ReplaceAllFunc(rec.request, s.ownToken)
	got := exchange(t, s.addr, rec.method, rec.request)
	if ours, theirs := issuedToken.FindSubmatch(got.body), issuedToken.FindSubmatch(rec.answer.body); ours != nil &&
		theirs != nil {
		s.tokens[string(theirs[1])] = string(ours[1])
	}
	checkErrorLine(t, rec, got, s.trail.all()[before:])
	s.checkDocument(t, rec, got)
	differs := compare(rec, got, everywhere)
	for what := range differs {
		if id := divergences[rec.name][what]; id == "" {
			t.Errorf("%s: %s", what, differs[what])
		}
	}
	for what, id := range divergences[rec.name] {
		if differs[what] == "" {
			t.Errorf("%s is listed as %s, but is as recorded", what, id)
		}
	}
	if t.Failed() {
		t.Logf("request:\n%s\nwant:\n%+v %s\ngot:\n%+v %s", rec.request, rec.answer.headers, rec.answer.body,
			got.headers, got.body)
	}
	if strings.HasPrefix(rec.name, "reencrypt") && got.status == http.StatusOK {
		s.sameDEKs(t, rec, got)
	}
}

type wireEDEK struct {
	VersionName, IV     string
	EncryptedKeyVersion struct{ Material string }
}

// sameDEKs decrypts the EDEKs before and after the re-encryption, and compares the DEKs.
func (s *server) sameDEKs(t *testing.T, rec recording, got answer) {
	t.Helper()
	_, body, _ := bytes.Cut(rec.request, []byte("\r\n\r\n"))
	var sent, back []wireEDEK
	if body[0] == '{' {
		var one struct{ IV, Material string }
		sent, back = make([]wireEDEK, 1), make([]wireEDEK, 1)
		if err := errors.Join(json.Unmarshal(body, &one), json.Unmarshal(got.body, &back[0])); err != nil {
			t.Fatal(err)
		}
		sent[0].VersionName, sent[0].IV, sent[0].EncryptedKeyVersion.Material = "k1@1", one.IV, one.Material
	} else if err := errors.Join(json.Unmarshal(body, &sent), json.Unmarshal(got.body, &back)); err != nil {
		t.Fatal(err)
	}
	if len(sent) != len(back) {
		t.Fatalf("%d EDEKs for %d", len(back), len(sent))
	}
	for i := range sent {
		if a, b := s.open(t, sent[i]), s.open(t, back[i]); a != b || len(a) != 22 {
			t.Errorf("EDEK %d has the DEK %s, and %s after its re-encryption", i, a, b)
		}
	}
}

func (s *server) open(t *testing.T, e wireEDEK) string {
	t.Helper()
	key, _, _ := strings.Cut(e.VersionName, "@")
	body := fmt.Sprintf(`{"name":%q,"iv":%q,"material":%q}`, key, e.IV, e.EncryptedKeyVersion.Material)
	request := fmt.Sprintf("POST /kms/v1/keyversion/%s/_eek?eek_op=decrypt&user.name=alice HTTP/1.1\r\n"+
		"Host: localhost\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s", e.VersionName, len(body),
		body)
	a := exchange(t, s.addr, http.MethodPost, []byte(request))
	var dek struct{ Material string }
	if err := json.Unmarshal(a.body, &dek); err != nil || a.status != http.StatusOK {
		t.Fatalf("opening %+v: %d %s, %v", e, a.status, a.body, err)
	}
	return dek.Material
}
