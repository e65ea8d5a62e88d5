package hsmfaults

import (
	"encoding/json"
	"fmt"
	"net/http"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	p11 "github.com/miekg/pkcs11"

	"claviger/internal/faultmodule"
	"claviger/kms/kmstest"
)

// lease is the length of leases in these tests.
const lease = 2 * time.Second

func newImpliedKMS(t *testing.T, inWorker bool) *faultyKMS {
	t.Helper()
	return newFaultyKMSWith(t, inWorker, map[string]string{"claviger.hsm.generate": "implied",
		"claviger.hsm.generate.lease": "2s"})
}

// generates makes EDEKs for a time. Each request must succeed.
func (l *faultyKMS) generates(t *testing.T, d time.Duration) {
	t.Helper()
	for from := time.Now(); time.Since(from) < d; time.Sleep(5 * time.Millisecond) {
		if status, err := generate(t.Context(), l); err != nil || status != http.StatusOK {
			t.Fatalf("generate: %d, %v", status, err)
		}
	}
}

// generateUntilRefused makes EDEKs until the KMS refuses, and returns the time of the last EDEK. A refusal must send
// the client to another node.
func (l *faultyKMS) generateUntilRefused(t *testing.T) (last time.Time) {
	t.Helper()
	for from := time.Now(); time.Since(from) < 5*lease; time.Sleep(5 * time.Millisecond) {
		status, err := generate(t.Context(), l)
		switch {
		case err != nil || status != http.StatusOK && status != http.StatusServiceUnavailable:
			t.Fatalf("generate: %d, %v", status, err)
		case status != http.StatusOK:
			return last
		}
		last = time.Now()
	}
	t.Fatalf("EDEKs are still made after %v", 5*lease)
	return last
}

// saysOfLeases returns the error of the check of leases, as readiness shows it.
func (l *faultyKMS) saysOfLeases(t *testing.T) string {
	t.Helper()
	_, r := kmstest.Readyz(t, l.url)
	for _, c := range r.Checks {
		if c.Name == "leases of keys" {
			return c.Error
		}
	}
	t.Errorf("readiness has no check of leases: %+v", r.Checks)
	return ""
}

// saysNothingOfLeases waits until readiness says nothing of leases. Its answer may be up to a second old.
func (l *faultyKMS) saysNothingOfLeases(t *testing.T) {
	t.Helper()
	for from := time.Now(); l.saysOfLeases(t) != ""; time.Sleep(50 * time.Millisecond) {
		if time.Since(from) > 10*time.Second {
			t.Fatalf("readiness still says %s", l.saysOfLeases(t))
		}
	}
}

