package kms

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	tracepb "go.opentelemetry.io/proto/otlp/trace/v1"

	"claviger/hadoopconf"
	"claviger/internal/faultmodule"
	"claviger/internal/logtest"
	"claviger/internal/otlptest"
	"claviger/kms/kmstest"
)

// traced runs a KMS with a configuration folder, and makes requests to it. end ends the KMS, which sends its spans.
type traced struct {
	t   *testing.T
	url string
	end func() error
	log logtest.Buffer
}

// everything are the properties of a KMS that traces each request.
func everything(c *otlptest.Collector) map[string]string {
	return map[string]string{"claviger.trace.endpoint": c.URL, "claviger.trace.ratio": "1", "hadoop.kms.http.port": "0",
		"hadoop.security.kms.encrypted.key.cache.size": "4"}
}

func newTraced(t *testing.T, dir string) *traced {
	t.Helper()
	k := &traced{t: t}
	var end func() error
	k.url, end = serveLogged(t, dir, slog.New(slog.NewTextHandler(&k.log, nil)))
	k.end = sync.OnceValue(end)
	t.Cleanup(func() { _ = k.end() }) // if the test fails before stop
	return k
}

// do makes a request as alice.
func (k *traced) do(method, path, body string, header http.Header) (status int, answer string) {
	k.t.Helper()
	sep := map[bool]string{true: "&", false: "?"}[strings.Contains(path, "?")]
	req, err := http.NewRequestWithContext(k.t.Context(), method, k.url+"/v1/"+path+sep+"user.name=alice",
		strings.NewReader(body))
	if err != nil {
		k.t.Fatal(err)
	}
	maps.Copy(req.Header, header)
	req.Header.Set("Content-Type", "application/json")
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		k.t.Fatal(err)
	}
	text, err := io.ReadAll(resp.Body)
	if err := resp.Body.Close(); err != nil {
		k.t.Fatal(err)
	}
	if err != nil {
		k.t.Fatal(err)
	}
	return resp.StatusCode, string(text)
}

// edek makes a key and an EDEK of it. It returns the path and the body of a request to decrypt it.
func (k *traced) edek(key string) (path, body string) {
	k.t.Helper()
	if status, text := k.do(http.MethodPost, "keys", `{"name":"`+key+`"}`, nil); status != http.StatusCreated {
		k.t.Fatal(status, text)
	}
	status, text := k.do(http.MethodGet, "key/"+key+"/_eek?eek_op=generate&num_keys=1", "", nil)
	var made []struct {
		VersionName, IV string
		Encrypted       struct{ Material string } `json:"encryptedKeyVersion"`
	}
	if err := json.Unmarshal([]byte(text), &made); err != nil || status != http.StatusOK || len(made) != 1 {
		k.t.Fatal(status, text, err)
	}
	return "keyversion/" + made[0].VersionName + "/_eek?eek_op=decrypt",
		`{"name":"` + key + `","iv":"` + made[0].IV + `","material":"` + made[0].Encrypted.Material + `"}`
}

// stop ends the KMS, so that the collector has all its spans.
func (k *traced) stop() {
	k.t.Helper()
	if err := k.end(); err != nil {
		k.t.Fatal(err)
	}
}

// tracedHSM is a folder with a KMS on SoftHSM that traces each request.
func tracedHSM(t *testing.T, c *otlptest.Collector, props map[string]string) (dir string) {
	t.Helper()
	dir, site := kmstest.HSM(t)
	kmstest.WriteFile(t, filepath.Join(dir, "kms-acls.xml"), kmstest.SiteXML("default.key.acl.MANAGEMENT", "*"))
	maps.Copy(site, everything(c))
	maps.Copy(site, props)
	kmstest.WriteSite(t, dir, site)
	return dir
}

