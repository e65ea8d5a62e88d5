package bench

import (
	"fmt"
	"net/http"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"claviger/internal/faultmodule"
	"claviger/internal/softhsm"
	"claviger/test/hadoop"
)

// startDelayed starts our server with a token whose calls have an extra delay. The test sets the delay. The profile
// is the profile of a network HSM.
func startDelayed(b *testing.B) (*target, *faultmodule.Module) {
	b.Helper()
	dir := b.TempDir()
	token, err := softhsm.Create(filepath.Join(dir, "token"), "bench")
	if err != nil {
		b.Fatal(err)
	}
	module := faultmodule.New(b, token.Module)
	file := filepath.Join(dir, "luna.keystore")
	hadoop.Claviger(b, token.Env, "hsm", "init", "--module", module.Path, "--token", token.Label, "--pin-file",
		token.PINFile, "--profile", "luna", file)
	hadoop.Conf{"hadoop.kms.http.host": "127.0.0.1",
		"hadoop.kms.key.provider.uri": "cloudera.hsmkp://file@" + file,
		"claviger.metastore.uri":      "sqlite://" + filepath.Join(dir, "claviger.db"),
		"claviger.audit.file":         filepath.Join(dir, "kms-audit.log"),
	}.Write(b, filepath.Join(dir, "kms-site.xml"))
	hadoop.OpenACLs().Write(b, filepath.Join(dir, "kms-acls.xml"))
	k := hadoop.StartClaviger(b, hadoop.ClavigerOptions{Conf: dir, Env: token.Env})
	return newTarget(b, k.URL, k.PID(), 0), module
}

// latencies sends one request n times over some connections, and returns how long each took, in order.
func (t *target) latencies(b *testing.B, connections int, path string, body []byte, n int) []time.Duration {
	b.Helper()
	took := make([]time.Duration, n)
	var next atomic.Int64
	var failed atomic.Pointer[error]
	var wg sync.WaitGroup
	for range connections {
		wg.Go(func() {
			for at := next.Add(1) - 1; at < int64(n); at = next.Add(1) - 1 {
				from := time.Now()
				if _, err := t.do(http.MethodPost, path, body); err != nil {
					failed.Store(&err)
					return
				}
				took[at] = time.Since(from)
			}
		})
	}
	wg.Wait()
	if err := failed.Load(); err != nil {
		b.Fatal(*err)
	}
	slices.Sort(took)
	return took
}

// BenchmarkRoundTrip measures what a user sees with an HSM that needs some time for each call of its library, beside
// the work itself. An encryption is two calls, C_EncryptInit and C_Encrypt.
func BenchmarkRoundTrip(b *testing.B) {
	t, module := startDelayed(b)
	decryptPath, decrypt, batchPath, reencrypt := t.requests(b)
	t.send(b, http.MethodPost, decryptPath, decrypt, warmRequests, clients)
	t.send(b, http.MethodPost, batchPath, reencrypt, warmBatches, clients)
	for _, ms := range []int{0, 1, 2, 5, 10, 20, 30, 50, 100} {
		module.SetLatency(time.Duration(ms) * time.Millisecond)
		t.latencies(b, manyClients, decryptPath, decrypt, 20*manyClients) // the server sees the new latency
		b.Run(fmt.Sprintf("%dms/decrypt", ms), func(b *testing.B) {
			took := t.latencies(b, manyClients, decryptPath, decrypt, b.N)
			b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "decrypts/s")
			b.ReportMetric(float64(took[len(took)/2].Microseconds())/1000, "p50-ms")
			b.ReportMetric(float64(took[len(took)*99/100].Microseconds())/1000, "p99-ms")
		})
		b.Run(fmt.Sprintf("%dms/reencrypt", ms), func(b *testing.B) {
			for b.Loop() {
				if _, err := t.do(http.MethodPost, batchPath, reencrypt); err != nil {
					b.Fatal(err)
				}
			}
			b.ReportMetric(float64(batch*b.N)/b.Elapsed().Seconds(), "EDEKs/s")
		})
	}
}
