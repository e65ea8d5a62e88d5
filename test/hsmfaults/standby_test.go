package hsmfaults

import (
	"context"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	p11 "github.com/miekg/pkcs11"

	"claviger/internal/faultmodule"
	"claviger/pkcs11"
)

// ready returns the status and the text of /readyz for a purpose.
func (l *faultyKMS) ready(t *testing.T, purpose string) (status int, text string) {
	t.Helper()
	other := faultyKMS{url: strings.TrimSuffix(l.url, "/kms")}
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, other.url+"/readyz?for="+purpose, nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	var b strings.Builder
	if err := resp.Write(&b); err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, b.String()
}

// TestStandbyServes: while each call to the first token fails or hangs, the KMS decrypts, generates and re-encrypts
// with the standby, is ready for that, and makes no key.
func TestStandbyServes(t *testing.T) {
	l := newFaultyKMS(t, true)
	if err := l.stop(); err != nil {
		t.Fatal(err)
	}
	clone, err := l.token.Clone("standby")
	if err != nil {
		t.Fatal(err)
	}
	dir := filepath.Dir(l.db)
	if err := pkcs11.WriteKeystoreFile(filepath.Join(dir, "standby.keystore"), pkcs11.FileConfig{Module: clone.Module,
		Token: clone.Label, PINFile: clone.PINFile, Worker: pkcs11.WorkerYes}); err != nil {
		t.Fatal(err)
	}
	f, err := os.OpenFile(filepath.Join(dir, "luna.keystore"), os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteString("standby = standby.keystore\n"); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	l.start()
	for _, fault := range []faultmodule.Order{
		{Action: faultmodule.Fail, Value: p11.CKR_DEVICE_REMOVED, Times: faultmodule.Always},
		{Action: faultmodule.Hang, Times: faultmodule.Always},
	} {
		for !strings.Contains(l.log.String(), "the standby token can be used") {
			time.Sleep(time.Millisecond)
		}
		for _, o := range operations[:3] {
			for before := l.Calls(faultmodule.Encrypt); l.Calls(faultmodule.Encrypt) == before; {
				l.recovers(t, o) // until it uses the first token
			}
		}
		l.OrderAll(fault)
		for _, o := range operations[:3] { // those that make no key
			for range 3 {
				ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
				if status, err := o.run(ctx, l); status != http.StatusOK || err != nil {
					t.Errorf("%s: %d, %v; %s", o.name, status, err, l.tail())
				}
				cancel()
			}
		}
		l.isReady(t, "decrypt", http.StatusOK, "the standby is in use")
		l.isReady(t, "generate", http.StatusOK, "the standby is in use")
		if fault.Action == faultmodule.Fail { // a creation waits for a call that hangs
			if status, err := operations[4].run(t.Context(), l); status != http.StatusServiceUnavailable || err != nil {
				t.Errorf("a key is made: %d, %v", status, err)
			}
			l.isReady(t, "write", http.StatusServiceUnavailable, "")
		}
		l.Heal()
		for _, o := range operations {
			l.recovers(t, o)
		}
	}
	l.end(t)
}

// isReady waits until /readyz has that status for a purpose, and contains that text.
func (l *faultyKMS) isReady(t *testing.T, purpose string, want int, text string) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		status, body := l.ready(t, purpose)
		if status == want && strings.Contains(body, text) {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("ready for %s: %d, want %d and %q; %s", purpose, status, want, text, body)
		}
	}
}