// TestTraceOfDecrypt: the trace of a decrypt goes from the caller's span, over the request, to C_Encrypt on SoftHSM.
func TestTraceOfDecrypt(t *testing.T) {
	collector := otlptest.New(t)
	k := newTraced(t, tracedHSM(t, collector, nil))
	path, body := k.edek("k")
	k.do(http.MethodPost, path, body, nil) // the second decrypt reads nothing of the metastore
	const trace, caller = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
	header := http.Header{"Traceparent": {"00-" + trace + "-" + caller + "-01"}, "Tracestate": {"x=hunter2"}}
	if status, text := k.do(http.MethodPost, path, body, header); status != http.StatusOK {
		t.Fatal(status, text)
	}
	k.stop()
	of := slices.DeleteFunc(collector.Spans(), func(s otlptest.Span) bool { return s.Trace != trace })
	var paths []string
	for _, s := range of {
		paths = append(paths, otlptest.Path(of, s))
		if s.Failed || s.End.Before(s.Begin) || s.Resource["service.name"] != "claviger" {
			t.Errorf("%+v", s)
		}
	}
	slices.Sort(paths)
	want := []string{
		"C_Encrypt < pkcs11.EncryptBlocks < provider.Unwrap < keyring.Decrypt < decrypt_eek",
		"admission < decrypt_eek", "authentication < decrypt_eek", "body < decrypt_eek", "decrypt_eek",
		"keyring.Decrypt < decrypt_eek",
		"pkcs11.EncryptBlocks < provider.Unwrap < keyring.Decrypt < decrypt_eek",
		"provider.Unwrap < keyring.Decrypt < decrypt_eek",
	}
	if !slices.Equal(paths, want) {
		t.Fatalf("got\n%s\nwant\n%s", strings.Join(paths, "\n"), strings.Join(want, "\n"))
	}
	request, call := otlptest.Named(of, "decrypt_eek")[0], otlptest.Named(of, "C_Encrypt")[0]
	if request.Parent != caller || request.Kind != tracepb.Span_SPAN_KIND_SERVER ||
		request.Attributes["http.response.status_code"] != "200" || request.Attributes["kms.edeks"] != "1" ||
		request.Attributes["kms.request.id"] == "" {
		t.Errorf("%+v", request)
	}
	if a := call.Attributes; a["hsm.callers"] == "" || a["hsm.result"] != "CKR_OK" ||
		a["hsm.blocks"] == "" || len(call.Links) > 0 {
		t.Errorf("%+v", call)
	}
}

// TestTraceOfSharedCall: several requests share a C_Encrypt. It is in the trace of one of them, with links to the
// others, and each of these has a link to the call.
func TestTraceOfSharedCall(t *testing.T) {
	collector := otlptest.New(t)
	dir, fault := faultyHSM(t, false, everything(collector))
	k := newTraced(t, dir)
	path, body := k.edek("k")
	fault.Delay(faultmodule.Encrypt, 50*time.Millisecond)
	var group sync.WaitGroup
	for range 16 {
		group.Go(func() {
			if status, text := k.do(http.MethodPost, path, body, nil); status != http.StatusOK {
				t.Error(status, text)
			}
		})
	}
	group.Wait()
	k.stop()
	spans := collector.Spans()
	byID := map[string]otlptest.Span{}
	for _, s := range spans {
		byID[s.ID] = s
	}
	shared := 0
	for _, call := range otlptest.Named(spans, "C_Encrypt") {
		callers, err := strconv.Atoi(call.Attributes["hsm.callers"])
		if err != nil || callers < 1+len(call.Links) { // the queue of EDEKs is a caller without a span
			t.Errorf("%d callers, %d links", callers, len(call.Links))
		}
		for _, l := range call.Links {
			shared++
			other := byID[l]
			if other.Name != "pkcs11.EncryptBlocks" || other.Trace == call.Trace ||
				!slices.Equal(other.Links, []string{call.ID}) {
				t.Errorf("the call %+v has a link to %+v", call, other)
			}
			if other.Begin.After(call.End) || other.End.Before(call.End) {
				t.Errorf("%s did not wait for the call", other.ID)
			}
		}
	}
	if decrypts := len(otlptest.Named(spans, "decrypt_eek")); shared == 0 || decrypts != 16 {
		t.Fatalf("%d requests shared a call of another request; %d decrypts", shared, decrypts)
	}
}

