package kmsapi_test

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"claviger"
	"claviger/audit"
	"claviger/authn"
	"claviger/keyring"
	"claviger/kmsapi"
	"claviger/provider/memory"
	"claviger/secret"
)

// send sends a request with a JSON body as alice, if the target names no other user.
func send(t *testing.T, addr, method, target, body string, headers ...string) answer {
	t.Helper()
	sep := "?"
	if strings.Contains(target, "?") {
		sep = "&"
	}
	if !strings.Contains(target, "user.name=") {
		target += sep + "user.name=alice"
	}
	return sendAs(t, addr, method, target, body, headers...)
}

func sendAs(t *testing.T, addr, method, target, body string, headers ...string) answer {
	t.Helper()
	var b strings.Builder
	fmt.Fprintf(&b, "%s %s HTTP/1.1\r\nHost: kms:9600\r\n", method, target)
	if method == http.MethodPost {
		fmt.Fprintf(&b, "Content-Type: application/json\r\nContent-Length: %d\r\n", len(body))
	}
	for _, h := range headers {
		b.WriteString(h + "\r\n")
	}
	return exchange(t, addr, method, []byte(b.String()+"\r\n"+body))
}

// thrown is a RemoteException.
type thrown struct {
	RemoteException struct{ Message, Exception, JavaClassName string }
}

func (a answer) thrown(t *testing.T) (class, message string) {
	t.Helper()
	var e thrown
	if err := json.Unmarshal(a.body, &e); err != nil || e.RemoteException.JavaClassName == "" {
		t.Fatalf("%d %s is not a RemoteException: %v", a.status, a.body, err)
	}
	return e.RemoteException.JavaClassName, e.RemoteException.Message
}

func withKey(t *testing.T, s stack) string {
	t.Helper()
	if s.Primary == nil {
		s.Primary = memory.New(memory.Config{SequentialIDs: true})
	}
	addr := start(t, s)
	if a := send(t, addr, "POST", "/kms/v1/keys", `{"name":"k","length":128}`); a.status != http.StatusCreated {
		t.Fatalf("%d %s", a.status, a.body)
	}
	return addr
}

