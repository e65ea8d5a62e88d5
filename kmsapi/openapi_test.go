package kmsapi_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"strings"
	"testing"
	"time"

	"claviger/authn"
	"claviger/authz"
	"claviger/console"
	"claviger/internal/openapitest"
	"claviger/kmsapi"
	"claviger/provider/memory"
)

// documented sends requests to a server, and compares them and their answers with docs/openapi.yaml.
type documented struct {
	t    *testing.T
	doc  *openapitest.Document
	addr string
	down string // the reason why no request can be served, or ""
	sick error  // what the check of /readyz finds
}

// newDocumented starts a server with all operations of the document.
func newDocumented(t *testing.T) *documented {
	t.Helper()
	d := &documented{t: t, doc: openapitest.Load(t)}
	primary := memory.New(memory.Config{SoftDelete: true, SequentialIDs: true})
	t.Cleanup(func() { _ = primary.Close() })
	policy, warnings := authz.Parse(append([]authz.Property{
		{Name: "keytrustee.kms.acl.UNDELETE", Value: "alice"}, {Name: "keytrustee.kms.acl.PURGE", Value: "alice"},
		{Name: "default.key.acl.MIGRATE", Value: "alice"},
	}, openRules...))
	if len(warnings) > 0 {
		t.Fatal(warnings)
	}
	op := recordedOperations()
	op.Level = new(slog.LevelVar)
	metrics := console.NewMetrics(nil)
	op.Prometheus = metrics.Handler(slog.New(slog.DiscardHandler), func(*http.Request) bool { return true })
	checks := []console.Check{{Name: "provider", Run: func(context.Context) error { return d.sick }}}
	d.addr = start(t, stack{
		Primary: primary, Policy: policy, KeyAuthorization: true, Migrator: takenOver{}, Operations: op,
		Auth: authn.Config{Delegations: delegations(t, time.Now)}, NotReady: func() string { return d.down },
		Limits: kmsapi.Limits{MaxKeys: 1000, MaxBatch: 1000, MaxBody: 1 << 20},
		Server: func(s *http.Server) {
			s.Handler = console.New(console.Config{Checks: checks, Metrics: metrics}, s.Handler)
		},
	})
	return d
}

// send sends a request. The answer must be as the document says and have a status, and the request too if strict is
// true. send returns the body of the answer. user is "" for a request without credentials.
func (d *documented) send(strict bool, status int, user, method, target, body string, header ...string) string {
	d.t.Helper()
	if user != "" {
		target += map[bool]string{true: "&", false: "?"}[strings.Contains(target, "?")] + "user.name=" + user
	}
	r, err := http.NewRequestWithContext(d.t.Context(), method, "http://"+d.addr+target, strings.NewReader(body))
	if err != nil {
		d.t.Fatal(err)
	}
	if body != "" {
		r.Header.Set("Content-Type", "application/json")
	}
	for i := 0; i+1 < len(header); i += 2 {
		r.Header.Set(header[i], header[i+1])
	}
	answer, err := http.DefaultClient.Do(r)
	if err != nil {
		d.t.Fatalf("%s %s: %v", method, target, err)
	}
	defer answer.Body.Close()
	text, err := io.ReadAll(answer.Body)
	if err != nil {
		d.t.Fatal(err)
	}
	if answer.StatusCode != status {
		d.t.Errorf("%s %.200s: %d, want %d: %s", method, target, answer.StatusCode, status, text)
	}
	err = d.doc.Check(&openapitest.Exchange{Method: method, Target: target, RequestHeader: r.Header,
		RequestBody: []byte(body), Status: answer.StatusCode, Header: answer.Header, Body: text}, strict)
	if err != nil {
		d.t.Error(err)
	}
	return string(text)
}

