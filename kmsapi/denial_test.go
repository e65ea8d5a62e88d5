package kmsapi_test

import (
	"bufio"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	"claviger/authz"
	"claviger/kmsapi"
	"claviger/provider/memory"
)

// sendPart sends the beginning of a request, and keeps the connection open until the test ends.
func sendPart(t *testing.T, addr, text string) *net.TCPConn {
	t.Helper()
	raw, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = raw.Close() })
	conn := raw.(*net.TCPConn)
	if err := conn.SetReadBuffer(4 << 10); err != nil {
		t.Fatal(err)
	}
	if _, err := conn.Write([]byte(text)); err != nil {
		t.Fatal(err)
	}
	return conn
}

// serverCloses reports whether the server closes a connection within ten seconds.
func serverCloses(conn net.Conn) bool {
	_ = conn.SetReadDeadline(time.Now().Add(10 * time.Second))
	buf := make([]byte, 64<<10)
	for {
		if _, err := conn.Read(buf); err != nil {
			late, ok := err.(net.Error) //nolint:errorlint // what a connection returns
			return !ok || !late.Timeout()
		}
	}
}

var shortGrace = kmsapi.Slow{Grace: 500 * time.Millisecond, Rate: 4 << 20}

// TestUnreadAnswers: a user who requests large answers and reads none of them takes neither slots
// nor memory from others, and loses his own after a short time.
func TestUnreadAnswers(t *testing.T) {
	limiters := &kmsapi.Limiters{}
	var closed sync.Map // by the client's address
	addr := withKey(t, stack{
		Limiters: limiters,
		Server: func(s *http.Server) {
			s.ConnState = func(c net.Conn, state http.ConnState) {
				if state == http.StateClosed {
					closed.Store(c.RemoteAddr().String(), true)
				}
			}
		},
		Limits: kmsapi.Limits{MaxKeys: 60_000, MaxBatch: 1000, MaxBody: 32 << 20, Slow: shortGrace},
		Admission: kmsapi.Admission{Decrypts: 4, Generates: 240, Batches: 4, Management: 4,
			Wait: 300 * time.Millisecond},
	})
	var conns []*net.TCPConn
	for range 4 {
		conns = append(conns, sendPart(t, addr,
			"GET /kms/v1/key/k/_eek?eek_op=generate&num_keys=60000&user.name=mallory HTTP/1.1\r\nHost: kms\r\n\r\n"))
	}
	for deadline := time.Now().Add(30 * time.Second); limiters.Figures()["large"].Used == 0 &&
		time.Now().Before(deadline); {
		time.Sleep(time.Millisecond)
	}
	// The slots are released while the answers are still in memory.
	for deadline, seen := time.Now().Add(10*time.Second), 0; seen < 5; time.Sleep(2 * time.Millisecond) {
		if f := limiters.Figures(); f["large"].Used > 0 && f["generate"].Used == 0 {
			seen++
		} else {
			seen = 0
		}
		if time.Now().After(deadline) {
			t.Fatalf("answers that nobody reads hold slots: %+v", limiters.Figures())
		}
	}
	for range 5 {
		if a := send(t, addr, "GET", "/kms/v1/key/k/_eek?eek_op=generate&num_keys=2000", ""); a.status != 200 {
			t.Errorf("alice beside answers that nobody reads: %d %s", a.status, a.body[:min(len(a.body), 300)])
		}
	}
	if f := limiters.Figures()["large"]; f.BusiestCaller > f.Size/2 {
		t.Errorf("one user holds %d of %d bytes", f.BusiestCaller, f.Size)
	}
	deadline := time.Now().Add(30 * time.Second)
	for ; limiters.Figures()["large"].Used > 0; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("memory is not released: %+v", limiters.Figures()["large"])
		}
	}
	// The client could still read the socket's buffers for a long time, but the server has closed
	// the connections with a long answer. The other connections were refused, and are idle.
	for deadline, cut := time.Now().Add(10*time.Second), 0; cut == 0; time.Sleep(10 * time.Millisecond) {
		for _, c := range conns {
			if _, ok := closed.Load(c.LocalAddr().String()); ok {
				cut++
			}
		}
		if time.Now().After(deadline) {
			t.Fatal("all connections are kept")
		}
	}
}