// figure returns a figure of /metrics.
func (l *faultyKMS) figure(t *testing.T, name string) float64 {
	t.Helper()
	_, text := kmstest.Get(t, l.url, "/metrics", "")
	found := regexp.MustCompile(`(?m)^` + name + ` (\S+)$`).FindStringSubmatch(text)
	if found == nil {
		t.Fatalf("no figure %s", name)
	}
	v, err := strconv.ParseFloat(found[1], 64)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

// TestImpliedInAnOutage: while the HSM is away, EDEKs are made until the end of the lease, and no longer. Decrypts fail
// at once. When the HSM is back, EDEKs are made again, and those of the outage open.
func TestImpliedInAnOutage(t *testing.T) {
	for _, inWorker := range []bool{false, true} {
		t.Run(fmt.Sprintf("worker %t", inWorker), func(t *testing.T) {
			l := newImpliedKMS(t, inWorker)
			l.generates(t, lease*9/20)
			l.saysNothingOfLeases(t)
			l.OrderAll(faultmodule.Order{Action: faultmodule.Fail, Value: p11.CKR_DEVICE_REMOVED,
				Times: faultmodule.Always}, faultmodule.GetSlotList, faultmodule.OpenSession, faultmodule.Login,
				faultmodule.EncryptInit, faultmodule.FindObjectsInit, faultmodule.GetSessionInfo)
			away := time.Now()
			made := l.made(t)
			if status, err := decrypt(t.Context(), l); status != http.StatusServiceUnavailable || err != nil {
				t.Errorf("a decrypt: %d, %v", status, err)
			}
			if lasted := l.generateUntilRefused(t).Sub(away); lasted < lease/2 || lasted > lease+time.Second {
				t.Errorf("with leases of %v, EDEKs were made for %v", lease, lasted)
			}
			if said := l.saysOfLeases(t); !strings.Contains(said, "EDEKs of orders@1 are made") {
				t.Errorf("readiness in the outage: %q", said)
			}
			if n := l.figure(t, "claviger_hsm_leases"); n != 0 {
				t.Errorf("%v leases", n)
			}
			l.becomes(t, false)
			l.Heal()
			for _, o := range operations {
				l.recovers(t, o)
			}
			l.becomes(t, true)
			l.saysNothingOfLeases(t)
			l.wantDifferentDEKs(t, made)
			l.end(t)
		})
	}
}

// made makes EDEKs of orders.
func (l *faultyKMS) made(t *testing.T) (list []edek) {
	t.Helper()
	if err := json.Unmarshal(l.want(t, http.StatusOK, "GET", generateOrders, nil), &list); err != nil {
		t.Fatal(err)
	}
	return list
}

// wantDifferentDEKs demands that each EDEK opens, to the same DEK each time, and that no two have one DEK.
func (l *faultyKMS) wantDifferentDEKs(t *testing.T, list []edek) {
	t.Helper()
	deks := map[string]bool{}
	for _, e := range list {
		of := faultyKMS{url: l.url, edek: e}
		of.dek = material(t, of.want(t, http.StatusOK, "POST", of.opens(), of.edekBody()))
		if err := of.opensTo(t.Context(), e); err != nil {
			t.Error(err)
		}
		deks[string(of.dek)] = true
	}
	if len(deks) != len(list) || len(list) == 0 {
		t.Errorf("%d DEKs of %d EDEKs", len(deks), len(list))
	}
}

// TestImpliedDisabled: the HSM exchanges the handles of keys, which changes nothing. Then it lets no key encrypt any
// more: the next renewal ends the lease, long before its time.
func TestImpliedDisabled(t *testing.T) {
	l := newImpliedKMS(t, false)
	l.wantDifferentDEKs(t, l.made(t))
	l.Renumber()
	l.generates(t, lease)
	l.wantDifferentDEKs(t, l.made(t))
	if n, want := l.figure(t, "claviger_edeks_implied_total"), 60.0; n < want {
		t.Errorf("%v EDEKs were implied, want more than %v", n, want)
	}
	if n, age := l.figure(t, "claviger_hsm_leases"), l.figure(t, "claviger_hsm_lease_oldest_seconds"); n != 1 ||
		age <= 0 || age >= lease.Seconds() {
		t.Errorf("%v leases, the oldest %v s old", n, age)
	}
	l.Order(faultmodule.EncryptInit, faultmodule.Order{Action: faultmodule.Fail,
		Value: p11.CKR_KEY_FUNCTION_NOT_PERMITTED, Times: faultmodule.Always})
	disabled := time.Now()
	if took := l.generateUntilRefused(t).Sub(disabled); took > lease*3/4 {
		t.Errorf("with a disabled key, EDEKs were made for %v", took)
	}
	l.Heal()
	l.recovers(t, operations[1])
	l.wantDifferentDEKs(t, l.made(t))
	l.end(t)
}

// TestImpliedAfterChanges: after a roll, EDEKs are of the new version; after a deletion, none are made.
func TestImpliedAfterChanges(t *testing.T) {
	l := newImpliedKMS(t, false)
	if e := l.made(t)[0]; e.Version != "orders@1" {
		t.Errorf("an EDEK of %s", e.Version)
	}
	l.want(t, http.StatusOK, "POST", "key/orders", map[string]any{})
	e := l.made(t)
	if e[0].Version != "orders@2" {
		t.Errorf("an EDEK of %s after a roll", e[0].Version)
	}
	l.wantDifferentDEKs(t, e)
	l.want(t, http.StatusOK, "DELETE", "key/orders", nil)
	status, answer, err := l.request(t.Context(), "GET", generateOrders, nil)
	if status < 400 || err != nil || !strings.Contains(string(answer), "No KeyVersion exists for key 'orders'") {
		t.Errorf("after a deletion: %d %s, %v", status, answer, err)
	}
	l.end(t)
}