// TestOpenAPI sends every documented request to a server and provokes every documented answer. The document must have
// each status, type and field of the answers, and no answer that was not seen.
func TestOpenAPI(t *testing.T) {
	d := newDocumented(t)
	d.keys()
	d.edeks()
	d.deletedKeys()
	d.tokens()
	d.state()
	d.servlets()
	d.withoutPages()
	for _, o := range d.doc.Operations() {
		if o.Credentials {
			d.refusals(o)
		}
	}
	if list := d.doc.Unseen(); len(list) > 0 {
		t.Errorf("docs/openapi.yaml has answers that the server did not give: %s", strings.Join(list, ", "))
	}
}

// ok sends a request of alice, which must succeed.
func (d *documented) ok(method, target, body string, header ...string) string {
	d.t.Helper()
	return d.send(true, http.StatusOK, "alice", method, target, body, header...)
}

func (d *documented) keys() {
	d.send(true, http.StatusCreated, "alice", http.MethodPost, "/kms/v1/keys",
		`{"name":"k","length":256,"description":"x","attributes":{"a":"b"}}`)
	d.send(true, http.StatusCreated, "alice", http.MethodPost, "/kms/v1/keys", `{"name":"plain","description":null}`)
	d.ok(http.MethodGet, "/kms/v1/keys/names", "")
	d.ok(http.MethodGet, "/kms/v1/keys/metadata?key=k&key=none", "")
	d.ok(http.MethodGet, "/kms/v1/key/k", "")
	d.ok(http.MethodHead, "/kms/v1/key/k", "")
	d.ok(http.MethodGet, "/kms/v1/key/none", "")
	d.ok(http.MethodGet, "/kms/v1/key/plain/_metadata", "")
	d.ok(http.MethodGet, "/kms/v1/key/k/_currentversion", "")
	d.ok(http.MethodGet, "/kms/v1/key/none/_currentversion", "")
	d.ok(http.MethodGet, "/kms/v1/key/k/_versions", "")
	d.ok(http.MethodGet, "/kms/v1/keyversion/none@0", "")
	d.ok(http.MethodPost, "/kms/v1/key/k/_invalidatecache", "")
	for path, body := range map[string]string{"/kms/v1/keys": `{"name":"` + strings.Repeat("x", 1<<20) + `"}`,
		"/kms/v1/key/k":                              `{"material":"` + strings.Repeat("x", 1<<20) + `"}`,
		"/kms/v1/key/k/_reencryptbatch":              `["` + strings.Repeat("x", 1<<20) + `"]`,
		"/kms/v1/keyversion/x@0/_eek?eek_op=decrypt": `{"name":"` + strings.Repeat("x", 1<<20) + `"}`} {
		d.send(false, http.StatusRequestEntityTooLarge, "alice", http.MethodPost, path, body)
	}
	d.send(false, http.StatusInternalServerError, "alice", http.MethodPost, "/kms/v1/keys", `{"name":"k"}`)
	d.send(false, http.StatusBadRequest, "alice", http.MethodPost, "/kms/v1/keys", `{"name":""}`)
}

func (d *documented) edeks() {
	var edeks []struct {
		VersionName string          `json:"versionName"`
		IV          string          `json:"iv"`
		Wrapped     json.RawMessage `json:"encryptedKeyVersion"`
	}
	text := d.ok(http.MethodGet, "/kms/v1/key/k/_eek?eek_op=generate&num_keys=2", "")
	if err := json.Unmarshal([]byte(text), &edeks); err != nil || len(edeks) != 2 {
		d.t.Fatal(text, err)
	}
	var wrapped struct{ Material string }
	if err := json.Unmarshal(edeks[0].Wrapped, &wrapped); err != nil {
		d.t.Fatal(err)
	}
	d.ok(http.MethodGet, "/kms/v1/key/k/_dek", "")
	version := "/kms/v1/keyversion/" + edeks[0].VersionName
	d.ok(http.MethodGet, version, "")
	one := fmt.Sprintf(`{"name":"k","iv":%q,"material":%q}`, edeks[0].IV, wrapped.Material)
	d.ok(http.MethodPost, version+"/_eek?eek_op=decrypt", one)
	d.ok(http.MethodPost, version+"/_eek?eek_op=reencrypt", one)
	d.ok(http.MethodPost, "/kms/v1/key/k/_reencryptbatch", text) // the current version, so the inner names are null
	d.ok(http.MethodPost, "/kms/v1/key/k", `{}`)
	d.ok(http.MethodPost, "/kms/v1/key/k/_reencryptbatch", text)
	d.send(false, http.StatusBadRequest, "alice", http.MethodGet, "/kms/v1/key/k/_eek?eek_op=decrypt", "")
}