// TestLimits: the answer to each kind of request that exceeds a limit.
func TestLimits(t *testing.T) {
	addr := withKey(t, stack{Limits: kmsapi.Limits{MaxKeys: 500, MaxBatch: 3, MaxBody: 2 << 20}})
	const (
		jackson = "com.fasterxml.jackson"
		illegal = "java.lang.IllegalArgumentException"
	)
	edek := `{"versionName":"k@0","iv":"AAAAAAAAAAAAAAAAAAAAAA","encryptedKeyVersion":{"versionName":"EEK",` +
		`"material":"AAAAAAAAAAAAAAAAAAAAAA"}}`
	for _, c := range []struct {
		what, method, path, body string
		status                   int
		class, message           string
	}{
		{"a billion EDEKs", "GET", "/kms/v1/key/k/_eek?eek_op=generate&num_keys=1000000000", "", 400, illegal,
			"num_keys=1000000000 is more than 500"},
		{"one EDEK too many", "GET", "/kms/v1/key/k/_eek?eek_op=generate&num_keys=501", "", 400, illegal,
			"num_keys=501"},
		{"no number", "GET", "/kms/v1/key/k/_eek?eek_op=generate&num_keys=%22a%0Ab", "", 500,
			"com.sun.jersey.api.ParamException$QueryParamException",
			`java.lang.NumberFormatException: For input string: ""a`},
		{"a batch too long", "POST", "/kms/v1/key/k/_reencryptbatch", "[" + strings.Repeat(edek+",", 3) + edek + "]",
			400, illegal, "more than 3 EDEKs"},
		{"a body too long", "POST", "/kms/v1/keys", `{"name":"` + strings.Repeat("x", 1<<20) + `"}`, 413,
			"java.io.IOException", "longer than 1048576 bytes"},
		{"a batch's body too long", "POST", "/kms/v1/key/k/_reencryptbatch", strings.Repeat(" ", 2<<20+1), 413,
			"java.io.IOException", "longer than 2097152 bytes"},
		{"a name too long", "GET", "/kms/v1/key/" + strings.Repeat("n", 4097) + "/_metadata", "", 400, illegal,
			"longer than 4096 bytes"},
		{"deep arrays", "POST", "/kms/v1/keys", `{"name":"deep","x":` + strings.Repeat("[", 100_000) +
			strings.Repeat("]", 100_000) + "}", 500, jackson, ""},
		{"deep objects", "POST", "/kms/v1/key/k/_reencryptbatch", `[{"x":` + strings.Repeat(`{"x":`, 100_000), 500,
			jackson, ""},
		{"deep in a body's place", "POST", "/kms/v1/keyversion/k@0/_eek?eek_op=decrypt", strings.Repeat("[", 100_000),
			500, jackson, ""},
		{"broken UTF-8", "POST", "/kms/v1/keys", "{\"name\":\"\xff\xfe\"}", 500, jackson, "UTF-8"},
		{"half a surrogate", "POST", "/kms/v1/keys", "{\"name\":\"a\xed\xa0\x80\"}", 500, jackson, "UTF-8"},
		{"no base64", "POST", "/kms/v1/keyversion/k@0/_eek?eek_op=decrypt",
			`{"name":"k","iv":"AAAAAAAAAAAAAAAAAAAAAA","material":"***"}`, 400, illegal, "not base64"},
	} {
		t.Run(c.what, func(t *testing.T) {
			a := send(t, addr, c.method, c.path, c.body)
			class, message := a.thrown(t)
			if a.status != c.status || !strings.HasPrefix(class, c.class) || !strings.Contains(message, c.message) {
				t.Errorf("%d %s %q, want %d %s %q", a.status, class, message, c.status, c.class, c.message)
			}
			wantClose := c.status == http.StatusRequestEntityTooLarge
			if (a.header("Connection") == "close") != wantClose {
				t.Errorf("Connection %q", a.header("Connection"))
			}
		})
	}
	t.Run("a chunked body too long", func(t *testing.T) {
		chunk := fmt.Sprintf("%x\r\n%s\r\n", 1<<16, strings.Repeat(" ", 1<<16))
		request := "POST /kms/v1/keys?user.name=alice HTTP/1.1\r\nHost: kms\r\nContent-Type: " +
			"application/json\r\nTransfer-Encoding: chunked\r\n\r\n" + strings.Repeat(chunk, 16) + chunk
		if a := exchange(t, addr, "POST", []byte(request)); a.status != http.StatusRequestEntityTooLarge {
			t.Errorf("%d %s", a.status, a.body)
		}
	})
	t.Run("an endless head", func(t *testing.T) {
		request := "GET /kms/v1/keys/names?user.name=alice HTTP/1.1\r\nHost: kms\r\nX-Much: " + strings.Repeat("x",
			1<<17) + "\r\n\r\n"
		if a := exchange(t, addr, "GET", []byte(request)); a.status != http.StatusRequestHeaderFieldsTooLarge {
			t.Errorf("%d %s", a.status, a.body)
		}
	})
	if a := send(t, addr, "GET", "/kms/v1/keys/names", ""); string(a.body) != `["k"]` {
		t.Errorf("afterwards there are the keys %s", a.body)
	}
}

// TestAnnouncedBody: the server takes no memory for bytes that have not arrived.
func TestAnnouncedBody(t *testing.T) {
	addr := withKey(t, stack{Limits: kmsapi.Limits{MaxKeys: 1, MaxBatch: 1, MaxBody: 1 << 40},
		Server: func(s *http.Server) { s.ReadTimeout = 500 * time.Millisecond }})
	a := exchange(t, addr, "POST",
		[]byte("POST /kms/v1/key/k/_reencryptbatch?user.name=alice HTTP/1.1\r\nHost: kms\r\nContent-Type: "+
			"application/json\r\nContent-Length: 1099511627776\r\n\r\n[")) // 1 TiB
	if class, _ := a.thrown(t); a.status != 500 || class != "java.io.IOException" {
		t.Errorf("%d %s", a.status, a.body)
	}
}