// TestIdleBodies: bodies that do not go on take no memory from others, and the server waits for
// them only for a limited time. A caller without the right is refused before the body is read.
func TestIdleBodies(t *testing.T) {
	policy, _ := authz.Parse(append([]authz.Property{{Name: "hadoop.kms.blacklist.GENERATE_EEK", Value: "eve"}},
		openRules...))
	limiters := &kmsapi.Limiters{}
	addr := withKey(t, stack{
		Limiters: limiters, Policy: policy,
		Limits:    kmsapi.Limits{MaxKeys: 1000, MaxBatch: 10_000, MaxBody: 1 << 20, Slow: shortGrace},
		Admission: kmsapi.Admission{Decrypts: 4, Generates: 4, Batches: 4, Management: 4, Wait: 200 * time.Millisecond},
	})
	const head = "POST /kms/v1/key/k/_reencryptbatch?user.name=%s HTTP/1.1\r\nHost: kms\r\nContent-Type: " +
		"application/json\r\n%s\r\n\r\n"
	var conns []*net.TCPConn
	for i := range 12 {
		conns = append(conns,
			sendPart(t, addr, fmt.Sprintf(head+"1\r\n[\r\n", fmt.Sprint("mallory", i%3),
				"Transfer-Encoding: chunked")),
			sendPart(t, addr, fmt.Sprintf(head+"[", fmt.Sprint("mallory", i%3), "Content-Length: 1048576")))
	}
	long := "[" + strings.Repeat(" ", 900<<10) + "]"
	for range 3 {
		if a := send(t, addr, "POST", "/kms/v1/key/k/_reencryptbatch", long); a.status != 200 {
			t.Errorf("a long body beside idle ones: %d %s", a.status, a.body)
		}
	}
	if a := send(t, addr, "GET", "/kms/v1/key/k/_eek?eek_op=generate&num_keys=1000", ""); a.status != 200 {
		t.Errorf("a large generate beside idle bodies: %d %s", a.status, a.body)
	}
	for i, c := range conns {
		if !serverCloses(c) {
			t.Errorf("the server still waits for connection %d", i)
		}
	}
	// The last handlers release their memory after they have sent their answers.
	deadline := time.Now().Add(30 * time.Second)
	for ; limiters.Figures()["large"].Used != 0; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("idle bodies hold memory: %+v", limiters.Figures()["large"])
		}
	}

	refused := sendPart(t, addr, fmt.Sprintf(head, "eve", "Transfer-Encoding: chunked"))
	_ = refused.SetReadDeadline(time.Now().Add(10 * time.Second))
	began := time.Now()
	resp, err := http.ReadResponse(bufio.NewReader(refused), nil)
	if err != nil || resp.StatusCode != http.StatusForbidden {
		t.Fatalf("a caller without the right: %v, %v", resp, err)
	}
	_ = resp.Body.Close()
	if took := time.Since(began); took >= shortGrace.Grace {
		t.Errorf("the server waited for the body first: %v", took)
	}
}