func (d *documented) deletedKeys() {
	const path = "/kms/v1/trustee/key/"
	remove := func() { d.ok(http.MethodDelete, "/kms/v1/key/k", "") }
	remove()
	d.ok(http.MethodGet, "/kms/v1/trustee/keys/deleted", "")
	d.ok(http.MethodGet, path+"k", "")
	d.ok(http.MethodPost, path+"k?trusteeOp=undelete", "")
	d.ok(http.MethodGet, path+"k", "")
	remove()
	d.ok(http.MethodPost, path+"k?trusteeOp=undeleteVersion&version=k@1", "")
	remove()
	d.ok(http.MethodPost, path+"k?trusteeOp=purge&all=true", "")
	d.ok(http.MethodPost, path+"a%2Fb?trusteeOp=migrate", "")
	d.send(false, http.StatusForbidden, "bob", http.MethodGet, "/kms/v1/trustee/keys/deleted", "")
}

func (d *documented) tokens() {
	var token struct{ Token struct{ URLString string } }
	text := d.ok(http.MethodGet, "/kms/v1/?op=GETDELEGATIONTOKEN&renewer=alice&service=kms", "")
	if err := json.Unmarshal([]byte(text), &token); err != nil || token.Token.URLString == "" {
		d.t.Fatal(text, err)
	}
	with := "&token=" + token.Token.URLString
	d.send(true, http.StatusOK, "", http.MethodGet, "/kms/v1/keys/names", "", "X-Hadoop-Delegation-Token",
		token.Token.URLString)
	d.ok(http.MethodPut, "/kms/v1/?op=RENEWDELEGATIONTOKEN"+with, "")
	d.ok(http.MethodPut, "/kms/v1/?op=CANCELDELEGATIONTOKEN"+with, "")
	d.send(true, http.StatusNotFound, "alice", http.MethodPut, "/kms/v1/?op=CANCELDELEGATIONTOKEN"+with, "")
	d.send(false, http.StatusForbidden, "alice", http.MethodPut, "/kms/v1/?op=RENEWDELEGATIONTOKEN"+with, "")
	d.send(false, http.StatusBadRequest, "alice", http.MethodPut, "/kms/v1/?op=RENEWDELEGATIONTOKEN", "")
	d.send(false, http.StatusBadRequest, "alice", http.MethodGet,
		"/kms/v1/?op=GETDELEGATIONTOKEN&renewer="+strings.Repeat("x", 600), "")
	for _, method := range []string{http.MethodGet, http.MethodPut} {
		d.send(false, http.StatusMethodNotAllowed, "alice", method, "/kms/v1/?op=RENEW", "")
	}
	d.kerberosTokens()
}

// kerberosTokens requests tokens without credentials from a server that requires Kerberos.
func (d *documented) kerberosTokens() {
	primary := memory.New(memory.Config{})
	d.t.Cleanup(func() { _ = primary.Close() })
	auth := authn.Config{Delegations: delegations(d.t, time.Now)}
	withKerberos(d.t, &auth)
	secured := documented{t: d.t, doc: d.doc, addr: start(d.t, stack{Primary: primary, Auth: auth})}
	secured.send(true, http.StatusUnauthorized, "", http.MethodGet, "/kms/v1/?op=GETDELEGATIONTOKEN", "")
	secured.send(true, http.StatusUnauthorized, "", http.MethodPut, "/kms/v1/?op=RENEWDELEGATIONTOKEN&token=x", "")
	secured.send(true, http.StatusUnauthorized, "", http.MethodGet, "/kms/v1/keys/names", "")
}

