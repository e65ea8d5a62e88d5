package bench

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"claviger/bench"
	"claviger/internal/softhsm"
	"claviger/pkcs11/worker"
	"claviger/test/hadoop"
)

// clients is the number of connections of BenchmarkHTTP.
const clients = 16

// batch is the size of a re-encryption request of a NameNode.
const batch = 1000

// The environment variable that makes this binary a server, as a child process. A server with an empty handler speaks
// TLS if secureEnv is set.
const roleEnv, roleEmpty, secureEnv = "CLAVIGER_BENCH_ROLE", "empty", "CLAVIGER_BENCH_TLS"

func TestMain(m *testing.M) {
	worker.Main(os.Args) // does not return in a process that a server has started for an HSM's library
	var err error
	switch os.Getenv(roleEnv) {
	case roleEmpty:
		err = serveEmpty()
	case roleProfiled:
		err = serveProfiled()
	default:
		os.Exit(m.Run())
	}
	panic(err)
}

// serveEmpty reads the body of a request, and answers with as many bytes as a decrypt.
func serveEmpty() error {
	l, err := net.Listen("tcp", "127.0.0.1:0") //nolint:noctx // a child's whole life
	if err != nil {
		return err
	}
	body := []byte(`{"material":"iUSaK8pgqrlk4oenxBS8jQ","name":"k1","versionName":"EK"}`)
	h := func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body) // an incomplete body is the fault of its sender
		w.Header().Set("Content-Type", "application/json")
		_, _ = w.Write(body)
	}
	s := &http.Server{Handler: http.HandlerFunc(h), ReadHeaderTimeout: time.Minute}
	if os.Getenv(secureEnv) == "" {
		fmt.Println("http://" + l.Addr().String() + "/kms")
		return s.Serve(l)
	}
	cert, err := selfSigned()
	if err != nil {
		return err
	}
	s.TLSConfig = &tls.Config{Certificates: []tls.Certificate{cert}, NextProtos: []string{"http/1.1"}}
	fmt.Println("https://" + l.Addr().String() + "/kms")
	return s.ServeTLS(l, "", "")
}

// selfSigned makes a certificate with an RSA-2048 key, as most sites have.
func selfSigned() (tls.Certificate, error) {
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		return tls.Certificate{}, err
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, err
}

// target is a server under load.
type target struct {
	url       string          // base
	pids      bench.Processes // one, or two with a worker
	client    *http.Client
	transport *http.Transport // of client
	cookie    string
	token     string // a delegation token, which replaces the cookie if it is not ""
	started   time.Duration
}

func newTarget(b testing.TB, base string, pid int, started time.Duration) *target {
	b.Helper()
	tr := &http.Transport{MaxIdleConnsPerHost: slices.Max(connectionCounts), TLSClientConfig: anyCertificate()}
	t := &target{url: base, pids: bench.ProcessesOf(pid), started: started, transport: tr,
		client: &http.Client{Timeout: time.Minute, Transport: tr}}
	b.Cleanup(t.client.CloseIdleConnections)
	res, err := t.client.Get(base + "/v1/keys/names?user.name=bench") //nolint:noctx // the client has a timeout
	if err != nil {
		b.Fatal(err)
	}
	defer res.Body.Close()
	for _, c := range res.Header.Values("Set-Cookie") {
		t.cookie, _, _ = strings.Cut(c, ";")
	}
	return t
}