// TestFairClasses: a user whose requests hang holds at most half of a class.
func TestFairClasses(t *testing.T) {
	s := &slow{Provider: memory.New(memory.Config{SequentialIDs: true}), hanging: make(chan struct{}),
		release: make(chan struct{})}
	limiters := &kmsapi.Limiters{}
	addr := withKey(t, stack{Primary: s, Limiters: limiters, Admission: kmsapi.Admission{Decrypts: 4, Generates: 4,
		Batches: 4, Management: 4, Wait: 100 * time.Millisecond}})
	const one = "/kms/v1/key/k/_eek?eek_op=generate&num_keys=1"
	const many = "/kms/v1/key/k/_eek?eek_op=generate&num_keys=300&user.name=mallory"
	if a := send(t, addr, "GET", one, ""); a.status != 200 { // the others wait for the first
		t.Fatal(a.status)
	}
	var requests sync.WaitGroup
	var mu sync.Mutex
	answers := map[int]int{}
	for range 8 {
		requests.Go(func() {
			a := send(t, addr, "GET", many, "")
			mu.Lock()
			defer mu.Unlock()
			answers[a.status]++
			if a.status == http.StatusServiceUnavailable && !strings.Contains(string(a.body), "as one user may have") {
				t.Errorf("%s", a.body)
			}
		})
	}
	<-s.hanging
	<-s.hanging
	for range 4 {
		if a := send(t, addr, "GET", one, ""); a.status != 200 {
			t.Errorf("alice beside mallory: %d %s", a.status, a.body)
		}
	}
	if f := limiters.Figures()["generate"]; f.BusiestCaller != 2 || f.Size != 4 {
		t.Errorf("figures: %+v", f)
	}
	if err := limiters.Full(); err != nil {
		t.Errorf("only mallory was refused, but Full says: %v", err)
	}
	for sent := 0; sent < 6; time.Sleep(time.Millisecond) {
		mu.Lock()
		sent = answers[http.StatusServiceUnavailable]
		mu.Unlock()
	}
	close(s.release)
	requests.Wait()
	if answers[200] != 2 || answers[503] != 6 || limiters.Figures()["generate"].Own == 0 {
		t.Errorf("mallory was answered %v", answers)
	}
}

// TestNamesInBodies: the limits of names in a path hold in a body and in a query, too, and
// metadata have limits.
func TestNamesInBodies(t *testing.T) {
	tr := &trail{}
	addr := withKey(t, stack{Trail: tr, Limits: kmsapi.Limits{MaxKeys: 1000, MaxBatch: 1000, MaxBody: 4 << 20,
		MaxNames: 20, MaxParameters: 40}})
	long := strings.Repeat("n", 4097)
	text := func(v any) string { return jsonOf(t, v) }
	attributes := make(map[string]string)
	for i := range 65 {
		attributes[fmt.Sprint("a", i)] = "v"
	}
	const create = "/kms/v1/keys"
	for what, c := range map[string]struct{ method, target, body string }{
		"a long name":            {"POST", create, text(map[string]any{"name": strings.Repeat("n", 900_003)})},
		"a name just too long":   {"POST", create, text(map[string]any{"name": long})},
		"a NUL":                  {"POST", create, text(map[string]any{"name": "a\x00b"})},
		"a NUL in a description": {"POST", create, text(map[string]any{"name": "n", "description": "a\x00b"})},
		"a NUL in an attribute": {"POST", create,
			text(map[string]any{"name": "n", "attributes": map[string]string{"x": "a\x00b"}})},
		"a NUL in its name": {"POST", create,
			text(map[string]any{"name": "n", "attributes": map[string]string{"a\x00b": "x"}})},
		"a long cipher": {"POST", create, text(map[string]any{"name": "a", "cipher": strings.Repeat("c",
			129)})},
		"a long description": {"POST", create, text(map[string]any{"name": "a",
			"description": strings.Repeat("d", 8193)})},
		"many attributes": {"POST", create, text(map[string]any{"name": "a", "attributes": attributes})},
		"a long attribute": {"POST", create, text(map[string]any{"name": "a",
			"attributes": map[string]string{"x": strings.Repeat("v", 4097)}})},
		"a long attribute's name": {"POST", create, text(map[string]any{"name": "a",
			"attributes": map[string]string{long: "v"}})},
		"a long version in a batch": {"POST", "/kms/v1/key/k/_reencryptbatch", `[{"versionName":"` +
			strings.Repeat("n", 4118) +
			`","iv":"AAAAAAAAAAAAAAAAAAAAAA","encryptedKeyVersion":{"versionName":"EEK",` +
			`"material":"AAAAAAAAAAAAAAAAAAAAAA"}}]`},
		"a long name in a decrypt": {"POST", "/kms/v1/keyversion/k@0/_eek?eek_op=decrypt", `{"name":"` + long +
			`","iv":"AAAAAAAAAAAAAAAAAAAAAA","material":"AAAAAAAAAAAAAAAAAAAAAA"}`},
		"a long version in a path": {"GET", "/kms/v1/keyversion/" + strings.Repeat("n", 4118), ""},
		"a long name in a query":   {"GET", "/kms/v1/keys/metadata?key=" + long, ""},
		"many names":               {"GET", "/kms/v1/keys/metadata?" + strings.Repeat("key=k&", 21), ""},
	} {
		a := send(t, addr, c.method, c.target, c.body)
		if a.status != 400 || !strings.Contains(string(a.body), "IllegalArgumentException") {
			t.Errorf("%s: %d %s", what, a.status, a.body[:min(len(a.body), 300)])
		}
		if len(a.body) > 500 {
			t.Errorf("%s: the answer repeats it: %d bytes", what, len(a.body))
		}
	}
	for _, e := range tr.all() {
		if len(e.Key) > 4096 || len(e.Version) > 4200 || len(e.Message) > 500 {
			t.Errorf("an audit event of %s holds %d, %d, %d bytes", e.Op, len(e.Key), len(e.Version), len(e.Message))
		}
	}
	for _, sep := range []string{"&", ";"} {
		if a := send(t, addr, "GET", "/kms/v1/keys/metadata?x=1"+strings.Repeat(sep+"x=1", 60), ""); a.status != 400 {
			t.Errorf("60 parameters with %s: %d %s", sep, a.status, a.body)
		}
	}
	if a := send(t, addr, "GET", "/kms/v1/keys/metadata?"+strings.Repeat("key=k&", 20), ""); a.status != 200 {
		t.Errorf("the greatest number of names: %d %s", a.status, a.body)
	}
}

