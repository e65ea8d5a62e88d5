package tlskey

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"net"
	"syscall"
	"testing"
	"time"

	"claviger/internal/certtest"
	"claviger/internal/softhsm/softhsmtest"
	"claviger/keystore"
	"claviger/pkcs11"
	"claviger/tlskey/tlskeytest"
)

// BenchmarkConnections measures client and server together at new connections by TLS 1.3: with a key in the memory of
// the server, in SoftHSM in its process, and in SoftHSM in a worker.
func BenchmarkConnections(b *testing.B) {
	for _, kind := range []pkcs11.SigningKind{pkcs11.RSA2048, pkcs11.P256} {
		b.Run(string(kind)+"/file", func(b *testing.B) {
			var key crypto.Signer
			var err error
			if kind == pkcs11.P256 {
				key, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
			} else {
				key, err = rsa.GenerateKey(rand.Reader, 2048)
			}
			if err != nil {
				b.Fatal(err)
			}
			ca := certtest.New(b, b.TempDir())
			chains, err := keystore.Chains(ca.IssueFor(key.Public(), "kms", "127.0.0.1"))
			if err != nil {
				b.Fatal(err)
			}
			c := certificate(chains[0], nil)
			c.PrivateKey = key
			connections(b, ca, []tls.Certificate{c})
		})
		for _, mode := range []pkcs11.WorkerMode{pkcs11.WorkerNo, pkcs11.WorkerYes} {
			b.Run(string(kind)+"/HSM, worker "+string(mode), func(b *testing.B) {
				ca := certtest.New(b, b.TempDir())
				uri, public := tlskeytest.New(b, softhsmtest.New(b), "", kind, "kms")
				k, err := Open(b.Context(), Config{URIs: []string{uri}, Worker: mode,
					Certificates: ca.IssueFor(public, "kms", "127.0.0.1")})
				if err != nil {
					b.Fatal(err)
				}
				defer k.Close() //nolint:errcheck // a benchmark
				list, _, err := k.Certificates()
				if err != nil {
					b.Fatal(err)
				}
				connections(b, ca, list)
			})
		}
	}
}

// connections measures new TLS connections in memory.
func connections(b *testing.B, ca *certtest.Authority, list []tls.Certificate) {
	b.Helper()
	server := &tls.Config{Certificates: list, SessionTicketsDisabled: true}
	client := &tls.Config{RootCAs: ca.Pool(), ServerName: "127.0.0.1"}
	before := cpuTime(b)
	b.ResetTimer()
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			near, far := net.Pipe()
			ended := make(chan error, 1)
			go func() { ended <- tls.Server(far, server).Handshake() }()
			if err := tls.Client(near, client).Handshake(); err != nil {
				b.Error(err)
			}
			if err := <-ended; err != nil {
				b.Error(err)
			}
			_, _ = near.Close(), far.Close()
		}
	})
	b.ReportMetric(float64((cpuTime(b)-before).Microseconds())/float64(b.N), "CPU-µs/op")
}

// cpuTime returns the CPU time of this process: of client and server, but not of a worker.
func cpuTime(b *testing.B) time.Duration {
	b.Helper()
	var r syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &r); err != nil {
		b.Fatal(err)
	}
	return time.Duration(r.Utime.Nano() + r.Stime.Nano())
}
