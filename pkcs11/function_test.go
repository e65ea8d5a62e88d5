package pkcs11

import (
	"errors"
	"fmt"
	"regexp"
	"sync"
	"testing"
	"time"

	p11 "github.com/miekg/pkcs11"
)

// TestOnFunction: OnFunction gets each call of the library once, with its result and duration. A call that is made
// again is reported again.
func TestOnFunction(t *testing.T) {
	tok, m := open(t)
	var mu sync.Mutex
	reported, slowest := map[string]int{}, time.Duration(0)
	tok.OnFunction(func(f Function) {
		mu.Lock()
		defer mu.Unlock()
		reported[f.Name+" "+f.Result]++
		slowest = max(slowest, f.Took)
	})
	id, label := generate(t, tok, 1, 256)
	const latency = 20 * time.Millisecond
	m.SetLatency(latency)
	m.Fail("Encrypt", 1, p11.Error(p11.CKR_CRYPTOKI_NOT_INITIALIZED))
	if err := tok.EncryptBlocks(t.Context(), id, label, nil, make([]byte, blockSize)); err != nil {
		t.Fatal(err)
	}
	tok.OnFunction(nil)
	if err := tok.Ping(t.Context()); err != nil {
		t.Fatal(err)
	}
	mu.Lock()
	defer mu.Unlock()
	// After the token is lost, the token and its key are searched again.
	for call, want := range map[string]int{
		"C_GenerateKey CKR_OK": 1, "C_Encrypt CKR_CRYPTOKI_NOT_INITIALIZED": 1, "C_Encrypt CKR_OK": 1,
		"C_GenerateRandom CKR_OK": 0,
		"C_Initialize CKR_OK":     1, "C_Login CKR_OK": 1,
	} {
		if reported[call] != want {
			t.Errorf("%s is reported %d times, want %d", call, reported[call], want)
		}
	}
	for call := range reported {
		if !regexp.MustCompile(`^C_\w+ CKR_\w+$`).MatchString(call) {
			t.Errorf("%q is reported", call)
		}
	}
	if slowest < latency {
		t.Errorf("nothing took more than %v, though each call takes %v", slowest, latency)
	}
}

// TestResultName: the name of a result in metrics; a vendor's codes share one name.
func TestResultName(t *testing.T) {
	for want, err := range map[string]error{
		"CKR_OK":             nil,
		"CKR_DEVICE_ERROR":   fmt.Errorf("it failed: %w", p11.Error(p11.CKR_DEVICE_ERROR)),
		"CKR_GENERAL_ERROR":  errors.New("no code"),
		"CKR_VENDOR_DEFINED": p11.Error(0x80000123),
	} {
		if got := ResultName(err); got != want {
			t.Errorf("%v is %s, want %s", err, got, want)
		}
	}
}
