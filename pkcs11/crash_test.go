package pkcs11

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	p11 "github.com/miekg/pkcs11"

	"claviger"
	"claviger/internal/faultmodule"
	"claviger/internal/logtest"
	"claviger/internal/processtest"
	"claviger/pkcs11/worker"
)

// inWorker has the library run in a worker.
func inWorker(c *Config) { c.Worker = WorkerYes }

// TestCrashes: the library ends its process, or hangs for ever, in one call. The call is made again in a new process,
// and the caller gets the right answer. No process is left over.
func TestCrashes(t *testing.T) {
	reasons := map[string]string{"abort": "signal: aborted", "segfault": "signal: segmentation fault", "hang": "C_"}
	for _, f := range []faultmodule.Function{faultmodule.EncryptInit, faultmodule.Encrypt, faultmodule.GenerateRandom} {
		for name, action := range map[string]faultmodule.Action{"abort": faultmodule.Abort,
			"segfault": faultmodule.Segfault, "hang": faultmodule.Hang} {
			t.Run(fmt.Sprint(f, name), func(t *testing.T) {
				var log logtest.Buffer
				m, tok, keys := openFaulty(t, func(c *Config) {
					c.Worker, c.CallLimit, c.Log = WorkerYes, time.Second, slog.New(slog.NewTextHandler(&log, nil))
				})
				m.Order(f, faultmodule.Order{Action: action})
				before := m.Calls(faultmodule.Login)
				within(t, 20*time.Second, "the call", func() {
					if f == faultmodule.GenerateRandom {
						if err := tok.Ping(t.Context()); err != nil {
							t.Error(err)
						}
					}
					for _, k := range keys {
						if err := k.encrypts(tok, t, 2); err != nil {
							t.Error(err)
						}
					}
				})
				if n := m.Calls(faultmodule.Login) - before; n != 1 {
					t.Errorf("%d logins, want 1", n)
				}
				if n := len(processtest.Children(t, worker.Command)); n != 1 {
					t.Errorf("%d workers run, want 1", n)
				}
				if !strings.Contains(log.String(), "the process with the HSM's library has ended: "+reasons[name]) {
					t.Errorf("the log does not say why: %s", &log)
				}
			})
		}
	}
}

// TestWorkerKilledUnderLoad: the worker is killed and stopped many times while callers use it. A caller that repeats a
// failed call, as Hadoop's client does, gets the right answer. Nothing is left over.
func TestWorkerKilledUnderLoad(t *testing.T) {
	_, tok, keys := openFaulty(t, inWorker)
	var wg sync.WaitGroup
	var stop atomic.Bool
	var served, failed atomic.Int64
	for i := range 8 {
		wg.Go(func() {
			for !stop.Load() {
				err := errors.New("not tried")
				for range 10 {
					if err = keys[i%2].encrypts(tok, t, 3); err == nil {
						break
					}
					failed.Add(1)
					if !claviger.Is(err, claviger.Unavailable) {
						break
					}
				}
				if err != nil {
					t.Error(err)
				}
				served.Add(1)
			}
		})
	}
	signals := []syscall.Signal{syscall.SIGKILL, syscall.SIGSEGV, syscall.SIGSTOP}
	for i := range 6 {
		for _, pid := range processtest.Children(t, worker.Command) {
			if err := syscall.Kill(pid, signals[i%len(signals)]); err != nil {
				t.Error(err)
			}
		}
		before := served.Load() // at most 8 of the old worker's results come after this
		eventually(t, func() error {
			if served.Load() < before+20 {
				return errors.New("callers are not served")
			}
			return nil
		})
	}
	stop.Store(true)
	wg.Wait()
	t.Logf("%d served, %d tries failed", served.Load(), failed.Load())
	if n := len(processtest.Children(t, worker.Command)); n != 1 {
		t.Errorf("%d workers run, want 1", n)
	}
}

// TestSignalsOfTheGroup: the signals that stop a server do not end its worker, which the server still needs.
func TestSignalsOfTheGroup(t *testing.T) {
	m, tok, keys := openFaulty(t, inWorker)
	before := m.Calls(faultmodule.Login)
	for _, s := range []syscall.Signal{syscall.SIGTERM, syscall.SIGINT, syscall.SIGHUP, syscall.SIGQUIT} {
		for _, pid := range processtest.Children(t, worker.Command) {
			if err := syscall.Kill(pid, s); err != nil {
				t.Error(err)
			}
		}
		if err := keys[0].encrypts(tok, t, 1); err != nil {
			t.Errorf("after %v: %v", s, err)
		}
	}
	if n := m.Calls(faultmodule.Login) - before; n > 0 {
		t.Errorf("%d logins: the worker was started again", n)
	}
}