func (d *documented) state() {
	for _, path := range []string{"/healthz", "/readyz", "/readyz?for=decrypt", "/metrics"} {
		d.send(true, http.StatusOK, "", http.MethodGet, path, "")
	}
	d.send(false, http.StatusBadRequest, "", http.MethodGet, "/readyz?for=all", "")
	d.sick = errors.New("the HSM is away")
	// A success is shown for a second.
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		answer, err := http.Get("http://" + d.addr + "/readyz") //nolint:noctx // the server of this test
		if err != nil || time.Now().After(deadline) {
			d.t.Fatal("/readyz does not become red: ", err)
		}
		_ = answer.Body.Close()
		if answer.StatusCode == http.StatusServiceUnavailable {
			break
		}
	}
	d.send(true, http.StatusServiceUnavailable, "", http.MethodGet, "/readyz", "")
}

func (d *documented) servlets() {
	for _, path := range []string{"/kms/api/status", "/kms/metrics/json", "/kms/metrics/prometheus", "/jmx", "/kms/jmx",
		"/jmx?qry=java.lang:*", "/jmx?get=java.lang:type=Memory::HeapMemoryUsage", "/conf",
		"/conf?name=hadoop.kms.http.host", "/stacks", "/prom", "/logLevel", "/logLevel?log=a&level=WARN"} {
		d.ok(http.MethodGet, path, "")
	}
	for _, path := range []string{"/jmx", "/kms/jmx"} {
		d.send(true, http.StatusBadRequest, "alice", http.MethodGet, path+"?get=none::none", "")
		d.send(true, http.StatusNotFound, "alice", http.MethodGet, path+"?get=java.lang:type=Memory::none", "")
	}
	d.ok(http.MethodGet, "/conf", "", "Accept", "application/json")
	d.ok(http.MethodGet, "/conf?name=hadoop.kms.http.host", "", "Accept", "application/json")
	d.send(true, http.StatusNotFound, "alice", http.MethodGet, "/conf?name=none", "")
	d.send(true, http.StatusNotFound, "alice", http.MethodGet, "/conf?name=none", "", "Accept", "application/json")
}

// withoutPages requests pages from a server that does not show them.
func (d *documented) withoutPages() {
	primary := memory.New(memory.Config{})
	d.t.Cleanup(func() { _ = primary.Close() })
	without := documented{t: d.t, doc: d.doc, addr: start(d.t, stack{Primary: primary})}
	for _, path := range []string{"/prom", "/logLevel"} {
		without.send(true, http.StatusNotFound, "alice", http.MethodGet, path, "")
		without.send(true, http.StatusNotFound, "alice", http.MethodGet, path, "", "Accept", "application/json")
	}
}

// refusals provokes the answers that every operation has, in each of their forms.
func (d *documented) refusals(o openapitest.Operation) {
	target, body := strings.ReplaceAll(o.Path, "{name}", "k"), ""
	if o.Body {
		body = "{}"
	}
	nobody := http.StatusUnauthorized
	switch o.Method + " " + o.Path { // without Kerberos, a request for tokens without a user is 403
	case "GET /kms/v1/":
		target, nobody = target+"?op=GETDELEGATIONTOKEN", http.StatusForbidden
	case "PUT /kms/v1/":
		target, nobody = target+"?op=RENEWDELEGATIONTOKEN&token=x", http.StatusForbidden
	}
	glue := map[bool]string{true: "&", false: "?"}[strings.Contains(target, "?")]
	for _, accept := range []string{"text/html", "application/json"} {
		send := func(status int, more string) {
			d.send(false, status, "", o.Method, target+more, body, "Accept", accept)
		}
		send(nobody, "")
		send(http.StatusForbidden, glue+"user.name=alice&doAs=bob")
		send(http.StatusInternalServerError, glue+"user.name=")
		send(http.StatusBadRequest, glue+strings.Repeat("a=b&", 1100))
		d.down = "this node starts"
		send(http.StatusServiceUnavailable, glue+"user.name=alice")
		d.down = ""
	}
}
