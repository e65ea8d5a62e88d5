package pkcs11

import (
	"context"
	"sync"
	"testing"
	"time"

	p11 "github.com/miekg/pkcs11"

	"claviger/internal/softhsm/softhsmtest"
)

// benchToken opens a new token with one key that was used before.
func benchToken(b *testing.B) (tok *Token, m *Meter, id []byte, label string) {
	b.Helper()
	c := config(softhsmtest.New(b))
	m = new(Meter)
	c.Wrap = m.Wrap
	tok, err := Open(b.Context(), c)
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		if err := tok.Close(); err != nil {
			b.Error(err)
		}
	})
	id, label = []byte("bench"), "bench@0"
	if err := tok.GenerateKey(b.Context(), id, label, 256); err != nil {
		b.Fatal(err)
	}
	if err := tok.EncryptBlocks(b.Context(), id, label, nil, make([]byte, blockSize)); err != nil {
		b.Fatal(err)
	}
	m.Reset()
	return tok, m, id, label
}

// BenchmarkOneBlock encrypts one block for one caller. It measures the cost of the pool and of gathering, beside
// SoftHSM's own work.
func BenchmarkOneBlock(b *testing.B) {
	tok, _, id, label := benchToken(b)
	blocks := make([]byte, blockSize)
	b.ReportAllocs()
	for b.Loop() {
		if err := tok.EncryptBlocks(b.Context(), id, label, nil, blocks); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkBoundary makes the same C calls without this package.
func BenchmarkBoundary(b *testing.B) {
	tok, _, id, label := benchToken(b)
	blocks := make([]byte, blockSize)
	err := tok.do(b.Context(), "bench", func(l *login, s p11.SessionHandle) error {
		object, err := tok.handle(l, s, keyName{string(id), label})
		if err != nil {
			return err
		}
		for b.Loop() {
			if _, err := tok.mechanismEncrypt(s, tok.mechanisms[0], keyUse{}, object, blocks); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		b.Fatal(err)
	}
}

// BenchmarkBatch encrypts 2,000 blocks in one call: 1,000 EDEKs with DEKs of 256 bits.
func BenchmarkBatch(b *testing.B) {
	tok, m, id, label := benchToken(b)
	blocks := make([]byte, 2000*blockSize)
	b.SetBytes(int64(len(blocks)))
	b.ReportAllocs()
	for b.Loop() {
		if err := tok.EncryptBlocks(b.Context(), id, label, nil, blocks); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(m.Count("Encrypt"))/float64(b.N), "C_Encrypt/op")
}

// BenchmarkGathered runs 16 callers of one key, each with the two blocks of one EDEK, on SoftHSM as it is and with 5 ms
// for each C call, as with a network HSM. C_Encrypt/op below one shows what gathering saves.
func BenchmarkGathered(b *testing.B) {
	for _, c := range []struct {
		name    string
		latency time.Duration
	}{{"local", 0}, {"5ms", 5 * time.Millisecond}} {
		b.Run(c.name, func(b *testing.B) {
			tok, m, id, label := benchToken(b)
			m.SetLatency(c.latency)
			const callers = 16
			work := make(chan struct{})
			ctx, cancel := context.WithCancel(b.Context())
			defer cancel()
			var wg sync.WaitGroup
			for range callers {
				wg.Go(func() {
					blocks := make([]byte, 2*blockSize)
					for range work {
						if err := tok.EncryptBlocks(ctx, id, label, nil, blocks); err != nil {
							b.Error(err)
						}
					}
				})
			}
			for b.Loop() {
				work <- struct{}{}
			}
			close(work)
			wg.Wait()
			m.SetLatency(0)
			b.ReportMetric(float64(m.Count("Encrypt"))/float64(b.N), "C_Encrypt/op")
		})
	}
}
