package calls

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"sync"
	"testing"
	"time"

	p11 "github.com/miekg/pkcs11"

	"claviger"
	"claviger/internal/softhsm/softhsmtest"
	"claviger/keyring"
	"claviger/pkcs11"
	"claviger/provider"
)

// remembering is a library that remembers the last session and key of an encryption.
type remembering struct {
	pkcs11.Boundary
	mu      sync.Mutex
	session p11.SessionHandle
	key     p11.ObjectHandle
}

func (r *remembering) Encrypt(s p11.SessionHandle, m *p11.Mechanism, key p11.ObjectHandle, in []byte) ([]byte, error) {
	r.mu.Lock()
	r.session, r.key = s, key
	r.mu.Unlock()
	return r.Boundary.Encrypt(s, m, key, in)
}

// counterMode lets the HSM decrypt an EDEK by its own counter mode, with the session and the key of the last
// encryption.
func (r *remembering) counterMode(t *testing.T, e claviger.EDEK) []byte {
	t.Helper()
	params := make([]byte, 8, 8+claviger.IVSize) // CK_AES_CTR_PARAMS: the number of the counter's bits, and its start
	binary.NativeEndian.PutUint64(params, 8*claviger.IVSize)
	for _, b := range e.IV {
		params = append(params, b^0xff)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	dek, err := r.Boundary.Encrypt(r.session, p11.NewMechanism(p11.CKM_AES_CTR, params), r.key, e.Material)
	if err != nil {
		t.Fatal(err)
	}
	return dek
}

// TestImplied: any number of EDEKs costs one call of C_Encrypt, which makes the lease. For keys of each length, each of
// these EDEKs has its own DEK. The HSM's counter mode decrypts the EDEK to the same DEK.
func TestImplied(t *testing.T) {
	library, meter := new(remembering), new(pkcs11.Meter)
	ring := newRingWith(t, softhsmtest.New(t), func(b pkcs11.Boundary) pkcs11.Boundary {
		library.Boundary = meter.Wrap(b)
		return library
	}, func(cfg *keyring.Config) { cfg.ImpliedLease = time.Hour })
	const n = 200
	deks := map[string]bool{}
	for _, bits := range []int{128, 192, 256} {
		key := fmt.Sprint("k", bits)
		if _, err := ring.Create(t.Context(), alice, provider.Spec{Name: key, BitLength: bits}); err != nil {
			t.Fatal(err)
		}
		meter.Reset()
		var edeks []claviger.EDEK
		for range n / 10 {
			es, err := ring.Generate(t.Context(), alice, key, 10)
			if err != nil {
				t.Fatal(err)
			}
			edeks = append(edeks, es...)
		}
		if calls := meter.Count("Encrypt"); calls != 1 {
			t.Errorf("%d calls of C_Encrypt for %d EDEKs", calls, n)
		}
		for i, e := range edeks {
			dek, err := ring.Decrypt(t.Context(), alice, key, true, e)
			if err != nil || len(dek) != bits/8 {
				t.Fatalf("a DEK of %d bytes for a key of %d bits, %v", len(dek), bits, err)
			}
			if !bytes.Equal(dek, library.counterMode(t, e)) {
				t.Fatalf("EDEK %d has another DEK by the HSM's counter mode", i)
			}
			deks[string(dek)] = true
		}
	}
	if len(deks) != 3*n {
		t.Errorf("%d different DEKs, want %d", len(deks), 3*n)
	}
}

// BenchmarkGenerate350 makes as many EDEKs as a NameNode requests when its queue is low, in both ways. The queue of the
// service holds one EDEK only.
func BenchmarkGenerate350(b *testing.B) {
	const n = 350
	for mode, lease := range map[string]time.Duration{"encrypted": 0, "implied": time.Minute} {
		for _, latency := range []time.Duration{0, 30 * time.Millisecond} {
			b.Run(fmt.Sprintf("%s/%v", mode, latency), func(b *testing.B) {
				meter := new(pkcs11.Meter)
				ring := newRingWith(b, softhsmtest.New(b), meter.Wrap, func(cfg *keyring.Config) {
					cfg.ImpliedLease = lease
				})
				meter.SetLatency(latency)
				b.ReportAllocs()
				for b.Loop() {
					if es, err := ring.Generate(b.Context(), alice, "k", n); err != nil || len(es) != n {
						b.Fatal(len(es), err)
					}
				}
				b.ReportMetric(n*float64(b.N)/b.Elapsed().Seconds(), "EDEKs/s")
			})
		}
	}
}