// TestTraceAtSource: the trace of a decrypt of a source's key goes on at the source.
func TestTraceAtSource(t *testing.T) {
	collector := otlptest.New(t)
	proxy := "hadoop.kms.proxyuser." + OSUser() + "."
	source := newTraced(t, tracedHSM(t, collector, map[string]string{proxy + "users": "*", proxy + "hosts": "*"}))
	path, body := source.edek("k")
	dir := t.TempDir()
	site := everything(collector)
	maps.Copy(site, map[string]string{
		hadoopconf.SourceURI:   "kms://http@" + strings.TrimPrefix(source.url, "http://"),
		hadoopconf.ProviderURI: "jceks://file@" + filepath.Join(dir, "k.jceks"), "hadoop.kms.http.host": "127.0.0.1",
		hadoopconf.MetastoreURI:               "sqlite://" + filepath.Join(dir, "c.db"),
		"claviger.audit.file":                 filepath.Join(dir, "audit.log"),
		"hadoop.kms.key.authorization.enable": "false"})
	kmstest.WriteSite(t, dir, site)
	k := newTraced(t, dir)
	if status, text := k.do(http.MethodPost, path, body, nil); status != http.StatusOK {
		t.Fatal(status, text, k.log.String())
	}
	k.stop()
	source.stop()
	spans := collector.Spans()
	const want = "C_Encrypt < pkcs11.EncryptBlocks < provider.Unwrap < keyring.Decrypt < decrypt_eek < " +
		"kmsclient.Unwrap < source.Unwrap < keyring.Decrypt < decrypt_eek"
	var paths []string
	for _, s := range spans {
		if paths = append(paths, otlptest.Path(spans, s)); paths[len(paths)-1] == want {
			client := otlptest.Named(spans, "kmsclient.Unwrap")[0]
			if a := client.Attributes; client.Kind != tracepb.Span_SPAN_KIND_CLIENT ||
				a["server.address"] != "127.0.0.1" ||
				!strings.Contains(source.url, ":"+a["server.port"]+"/") || a["http.response.status_code"] != "200" {
				t.Errorf("%+v", client)
			}
			return
		}
	}
	t.Fatalf("no %s in\n%s", want, strings.Join(paths, "\n"))
}

// TestHungCollector: a collector that hangs stops no request and no end of the server. The lost spans are counted, and
// the log names the collector.
func TestHungCollector(t *testing.T) {
	collector := otlptest.New(t)
	collector.Hang()
	k := newTraced(t, tracedHSM(t, collector, nil))
	path, body := k.edek("k")
	lost := regexp.MustCompile(`(?m)^claviger_trace_spans_lost_total (\d+)$`)
	begun := time.Now()
	for i := 0; ; i++ {
		if status, text := k.do(http.MethodPost, path, body, nil); status != http.StatusOK {
			t.Fatal(status, text)
		}
		if i%100 != 0 {
			continue
		}
		_, text := kmstest.Get(t, k.url, "/metrics", "")
		if found := lost.FindStringSubmatch(text); found == nil || time.Since(begun) > time.Minute {
			t.Fatalf("after %d requests no span was lost:\n%s", i, text)
		} else if found[1] != "0" {
			break
		}
	}
	begun = time.Now()
	k.stop()
	if took := time.Since(begun); took > 8*time.Second {
		t.Errorf("the end took %v", took)
	}
	if want := "spans of traces were lost"; !strings.Contains(k.log.String(), want) ||
		!strings.Contains(k.log.String(), collector.URL) {
		t.Errorf("no %q in the log:\n%s", want, k.log.String())
	}
}

// TestNoTraces: a server without a collector has no goroutine of OpenTelemetry.
func TestNoTraces(t *testing.T) {
	dir, site := kmstest.HSM(t)
	kmstest.WriteSite(t, dir, site)
	goroutines := func() int {
		stacks := make([]byte, 4<<20)
		return bytes.Count(stacks[:runtime.Stack(stacks, true)], []byte("created by go.opentelemetry.io"))
	}
	before := goroutines()
	k := newTraced(t, dir)
	if n := goroutines(); n > before {
		t.Errorf("%d goroutines", n-before)
	}
	if _, text := kmstest.Get(t, k.url, "/metrics", ""); strings.Contains(text, "claviger_trace_") {
		t.Error("metrics of traces without traces")
	}
	k.stop()
}