// TestSlowClients: the server closes the connection of a client that sends its head or body very
// slowly, at the limit of time.
func TestSlowClients(t *testing.T) {
	const limit = 400 * time.Millisecond
	addr := withKey(t, stack{Server: func(s *http.Server) { s.ReadHeaderTimeout, s.ReadTimeout = limit, limit }})
	for what, sent := range map[string]string{
		"head": "GET /kms/v1/keys/names?user.name=alice HTTP/1.1\r\nX-Slow: ",
		"body": "POST /kms/v1/keys?user.name=alice HTTP/1.1\r\nHost: kms\r\nContent-Type: " +
			"application/json\r\nContent-Length: 1000000\r\n\r\n{\"name\":\"slow\",\"x\":\"",
	} {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			conn, err := net.Dial("tcp", addr)
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = conn.Close() }()
			began := time.Now()
			_ = conn.SetDeadline(began.Add(20 * time.Second))
			closed := make(chan struct{})
			go func() { defer close(closed); _, _ = io.Copy(io.Discard, conn) }()
			_, err = io.WriteString(conn, sent)
			for err == nil {
				select {
				case <-closed:
					err = io.EOF
				case <-time.After(20 * time.Millisecond):
					_, err = io.WriteString(conn, "x")
				}
			}
			_ = conn.Close()
			<-closed
			// The server measures from the time at which it accepted the connection, which may be before
			// Dial returned here.
			if took := time.Since(began); took < limit/2 || took > 15*time.Second {
				t.Errorf("cut off after %v, with %v", took, err)
			}
		})
	}
}

// TestBase64: clients send the standard alphabet or the URL-safe one, with or without padding. The
// answer is the same.
func TestBase64(t *testing.T) {
	addr := withKey(t, stack{})
	iv := bytes.Repeat([]byte{0xfb, 0xff, 0xbe, 0x3f}, 4)
	material := bytes.Repeat([]byte{0xff, 0xef, 0xfe, 0xf8}, 4)
	var first answer
	for i, e := range []*base64.Encoding{base64.StdEncoding, base64.RawStdEncoding, base64.URLEncoding,
		base64.RawURLEncoding} {
		open := fmt.Sprintf(`{"name":"k","iv":%q,"material":%q}`, e.EncodeToString(iv), e.EncodeToString(material))
		batch := fmt.Sprintf(`[{"versionName":"k@0","iv":%q,"encryptedKeyVersion":{"versionName":"EEK",`+
			`"material":%q}}]`, e.EncodeToString(iv), e.EncodeToString(material))
		a := send(t, addr, "POST", "/kms/v1/keyversion/k%400/_eek?eek_op=decrypt", open)
		b := send(t, addr, "POST", "/kms/v1/key/k/_reencryptbatch", batch)
		a.body = append(a.body, b.body...)
		if i == 0 {
			first = a
		}
		if a.status != 200 || b.status != 200 || !bytes.Equal(a.body, first.body) ||
			!strings.Contains(string(b.body), base64.RawURLEncoding.EncodeToString(material)) {
			t.Errorf("dialect %d: %d %d %s, want %s", i, a.status, b.status, a.body, first.body)
		}
	}
}

// TestNotReady: before the server is ready, each request is answered with 503 and the reason.
func TestNotReady(t *testing.T) {
	var mu sync.Mutex
	why := "the migration is under way"
	tr := &trail{}
	addr := start(t, stack{Primary: memory.New(memory.Config{}), Trail: tr,
		NotReady: func() string { mu.Lock(); defer mu.Unlock(); return why }})
	for _, c := range []struct{ method, target string }{
		{"GET", "/kms/v1/keys/names"}, {"OPTIONS", "/kms/v1/keys/names"}, {"POST", "/kms/v1/keys"}, {"GET",
			"/kms/v1/nothing"}, {"GET", "/kms/jmx"},
	} {
		a := send(t, addr, c.method, c.target, "{}")
		class, message := a.thrown(t)
		if a.status != 503 || class != "org.apache.hadoop.ipc.StandbyException" || message != why ||
			a.header("Retry-After") == "" || a.headers["Set-Cookie"] != nil {
			t.Errorf("%s %s: %d %v %s", c.method, c.target, a.status, a.headers, a.body)
		}
	}
	if events := tr.all(); len(events) > 0 {
		t.Errorf("there are audit events of requests that were not served: %+v", events)
	}
	mu.Lock()
	why = ""
	mu.Unlock()
	if a := send(t, addr, "GET", "/kms/v1/keys/names", ""); a.status != 200 {
		t.Errorf("once ready: %d %s", a.status, a.body)
	}
}

// faulty is a provider that fails with the error of a function.
type faulty struct {
	*memory.Provider
	mu   sync.Mutex
	with func() error
}

func (f *faulty) fail(with func() error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.with = with
}

func (f *faulty) err() error {
	f.mu.Lock()
	with := f.with
	f.mu.Unlock()
	if with == nil {
		return nil
	}
	return with()
}