// TestWorkerEndsWithToken: Close ends the worker, also while a call hangs in the library.
func TestWorkerEndsWithToken(t *testing.T) {
	m, tok, _ := openFaulty(t, inWorker)
	m.Order(faultmodule.GenerateRandom, faultmodule.Order{Action: faultmodule.Hang})
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if err := tok.Ping(ctx); !claviger.Is(err, claviger.Unavailable) {
		t.Error(err)
	}
	tok.closeTimeout = 200 * time.Millisecond
	within(t, 20*time.Second, "Close", func() {
		if err := tok.Close(); err != nil {
			t.Log(err)
		}
	})
	if n := len(processtest.Children(t, worker.Command)); n != 0 {
		t.Errorf("%d workers run", n)
	}
}

// TestCrashAtStart: a library that ends its process when it is initialised is an error of Open, which may be tried
// again.
func TestCrashAtStart(t *testing.T) {
	m, tok, _ := openFaulty(t, inWorker)
	c := tok.cfg
	if err := tok.Close(); err != nil {
		t.Fatal(err)
	}
	m.Order(faultmodule.Initialize, faultmodule.Order{Action: faultmodule.Abort})
	_, err := Open(t.Context(), c)
	var gone worker.GoneError
	if !errors.As(err, &gone) || !claviger.IsUnreachable(err) || !strings.Contains(err.Error(), "signal: aborted") {
		t.Errorf("%v", err)
	}
	again, err := Open(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	if err := again.Close(); err != nil {
		t.Error(err)
	}
}

// TestHangAtStart: a library that hangs for ever while a worker loads or initialises it, or logs in, delays Open no
// longer than Open's context. The worker ends, and Open may be tried again.
func TestHangAtStart(t *testing.T) {
	m, tok, _ := openFaulty(t, inWorker)
	c := tok.cfg
	if err := tok.Close(); err != nil {
		t.Fatal(err)
	}
	for _, f := range []faultmodule.Function{faultmodule.Initialize, faultmodule.GetSlotList, faultmodule.OpenSession,
		faultmodule.Login} {
		m.Order(f, faultmodule.Order{Action: faultmodule.Hang})
		// On a loaded machine a worker needs longer than the first limit to reach the call.
		done := m.Done(f)
		for limit := 300 * time.Millisecond; m.Done(f) == done && limit < time.Minute; limit *= 2 {
			ctx, cancel := context.WithTimeout(t.Context(), limit)
			within(t, 20*time.Second+limit, "Open", func() {
				if _, err := Open(ctx, c); !claviger.IsUnreachable(err) {
					t.Errorf("%v hangs: %v", f, err)
				}
			})
			cancel()
		}
		eventually(t, func() error {
			if n := len(processtest.Children(t, worker.Command)); n != 0 {
				return fmt.Errorf("%v hangs: %d workers run", f, n)
			}
			return nil
		})
		again, err := Open(t.Context(), c)
		if err != nil {
			t.Fatalf("after %v hung: %v", f, err)
		}
		if err := again.Close(); err != nil {
			t.Error(err)
		}
	}
}

// TestNoMoreHangs: while a call hangs in a library of this process, Open makes no further call in it. When the call
// returns, Open succeeds.
func TestNoMoreHangs(t *testing.T) {
	c, m := faulty(t)
	c.Worker = WorkerNo
	m.Order(faultmodule.GetSlotList, faultmodule.Order{Action: faultmodule.Hang, Times: faultmodule.Always})
	for range 3 {
		ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
		if _, err := Open(ctx, c); !claviger.IsUnreachable(err) {
			t.Error(err)
		}
		cancel()
	}
	if n := m.Calls(faultmodule.GetSlotList); n != 1 {
		t.Errorf("%d calls hang", n)
	}
	m.Heal()
	eventually(t, func() error {
		tok, err := Open(t.Context(), c)
		if err != nil {
			return err
		}
		return tok.Close()
	})
}

// TestWorkerErrors: the results of the library's functions are the same through a worker: codes, also those of a
// vendor.
func TestWorkerErrors(t *testing.T) {
	for _, code := range []uint{p11.CKR_DATA_INVALID, p11.CKR_VENDOR_DEFINED + 5} {
		m, tok, keys := openFaulty(t, inWorker)
		m.Order(faultmodule.Encrypt,
			faultmodule.Order{Action: faultmodule.Fail, Value: code, Times: faultmodule.Always})
		if err := keys[0].encrypts(tok, t, 1); !errors.Is(err, p11.Error(code)) {
			t.Errorf("%v, want %v", err, p11.Error(code))
		}
		m.Heal()
		if err := tok.Close(); err != nil {
			t.Error(err)
		}
	}
}