// wantOnPage checks that docs/monitoring/traces.md names each attribute, and each kind of span.
func wantOnPage(t *testing.T, spans []otlptest.Span) {
	t.Helper()
	page, err := os.ReadFile("../docs/monitoring/traces.md")
	if err != nil {
		t.Fatal(err)
	}
	named := func(name string) bool { return bytes.Contains(page, []byte("`"+name)) }
	for _, s := range spans {
		room, _, step := strings.Cut(s.Name, ".")
		if !named(s.Name) && !(step && named(room+".")) && s.Kind != tracepb.Span_SPAN_KIND_SERVER {
			t.Errorf("the page does not name the span %s", s.Name)
		}
		for a := range s.Attributes {
			if !named(a + "`") {
				t.Errorf("the page does not name the attribute %s", a)
			}
		}
	}
}

// TestNoSecretInSpans: spans hold no key material, no name of a key or user, no cookie, token, query or header of the
// request, also if requests fail.
func TestNoSecretInSpans(t *testing.T) {
	collector := otlptest.New(t)
	dir := tracedHSM(t, collector, nil)
	kmstest.WriteFile(t, filepath.Join(dir, "kms-acls.xml"), kmstest.SiteXML("default.key.acl.MANAGEMENT", "*",
		"hadoop.kms.acl.DELETE", "nobody"))
	k := newTraced(t, dir)
	path, body := k.edek("salaries")
	secrets := []string{"salaries", "alice", "hunter2", "user.name", "user=", "eek_op"}
	status, text := k.do(http.MethodPost, path, body, http.Header{
		"Authorization": {"Negotiate aHVudGVyMg=="}, "X-Custom": {"hunter2"}, "Tracestate": {"x=hunter2"},
		"Traceparent": {"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"}, "User-Agent": {"hunter2"}})
	var opened struct{ Material string }
	if err := json.Unmarshal([]byte(text), &opened); err != nil || status != http.StatusOK {
		t.Fatal(status, text, err)
	}
	var edek struct{ IV, Material string }
	if err := json.Unmarshal([]byte(body), &edek); err != nil {
		t.Fatal(err)
	}
	for _, material := range []string{opened.Material, edek.Material, edek.IV} {
		key, err := base64.RawURLEncoding.DecodeString(material)
		if err != nil {
			t.Fatal(err)
		}
		secrets = append(secrets, material, string(key), fmt.Sprintf("%x", key))
	}
	_, text = k.do(http.MethodGet, "?op=GETDELEGATIONTOKEN&renewer=alice", "", nil)
	var token struct{ Token struct{ URLString string } }
	if err := json.Unmarshal([]byte(text), &token); err != nil || token.Token.URLString == "" {
		t.Fatal(text, err)
	}
	secrets = append(secrets, token.Token.URLString)
	for _, r := range []struct{ method, path, body string }{
		{http.MethodGet, "keys/names?delegation=" + token.Token.URLString, ""},
		{http.MethodGet, "keys/names?delegation=hunter2", ""},
		{"HUNTER2hunter2", "key/salaries", ""}, {http.MethodGet, "hunter2?hunter2=hunter2", ""},
		{http.MethodDelete, "key/salaries", ""}, {http.MethodGet, "key/hunter2/_metadata", ""},
		{http.MethodGet, "keyversion/hunter2@7", ""},
		{http.MethodPost, "keyversion/hunter2@7/_eek?eek_op=decrypt", body},
		{http.MethodPost, path, `{"name":"hunter2","iv":"` + edek.IV + `","material":"` + edek.Material + `"}`},
		{http.MethodPost, "keys", `{"name":"hunter2","cipher":"hunter2"}`}, {http.MethodPost, "keys", `hunter2`},
		{http.MethodPost, "keys", `{"name":"salaries"}`}, {http.MethodPost, "key/salaries", `{}`},
	} {
		k.do(r.method, r.path, r.body, nil)
	}
	k.stop()
	if n := len(collector.Spans()); n < 60 || len(otlptest.Named(collector.Spans(), "unknown")) < 2 {
		t.Fatalf("only %d spans", n)
	}
	wantOnPage(t, collector.Spans())
	raw := bytes.ToLower(collector.Raw())
	for _, s := range secrets {
		if bytes.Contains(raw, bytes.ToLower([]byte(s))) {
			t.Errorf("the spans contain %q", s)
		}
	}
}