func (f *faulty) RollIf(ctx context.Context, key string, material secret.Bytes,
	may func(*claviger.Metadata) error) (claviger.KeyVersion, error) {
	if err := f.err(); err != nil {
		return claviger.KeyVersion{}, err
	}
	return f.Provider.RollIf(ctx, key, material, may)
}

// TestFaults: the answer to each kind of error of the provider.
func TestFaults(t *testing.T) {
	f := &faulty{Provider: memory.New(memory.Config{SequentialIDs: true})}
	type seen struct {
		op     string
		status int
	}
	var mu sync.Mutex
	var observed []seen
	addr := withKey(t, stack{Primary: f, Observe: func(op string, status, _ int, _ time.Duration) {
		mu.Lock()
		defer mu.Unlock()
		observed = append(observed, seen{op, status})
	}})
	e := func(kind claviger.Kind, err error) func() error {
		return func() error { return claviger.E("test", kind, "k", err) }
	}
	const io500, standby = "java.io.IOException", "org.apache.hadoop.ipc.StandbyException"
	secretText := errors.New("PIN 1234 at /etc/hsm")
	for _, c := range []struct {
		what    string
		with    func() error
		status  int
		class   string
		message string
	}{
		{"unavailable", e(claviger.Unavailable, secretText), 503, standby, "this node cannot serve the request now"},
		{"closed", e(claviger.Closed, nil), 503, standby, "this node cannot serve the request now"},
		{"unavailable, as it took too long", e(claviger.Unavailable, context.DeadlineExceeded), 503, standby,
			"this node"},
		{"too long", e(claviger.Internal, context.DeadlineExceeded), 500, io500,
			"check whether it was done before you repeat it"},
		{"too long, bare", func() error { return context.DeadlineExceeded }, 500, io500, "given up after 1m0s"},
		{"unknown", func() error { return secretText }, 500, io500, "internal error"},
		{"of no error kind", e(claviger.Internal, secretText), 500, io500, "internal error"},
		{"with an answer", func() error {
			return claviger.Answer(e(claviger.Internal, secretText)(), "ask an operator")
		}, 500, io500, "ask an operator; the server's log has the reason under request id"},
		{"a panic", func() error { panic(secretText) }, 500, io500, "internal error"},
	} {
		t.Run(c.what, func(t *testing.T) {
			f.fail(c.with)
			defer f.fail(nil)
			a := send(t, addr, "POST", "/kms/v1/key/k", "{}")
			class, message := a.thrown(t)
			if a.status != c.status || class != c.class || !strings.Contains(message, c.message) {
				t.Errorf("%d %s %q", a.status, class, message)
			}
			if strings.Contains(string(a.body), "1234") {
				t.Errorf("the client sees the error's text: %s", a.body)
			}
			if (a.header("Retry-After") != "") != (a.status == 503) {
				t.Errorf("Retry-After %q with %d", a.header("Retry-After"), a.status)
			}
			mu.Lock()
			defer mu.Unlock()
			if last := observed[len(observed)-1]; last != (seen{"roll_new_version", c.status}) {
				t.Errorf("observed as %+v", last)
			}
		})
	}
	a := send(t, addr, "POST", "/kms/v1/key/k", "{}")
	if a.status != 200 || !strings.Contains(string(a.body), `"k@1"`) {
		t.Errorf("the first roll after all faults: %d %s", a.status, a.body)
	}
}

// TestClientGone: nothing is logged if a client did not wait for the answer, wherever the server
// notices that.
func TestClientGone(t *testing.T) {
	f := &faulty{Provider: memory.New(memory.Config{SequentialIDs: true})}
	var log bytes.Buffer
	var mu sync.Mutex
	addr := withKey(t, stack{Primary: f, Log: slog.NewTextHandler(writerFunc(func(b []byte) (int, error) {
		mu.Lock()
		defer mu.Unlock()
		return log.Write(b)
	}), nil)})
	for _, kind := range []claviger.Kind{claviger.Unavailable, claviger.Internal} {
		for cause, logged := range map[error]bool{context.Canceled: false, errors.New("no route to the HSM"): true} {
			f.fail(func() error { return claviger.Errorf("test", kind, "k", "no answer: %w", cause) })
			send(t, addr, "POST", "/kms/v1/key/k", "{}")
			mu.Lock()
			if strings.Contains(log.String(), cause.Error()) != logged {
				t.Errorf("%v, %v: logged %q", kind, cause, log.String())
			}
			log.Reset()
			mu.Unlock()
		}
	}
}

type writerFunc func([]byte) (int, error)