// do sends one request and returns the answer's body.
func (t *target) do(method, path string, body []byte) ([]byte, error) {
	req, err := http.NewRequestWithContext(context.Background(), method, t.url+path, bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	req.Header.Set("Content-Type", "application/json")
	if t.token != "" {
		req.URL.RawQuery += "&delegation=" + t.token
	} else {
		req.Header.Set("Cookie", t.cookie)
	}
	res, err := t.client.Do(req)
	if err != nil {
		return nil, err
	}
	defer res.Body.Close()
	answer, err := io.ReadAll(res.Body)
	if err == nil && res.StatusCode/100 != 2 {
		err = fmt.Errorf("%s %s: %s: %s", method, path, res.Status, answer)
	}
	return answer, err
}

// cpu returns the processor time of the server's processes until now. The system counts hundredths of a second.
func (t *target) cpu(b testing.TB) time.Duration {
	b.Helper()
	sum, ok := t.pids.CPU()
	if !ok {
		b.Fatalf("no processor time of the processes %v", t.pids)
	}
	return sum
}

// rss returns the sum of the maximum memory of the server's processes, in MiB.
func (t *target) rss(b *testing.B) (sum float64) {
	b.Helper()
	for _, pid := range t.pids {
		status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
		if err != nil {
			b.Fatal(err)
		}
		before := sum
		for line := range strings.Lines(string(status)) {
			if v, ok := strings.CutPrefix(line, "VmHWM:"); ok {
				kib, err := strconv.Atoi(strings.Fields(v)[0])
				if err != nil {
					b.Fatal(err)
				}
				sum += float64(kib) / 1024
			}
		}
		if sum == before {
			b.Fatal("no VmHWM of process ", pid)
		}
	}
	return sum
}

// load sends one request b.N times over all connections, and reports the work per CPU-second.
func (t *target) load(b *testing.B, unit, path string, body []byte) {
	b.Helper()
	before := t.cpu(b)
	b.ResetTimer()
	t.send(b, http.MethodPost, path, body, b.N, clients)
	b.StopTimer()
	if used := t.cpu(b) - before; used > 0 {
		b.ReportMetric(float64(b.N)/used.Seconds(), unit+"/cpu-s")
	}
	b.ReportMetric(t.rss(b), "MiB")
	b.ReportMetric(float64(t.started.Microseconds())/1000, "start-ms")
}

// send sends one request n times over that many connections.
func (t *target) send(b testing.TB, method, path string, body []byte, n, connections int) {
	b.Helper()
	var left atomic.Int64
	left.Store(int64(n))
	errs := make(chan error, connections)
	var wg sync.WaitGroup
	for range connections {
		wg.Go(func() {
			for left.Add(-1) >= 0 {
				if _, err := t.do(method, path, body); err != nil {
					errs <- err
					return
				}
			}
		})
	}
	wg.Wait()
	select {
	case err := <-errs:
		b.Fatal(err)
	default:
	}
}

// requests makes a key with two versions at t, and returns a decrypt of an EDEK of the first version, and a batch
// of such EDEKs.
func (t *target) requests(b testing.TB) (decryptPath string, decryptBody []byte, batchPath string, batchBody []byte) {
	b.Helper()
	must := func(method, path string, body string) []byte {
		answer, err := t.do(method, path, []byte(body))
		if err != nil {
			b.Fatal(err)
		}
		return answer
	}
	key := fmt.Sprintf("bench%d", time.Now().UnixNano())
	must(http.MethodPost, "/v1/keys", `{"name":"`+key+`","length":256}`)
	batchBody = must(http.MethodGet, fmt.Sprintf("/v1/key/%s/_eek?eek_op=generate&num_keys=%d", key, batch), "")
	must(http.MethodPost, "/v1/key/"+key, "{}")
	must(http.MethodPost, "/v1/key/"+key+"/_invalidatecache", "")
	var edeks []struct {
		VersionName         string `json:"versionName"`
		IV                  string `json:"iv"`
		EncryptedKeyVersion struct {
			Material string `json:"material"`
		} `json:"encryptedKeyVersion"`
	}
	if err := json.Unmarshal(batchBody, &edeks); err != nil || len(edeks) != batch {
		b.Fatalf("%d EDEKs, %v", len(edeks), err)
	}
	e := edeks[0]
	return "/v1/keyversion/" + url.QueryEscape(e.VersionName) + "/_eek?eek_op=decrypt",
		fmt.Appendf(nil, `{"name":%q,"iv":%q,"material":%q}`, key, e.IV, e.EncryptedKeyVersion.Material),
		"/v1/key/" + key + "/_reencryptbatch", batchBody
}

// startEmpty starts the server that does nothing.
func startEmpty(b testing.TB, secure bool) *target {
	b.Helper()
	var env []string
	if secure {
		env = append(env, secureEnv+"=yes")
	}
	cmd := child(b, roleEmpty, env...)
	out, err := cmd.StdoutPipe()
	if err != nil {
		b.Fatal(err)
	}
	began := time.Now()
	p := hadoop.Start(b, "empty", cmd)
	var line [256]byte
	n, err := out.Read(line[:])
	if err != nil {
		b.Fatal(err)
	}
	return newTarget(b, strings.TrimSpace(string(line[:n])), p.PID(), time.Since(began))
}

// options writes the configuration of our server, with a jceks:// keystore, or with a SoftHSM token whose keystore file
// ends with the lines.
func options(t testing.TB, onToken bool, lines []string, ssl hadoop.Conf) hadoop.ClavigerOptions {
	t.Helper()
	dir := t.TempDir()
	site := hadoop.Conf{"hadoop.kms.http.host": "127.0.0.1",
		"hadoop.kms.key.provider.uri": "jceks://file@" + filepath.Join(dir, "kms.keystore"),
		"claviger.metastore.uri":      "sqlite://" + filepath.Join(dir, "claviger.db"),
		"claviger.audit.file":         filepath.Join(dir, "kms-audit.log")}
	var env []string
	if onToken {
		token, err := softhsm.Create(filepath.Join(dir, "token"), "bench")
		if err != nil {
			t.Fatal(err)
		}
		env = token.Env
		file := filepath.Join(dir, "luna.keystore")
		hadoop.Claviger(t, env, "hsm", "init", "--module", token.Module, "--token", token.Label, "--pin-file",
			token.PINFile, "--profile", "softhsm", file)
		appendLines(t, file, lines)
		site["hadoop.kms.key.provider.uri"] = "cloudera.hsmkp://file@" + file
	}
	if ssl != nil {
		site["hadoop.kms.ssl.enabled"] = "true"
		ssl.Write(t, filepath.Join(dir, "ssl-server.xml"))
	}
	site.Write(t, filepath.Join(dir, "kms-site.xml"))
	hadoop.OpenACLs().Write(t, filepath.Join(dir, "kms-acls.xml"))
	return hadoop.ClavigerOptions{Conf: dir, Env: env}
}

// startClaviger starts our server with a jceks:// keystore, or, if lines are given, with a SoftHSM token.
func startClaviger(b *testing.B, lines ...string) *target {
	b.Helper()
	o := options(b, len(lines) > 0, lines, nil)
	hadoop.Binary(b) // its build does not count as part of the start
	hadoop.StartClaviger(b, o).Stop()
	began := time.Now() // of a start with an existing store
	k := hadoop.StartClaviger(b, o)
	return newTarget(b, k.URL, k.PID(), time.Since(began))
}

// The warm-ups.
const (
	warmRequests = 20_000
	warmBatches  = 100
)

func BenchmarkHTTP(b *testing.B) {
	b.Run("empty-handler", func(b *testing.B) {
		t := startEmpty(b, false)
		const path, body = "/v1/keyversion/k%400/_eek?eek_op=decrypt",
			`{"name":"k","iv":"1xOX0dBLnp12it64cV19DA","material":"zVF9vVNCb9oR41-l514RPQ"}`
		t.send(b, http.MethodPost, path, []byte(body), warmRequests, clients)
		b.Run("request", func(b *testing.B) { t.load(b, "requests", path, []byte(body)) })
	})
	for _, s := range []struct {
		name  string
		start func(*testing.B) *target
	}{
		{"claviger-hsm", func(b *testing.B) *target { return startClaviger(b, inProcess) }},
		{"claviger-jceks", func(b *testing.B) *target { return startClaviger(b) }},
	} {
		b.Run(s.name, func(b *testing.B) {
			t := s.start(b) // once for both loads: a benchmark that has sub-benchmarks runs once
			decryptPath, decrypt, batchPath, batch := t.requests(b)
			t.send(b, http.MethodPost, decryptPath, decrypt, warmRequests, clients)
			b.Run("decrypt", func(b *testing.B) { t.load(b, "decrypts", decryptPath, decrypt) })
			t.send(b, http.MethodPost, batchPath, batch, warmBatches, clients)
			b.Run("batch-1000", func(b *testing.B) { t.load(b, "batches", batchPath, batch) })
		})
	}
}