func jsonOf(t *testing.T, v any) string {
	t.Helper()
	b, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// TestLongestNames: a key with the longest allowed name works like any other.
func TestLongestNames(t *testing.T) {
	addr := withKey(t, stack{})
	text := func(v any) string { return jsonOf(t, v) }
	for _, n := range []int{4075, 4094, 4095, 4096} {
		name := strings.Repeat("n", n)
		if a := send(t, addr, "POST", "/kms/v1/keys", text(map[string]any{"name": name})); a.status != 201 {
			t.Fatalf("a name of %d bytes: %d %s", n, a.status, a.body)
		}
		a := send(t, addr, "GET", "/kms/v1/key/"+name+"/_eek?eek_op=generate&num_keys=1", "")
		var edeks []struct {
			VersionName, IV     string
			EncryptedKeyVersion struct{ VersionName, Material string }
		}
		if err := json.Unmarshal(a.body, &edeks); err != nil || a.status != 200 || len(edeks) != 1 ||
			len(edeks[0].VersionName) <= n {
			t.Fatalf("generate for a name of %d bytes: %d %s, %v", n, a.status, a.body, err)
		}
		e := edeks[0]
		if a := send(t, addr, "POST", "/kms/v1/keyversion/"+url.PathEscape(e.VersionName)+"/_eek?eek_op=decrypt",
			text(map[string]any{"name": name, "iv": e.IV,
				"material": e.EncryptedKeyVersion.Material})); a.status != 200 {
			t.Errorf("decrypt for a name of %d bytes: %d %s", n, a.status, a.body)
		}
		one := a.body
		if a := send(t, addr, "POST", "/kms/v1/key/"+name+"/_reencryptbatch", string(one)); a.status != 200 {
			t.Errorf("re-encryption for a name of %d bytes: %d %s", n, a.status, a.body)
		}
		if a := send(t, addr, "GET", "/kms/v1/keyversion/"+url.PathEscape(e.VersionName), ""); a.status != 200 ||
			len(a.body) < n {
			t.Errorf("version for a name of %d bytes: %d %s", n, a.status, a.body)
		}
	}
}

// TestAuditURLIsCut: the audit log cuts the URL of a user, and cuts it shorter for a request that
// is not authenticated.
func TestAuditURLIsCut(t *testing.T) {
	tr := &trail{}
	addr := start(t, stack{Primary: memory.New(memory.Config{}), Trail: tr})
	sendAs(t, addr, "GET", "/kms/v1/keys/names?x="+strings.Repeat("y", 1000)+"&"+strings.Repeat("doAs=z&", 500), "")
	send(t, addr, "GET", "/kms/v1/key/"+strings.Repeat("n", 20_000)+"/_metadata", "")
	events := tr.all()
	if len(events) != 2 {
		t.Fatalf("%d audit events", len(events))
	}
	for i, most := range []int{600, 9000} {
		if n := len(events[i].URL); n > most || n < 100 {
			t.Errorf("event %d (%s) has an URL of %d bytes, want at most %d", i, events[i].Status, n, most)
		}
	}
}

// TestManyHalfBodies: many connections of a user, each with a part of a body, take no more memory
// than one user's limit.
func TestManyHalfBodies(t *testing.T) {
	limiters := &kmsapi.Limiters{}
	addr := withKey(t, stack{
		Limiters: limiters,
		Limits: kmsapi.Limits{MaxKeys: 1000, MaxBatch: 10_000, MaxBody: 1 << 20, MaxMemory: 8 << 20,
			Slow: kmsapi.Slow{Grace: 3 * time.Second, Rate: 1 << 20}},
		Admission: kmsapi.Admission{Decrypts: 4, Generates: 4, Batches: 4, Management: 4, Wait: 200 * time.Millisecond},
	})
	// 100 times 100 kB would be 10 MB.
	const part = 100 << 10
	head := fmt.Sprintf("POST /kms/v1/key/k/_reencryptbatch?user.name=mallory HTTP/1.1\r\nHost: "+
		"kms\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n[%s", 1<<20, strings.Repeat(" ", part))
	for range 100 {
		sendPart(t, addr, head)
	}
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		f := limiters.Figures()["large"]
		if f.Used > f.Size/2 {
			t.Fatalf("one user has %d of %d bytes", f.Used, f.Size)
		}
		if f.Own > 0 { // some were refused because of the user's limit
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("none was refused: %+v", f)
		}
	}
	long := "[" + strings.Repeat(" ", 500<<10) + "]"
	if a := send(t, addr, "POST", "/kms/v1/key/k/_reencryptbatch", long); a.status != 200 {
		t.Errorf("another user's batch: %d %s", a.status, a.body)
	}
}

