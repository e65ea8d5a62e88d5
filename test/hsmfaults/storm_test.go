package hsmfaults

import (
	"context"
	"math/rand/v2"
	"net/http"
	"os"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	p11 "github.com/miekg/pkcs11"

	"claviger/internal/faultmodule"
)

// soaks makes the long tests of this package ten times as long: make soak.
var soaks = os.Getenv("CLAVIGER_SOAK") != ""

// long returns n, or ten times n for make soak.
func long[T int | time.Duration](n T) T {
	if soaks {
		return 10 * n
	}
	return n
}

// pause is the time between two requests of a client of a storm: without it most of the processor time of make test
// would go to requests that show nothing new.
const pause = 20 * time.Millisecond

// randomFault makes one fault at random, or ends all faults.
func (l *faultyKMS) randomFault(r *rand.Rand, inWorker bool) {
	all := codes()
	functions := []faultmodule.Function{faultmodule.EncryptInit, faultmodule.Encrypt, faultmodule.FindObjectsInit,
		faultmodule.FindObjects, faultmodule.OpenSession, faultmodule.GetSessionInfo, faultmodule.GenerateKey,
		faultmodule.GetAttributeValue, faultmodule.GenerateRandom, faultmodule.CloseSession}
	order := faultmodule.Order{Action: faultmodule.Fail, Value: all[r.IntN(len(all))], Times: 1 + r.IntN(5)}
	f := functions[r.IntN(len(functions))]
	switch r.IntN(16) {
	case 0:
		l.StaleHandles()
	case 1:
		l.Renumber()
	case 2:
		l.LogOut()
	case 3:
		l.CloseSessions()
	case 4:
		l.LimitSessions(1 + r.IntN(5))
	case 5:
		l.LimitData(16 + r.IntN(1000))
	case 6:
		l.RefuseMechanism(p11.CKM_AES_ECB)
	case 7:
		l.Delay(f, time.Duration(r.IntN(20))*time.Millisecond)
	case 8:
		order.Action = faultmodule.FailAfter
		l.Order(f, order)
	case 9:
		if inWorker {
			l.Order(f, faultmodule.Order{Action: []faultmodule.Action{faultmodule.Abort,
				faultmodule.Segfault}[r.IntN(2)]})
		}
	case 10, 11:
		l.Heal()
	case 12:
		// No result about the PIN: a PIN that was refused is not tried again until a person corrects it.
		l.Order(faultmodule.Login, faultmodule.Order{Action: faultmodule.Fail, Value: p11.CKR_DEVICE_ERROR})
	default:
		l.Order(f, order)
	}
}

// TestStorm: faults at random under load, of the library in this process.
func TestStorm(t *testing.T) { storm(t, false, long(10*time.Second)) }

// TestStormOfAWorker: faults at random under load, of the library in a process of its own, which also crashes.
func TestStormOfAWorker(t *testing.T) { storm(t, true, long(50*time.Second)) }

// storm checks that no answer is wrong, that each re-encrypted EDEK can be decrypted, that all operations work
// afterwards, and that no step is left unfinished.
func storm(t *testing.T, inWorker bool, length time.Duration) {
	t.Helper()
	l := newFaultyKMS(t, inWorker)
	seed := uint64(1)
	if soaks {
		seed = uint64(time.Now().UnixNano()) //nolint:gosec // not negative
	}
	r := rand.New(rand.NewPCG(seed, 0)) //nolint:gosec // no secret
	t.Logf("seed %d", seed)
	ctx, cancel := context.WithTimeout(t.Context(), length)
	defer cancel()
	var clients sync.WaitGroup
	var mu sync.Mutex
	var fresh []edek
	var served, refused, failed atomic.Int64
	for i := range 6 {
		clients.Go(func() {
			for ctx.Err() == nil {
				o := operations[i%len(operations)]
				status, err := o.run(t.Context(), l)
				switch {
				case err != nil:
					t.Errorf("%s: %d, %v", o.name, status, err)
				case status < 300:
					served.Add(1)
				case status == http.StatusServiceUnavailable:
					refused.Add(1)
				default:
					failed.Add(1)
				}
				time.Sleep(pause)
			}
		})
	}
	clients.Go(func() {
		for ctx.Err() == nil {
			status, e, err := reencrypted(t.Context(), l)
			if err != nil {
				t.Error(err)
			}
			mu.Lock()
			if status == http.StatusOK && len(fresh) < 2000 {
				fresh = append(fresh, e)
			}
			mu.Unlock()
			time.Sleep(pause)
		}
	})
	logins := l.Calls(faultmodule.Login)
	for ctx.Err() == nil {
		l.randomFault(r, inWorker)
		time.Sleep(time.Duration(20+r.IntN(60)) * time.Millisecond)
	}
	clients.Wait()
	l.Heal()
	for _, o := range operations {
		l.recovers(t, o)
	}
	for _, e := range fresh {
		if err := l.opensTo(t.Context(), e); err != nil {
			t.Fatal(err)
		}
	}
	logins = l.Calls(faultmodule.Login) - logins
	t.Logf("%d served, %d answered 503, %d otherwise; %d re-encrypted EDEKs open; %d logins",
		served.Load(), refused.Load(), failed.Load(), len(fresh), logins)
	if served.Load() == 0 || len(fresh) == 0 {
		t.Error("nothing was served")
	}
	if limit := 20 + int(12*length/time.Second); logins > limit {
		t.Errorf("%d logins in %v, want at most %d", logins, length, limit)
	}
	l.end(t)
}
