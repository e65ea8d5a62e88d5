package hsmfaults

import (
	"context"
	"fmt"
	"net/http"
	"testing"
	"time"

	p11 "github.com/miekg/pkcs11"

	"claviger/internal/faultmodule"
	"claviger/kms/kmstest"
)

// functionsOf has the functions of the library whose calls fail in an operation. The others are not called each time.
func functionsOf(operation string) []faultmodule.Function {
	switch operation {
	case "roll", "create":
		return []faultmodule.Function{faultmodule.GenerateKey}
	case "generate":
		return []faultmodule.Function{faultmodule.Encrypt}
	}
	return []faultmodule.Function{faultmodule.EncryptInit, faultmodule.Encrypt}
}

// TestEachResultOnce: one call of an operation fails, by each result of PKCS #11. The operation succeeds, or its answer
// makes the client try another node. Then everything works, with no more than one login.
func TestEachResultOnce(t *testing.T) {
	l := newFaultyKMS(t, false)
	for _, o := range operations {
		for _, f := range functionsOf(o.name) {
			for _, code := range codes() {
				row := fmt.Sprintf("%s, function %d, %v", o.name, f, p11.Error(code))
				logins, done := l.Calls(faultmodule.Login), l.Done(f)
				l.Order(f, faultmodule.Order{Action: faultmodule.Fail, Value: code})
				status, err := o.run(t.Context(), l)
				if err != nil || status >= 300 && status != http.StatusServiceUnavailable && !isRefusal(o, code) {
					t.Errorf("%s: %d, %v", row, status, err)
				}
				if l.Done(f) != done+1 {
					t.Errorf("%s: the fault did not happen", row)
				}
				l.Heal()
				l.recovers(t, operations[0])
				if n := l.Calls(faultmodule.Login) - logins; n > 1 {
					t.Errorf("%s: %d logins", row, n)
				}
			}
		}
	}
	for _, o := range operations {
		l.recovers(t, o)
	}
	l.end(t)
}

// isRefusal: the token refuses to make a key of that kind, which is an error of the request.
func isRefusal(o operation, code uint) bool {
	switch code {
	case p11.CKR_HOST_MEMORY, p11.CKR_GENERAL_ERROR, p11.CKR_FUNCTION_FAILED, p11.CKR_DEVICE_ERROR,
		p11.CKR_DEVICE_REMOVED, p11.CKR_TOKEN_NOT_PRESENT, p11.CKR_SESSION_CLOSED, p11.CKR_SESSION_HANDLE_INVALID,
		p11.CKR_USER_NOT_LOGGED_IN, p11.CKR_FUNCTION_CANCELED, p11.CKR_CRYPTOKI_NOT_INITIALIZED:
		return false
	}
	return o.name == "roll" || o.name == "create"
}

// An outage is a state of the HSM that lasts.
type outage struct {
	name   string
	begin  func(l *faultyKMS)
	serves bool // the service goes on all the same
	worker bool // needs the library in a process of its own
}

// failing is an outage in which functions fail with a result.
func failing(code uint, functions ...faultmodule.Function) outage {
	return outage{name: fmt.Sprintf("%v of %d", p11.Error(code), functions), begin: func(l *faultyKMS) {
		l.OrderAll(faultmodule.Order{Action: faultmodule.Fail, Value: code, Times: faultmodule.Always}, functions...)
	}}
}