// TestLongMaterial: an EDEK that is much longer than a DEK is refused, alone and in a batch.
func TestLongMaterial(t *testing.T) {
	addr := withKey(t, stack{Limits: kmsapi.Limits{MaxKeys: 1000, MaxBatch: 10_000, MaxBody: 1 << 20}})
	const iv = "AAAAAAAAAAAAAAAAAAAAAA"
	for bytes, want := range map[int]int{16: 200, 64: 200, 1024: 200, 1025: 400, 300_000: 400} {
		material := base64.RawURLEncoding.EncodeToString(make([]byte, bytes))
		for what, a := range map[string]answer{
			"decrypt": send(t, addr, "POST", "/kms/v1/keyversion/k@0/_eek?eek_op=decrypt",
				fmt.Sprintf(`{"name":"k","iv":"%s","material":"%s"}`, iv, material)),
			"reencrypt": send(t, addr, "POST", "/kms/v1/keyversion/k@0/_eek?eek_op=reencrypt",
				fmt.Sprintf(`{"name":"k","iv":"%s","material":"%s"}`, iv, material)),
			"batch": send(t, addr, "POST", "/kms/v1/key/k/_reencryptbatch",
				fmt.Sprintf(`[{"versionName":"k@0","iv":"%s","encryptedKeyVersion":{"versionName":"EEK",`+
					`"material":"%s"}}]`, iv, material)),
		} {
			class := ""
			if a.status != 200 {
				class, _ = a.thrown(t)
			}
			if a.status != want || want != 200 && class != "java.lang.IllegalArgumentException" {
				t.Errorf("%s of %d bytes: %d %s, want %d", what, bytes, a.status, class, want)
			}
		}
	}
}