func (f writerFunc) Write(b []byte) (int, error) { return f(b) }

// TestObserve: Observe gets the operation, the status and the number of EDEKs of each request.
func TestObserve(t *testing.T) {
	var mu sync.Mutex
	var got []string
	addr := start(t, stack{Primary: memory.New(memory.Config{SequentialIDs: true}), Observe: func(op string, status,
		edeks int, took time.Duration) {
		mu.Lock()
		defer mu.Unlock()
		if took < 0 {
			t.Errorf("%s took %v", op, took)
		}
		got = append(got, fmt.Sprintf("%s %d %d", op, status, edeks))
	}})
	edek := `{"name":"k","iv":"AAAAAAAAAAAAAAAAAAAAAA","material":"AAAAAAAAAAAAAAAAAAAAAA"}`
	item := `{"versionName":"k@0","iv":"AAAAAAAAAAAAAAAAAAAAAA","encryptedKeyVersion":{"versionName":"EEK",` +
		`"material":"AAAAAAAAAAAAAAAAAAAAAA"}}`
	send(t, addr, "POST", "/kms/v1/keys", `{"name":"k"}`)
	send(t, addr, "GET", "/kms/v1/key/k/_eek?eek_op=generate&num_keys=7", "")
	send(t, addr, "POST", "/kms/v1/keyversion/k@0/_eek?eek_op=decrypt", edek)
	send(t, addr, "POST", "/kms/v1/keyversion/k@0/_eek?eek_op=reencrypt", edek)
	send(t, addr, "POST", "/kms/v1/key/k/_reencryptbatch", "["+item+","+item+"]")
	send(t, addr, "GET", "/kms/v1/nothing", "")
	sendAs(t, addr, "GET", "/kms/v1/keys/names", "")
	send(t, addr, "GET", "/kms/jmx", "")
	mu.Lock()
	defer mu.Unlock()
	want := []string{"create_key 201 0", "generate_eek 200 7", "decrypt_eek 200 1", "reencrypt_eek 200 1",
		"reencrypt_eek_batch 200 2", "unknown 404 0", "unknown 401 0", "jmx 200 0"}
	if !slices.Equal(got, want) {
		t.Errorf("observed %q, want %q", got, want)
	}
}