func outages() (list []outage) {
	encrypt := []faultmodule.Function{faultmodule.EncryptInit}
	for _, code := range []uint{p11.CKR_GENERAL_ERROR, p11.CKR_DEVICE_ERROR, p11.CKR_HOST_MEMORY,
		p11.CKR_KEY_HANDLE_INVALID, p11.CKR_USER_NOT_LOGGED_IN, p11.CKR_VENDOR_DEFINED | 3} {
		list = append(list, failing(code, encrypt...))
	}
	away := []faultmodule.Function{faultmodule.GetSlotList, faultmodule.OpenSession, faultmodule.Login,
		faultmodule.EncryptInit, faultmodule.FindObjectsInit, faultmodule.GenerateRandom, faultmodule.GenerateKey,
		faultmodule.GetSessionInfo}
	list = append(list, failing(p11.CKR_DEVICE_REMOVED, away...), failing(p11.CKR_TOKEN_NOT_PRESENT, away...))
	serving := func(name string, begin func(l *faultyKMS)) {
		list = append(list, outage{name: name, begin: begin, serves: true})
	}
	serving("stale handles", func(l *faultyKMS) { l.StaleHandles() })
	serving("exchanged handles", func(l *faultyKMS) { l.Renumber() })
	serving("logged out", func(l *faultyKMS) { l.LogOut() })
	serving("sessions closed", func(l *faultyKMS) { l.CloseSessions() })
	serving("one session", func(l *faultyKMS) { l.CloseSessions(); l.LimitSessions(1) })
	serving("two blocks a call", func(l *faultyKMS) { l.LimitData(32) })
	serving("no CKM_AES_ECB", func(l *faultyKMS) { l.RefuseMechanism(p11.CKM_AES_ECB) })
	serving("slow", func(l *faultyKMS) { l.SetLatency(20 * time.Millisecond) })
	for name, action := range map[string]faultmodule.Action{"abort": faultmodule.Abort,
		"segfault": faultmodule.Segfault} {
		list = append(list, outage{name: name, serves: true, worker: true, begin: func(l *faultyKMS) {
			l.Order(faultmodule.EncryptInit, faultmodule.Order{Action: action})
		}})
	}
	return list
}

// TestOutages: while the HSM fails, no answer is wrong, each failure sends the client to another node, the PIN is not
// tried again and again, and readiness becomes red. After that the service is back, and nothing is left over.
func TestOutages(t *testing.T) { outagesHappen(t, false) }

// TestOutagesOfAWorker is TestOutages with the library in a process of its own, which can also crash.
func TestOutagesOfAWorker(t *testing.T) { outagesHappen(t, true) }

func outagesHappen(t *testing.T, inWorker bool) {
	t.Helper()
	l := newFaultyKMS(t, inWorker)
	for _, o := range outages() {
		if o.worker && !inWorker {
			continue
		}
		t.Run(o.name, func(t *testing.T) { o.happens(t, l) })
	}
	l.end(t)
}

func (o outage) happens(t *testing.T, l *faultyKMS) {
	logins := l.Calls(faultmodule.Login)
	o.begin(l)
	from := time.Now()
	for round := 0; time.Since(from) < 400*time.Millisecond || round < 2; round++ {
		for _, op := range operations[:3] {
			status, err := op.run(t.Context(), l)
			if err != nil || status >= 300 && (o.serves || status != http.StatusServiceUnavailable) {
				t.Errorf("%s: %d, %v", op.name, status, err)
			}
		}
		time.Sleep(10 * time.Millisecond)
	}
	if !o.serves {
		l.becomes(t, false)
	}
	l.Heal()
	for _, op := range operations {
		d := l.recovers(t, op)
		t.Logf("%s: back after %v", op.name, d.Round(time.Millisecond))
	}
	l.becomes(t, true)
	_, fresh, err := reencrypted(t.Context(), l)
	if err != nil || l.opensTo(t.Context(), fresh) != nil {
		t.Errorf("after the outage: %v, %v", err, l.opensTo(context.Background(), fresh))
	}
	if n := l.Calls(faultmodule.Login) - logins; n > 4+int(2*time.Since(from)/time.Second) {
		t.Errorf("%d logins in %v", n, time.Since(from))
	}
}

// becomes waits until readiness says so.
func (l *faultyKMS) becomes(t *testing.T, ready bool) {
	t.Helper()
	for from := time.Now(); ; time.Sleep(20 * time.Millisecond) {
		_, r := kmstest.Readyz(t, l.url)
		if r.Ready == ready {
			return
		}
		if time.Since(from) > 20*time.Second {
			t.Errorf("ready: %t, want %t: %+v", r.Ready, ready, r.Checks)
			return
		}
	}
}