// TestJMX: /jmx needs a user, and shows the meters of Hadoop's KMS.
func TestJMX(t *testing.T) {
	addr := withKey(t, stack{})
	send(t, addr, "GET", "/kms/v1/keyversion/k@0", "")
	send(t, addr, "GET", "/kms/v1/key/k/_eek?eek_op=generate", "")
	send(t, addr, "GET", "/kms/v1/nothing", "")
	for range 2 {
		a := sendAs(t, addr, "GET", "/jmx", "")
		if a.status != 401 || a.header("WWW-Authenticate") != authn.PseudoAuth {
			t.Errorf("without a user: %d %v", a.status, a.headers)
		}
	}
	type beans struct {
		Beans           []map[string]any
		Result, Message string
	}
	get := func(query string, status int) beans {
		t.Helper()
		a := send(t, addr, "GET", "/kms/jmx"+query, "")
		var b beans
		if err := json.Unmarshal(a.body, &b); err != nil || a.status != status ||
			a.header("Content-Type") != "application/json; charset=utf8" ||
			a.header("Access-Control-Allow-Origin") != "*" {
			t.Errorf("%s: %d %v %s, %v", query, a.status, a.headers, a.body, err)
		}
		return b
	}
	counts := map[string]float64{}
	for _, b := range get("?qry=metrics:name=hadoop.kms.*", 200).Beans {
		name := strings.TrimSuffix(strings.TrimPrefix(b["name"].(string), "metrics:name=hadoop.kms."), ".calls.meter")
		counts[name] = b["Count"].(float64)
		if b["modelerType"] != "com.codahale.metrics.JmxReporter$JmxMeter" || b["RateUnit"] != "events/second" {
			t.Errorf("%v", b)
		}
	}
	if want := "map[admin:1 decrypt_eek:0 generate_eek:1 invalid:1 key:1 reencrypt_eek:0 reencrypt_eek_batch:0 " +
		"unauthenticated:2 unauthorized:0]"; fmt.Sprint(counts) != want {
		t.Errorf("meters %v, want %s", counts, want)
	}
	if b := get("?get=metrics:name=hadoop.kms.key.calls.meter::Count", 200).Beans; len(b) != 1 || len(b[0]) != 3 ||
		b[0]["Count"] != 1.0 {
		t.Errorf("one attribute: %v", b)
	}
	memory := get("?qry=java.lang:type=Memory", 200).Beans
	if len(memory) != 1 {
		t.Fatalf("%v", memory)
	}
	if heap := memory[0]["HeapMemoryUsage"].(map[string]any); heap["used"].(float64) < 1<<16 ||
		heap["committed"].(float64) < heap["used"].(float64) {
		t.Errorf("heap %v", heap)
	}
	if b := get("", 200).Beans; len(b) != 14 {
		t.Errorf("%d beans", len(b))
	}
	if b := get("?qry=Hadoop:name=HttpServer2-*,*", 200); len(b.Beans) != 1 ||
		b.Beans[0]["Responses4xx"].(float64) < 2 || b.Beans[0]["RequestsActive"] != 1.0 ||
		b.Beans[0]["ResponsesBytesTotal"].(float64) < 1000 {
		t.Errorf("%v", b)
	}
	if b := get("?qry=Hadoop:service=KMS,name=JvmMetrics", 200); len(b.Beans) != 1 ||
		b.Beans[0]["MemHeapUsedM"].(float64) < .1 || b.Beans[0]["ThreadsWaiting"].(float64) < 1 ||
		b.Beans[0]["ThreadsRunnable"].(float64) < 1 {
		t.Errorf("%v", b)
	}
	if b := get("?qry=None:*", 200); len(b.Beans) != 0 {
		t.Errorf("%v", b)
	}
	for query, status := range map[string]int{"?qry=nothing": 400, "?get=metrics:name=x": 400, "?get=a:b=c::d::e": 400,
		"?get=java.lang:type=Memory::Nothing": 404} {
		if b := get(query, status); b.Result != "ERROR" || b.Message == "" {
			t.Errorf("%s: %+v", query, b)
		}
	}
	if a := send(t, addr, "POST", "/jmx", ""); a.status != 405 {
		t.Errorf("POST: %d", a.status)
	}
	if a := send(t, addr, "HEAD", "/jmx", ""); a.status != 200 || a.header("Content-Length") != "0" {
		t.Errorf("HEAD: %d %v", a.status, a.headers)
	}
}

// TestAbsoluteTarget: a target may be a whole URL (RFC 9112, section 3.2.2).
func TestAbsoluteTarget(t *testing.T) {
	addr := withKey(t, stack{})
	a := send(t, addr, "GET", "http://kms:9600/kms/v1/keys/names", "")
	if a.status != 200 || string(a.body) != `["k"]` {
		t.Errorf("%d %s", a.status, a.body)
	}
}

// TestErrorPages: the client's text becomes neither HTML nor another line of the audit log.
func TestErrorPages(t *testing.T) {
	tr := &trail{}
	addr := start(t, stack{Primary: memory.New(memory.Config{}), Trail: tr})
	a := sendAs(t, addr, "GET", `/kms/v1/"<script>alert(1)</script>'`, "", `Cookie: hadoop.auth="<script>ü&s=x"`)
	if a.status != 401 || bytes.Contains(a.body, []byte("<script>")) || bytes.ContainsFunc(a.body,
		func(r rune) bool { return r >= 0x80 }) {
		t.Errorf("%d %s", a.status, a.body)
	}
	if events := tr.all(); len(events) != 1 || events[0].Status != audit.Unauthenticated ||
		events[0].Caller.RemoteAddr != "127.0.0.1" {
		t.Errorf("audit events %+v", events)
	}
	a = sendAs(t, addr, "GET", "/elsewhere?user.name=alice", "", "Accept: application/json")
	var page struct{ Message, URL, Status string }
	if err := json.Unmarshal(a.body, &page); err != nil || a.status != 404 || page.URL != "/elsewhere" ||
		page.Status != "404" || page.Message != "Not Found" {
		t.Errorf("%d %s, %v", a.status, a.body, err)
	}
}

// TestNew: New refuses an incomplete configuration.
func TestNew(t *testing.T) {
	for _, cfg := range []kmsapi.Config{{}, {Ring: &keyring.Ring{}, Auth: &authn.Authenticator{}, Audit: &trail{}}} {
		if _, err := kmsapi.New(cfg); err == nil || !strings.HasPrefix(err.Error(), "kmsapi.New: ") {
			t.Errorf("%+v: %v", cfg, err)
		}
	}
}
