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

// TestOnFunction: each call of the library is told once, with its result and time;
// one that is made again is two.
func TestOnFunction(t *testing.T) {
	tok, m := open(t)
	var mu sync.Mutex
	told, slowest := map[string]int{}, time.Duration(0)
	tok.OnFunction(func(f Function) {
		mu.Lock()
		defer mu.Unlock()
		told[f.Name+" "+f.Result]++
		slowest = max(slowest, f.Took)
	})
	id, label := generate(t, tok, 1, 256)
	const latency = 20 * time.Millisecond
	m.SetLatency(latency)
	m.Fail("Encrypt", 1, p11.Error(p11.CKR_DEVICE_ERROR))
	if err := tok.EncryptBlocks(t.Context(), id, label, make([]byte, blockSize)); err != nil {
		t.Fatal(err)
	}
	tok.OnFunction(nil)
	if err := tok.Ping(t.Context()); err != nil {
		t.Fatal(err)
	}
	mu.Lock()
	defer mu.Unlock()
	// A lost token is looked for anew, and its key as well.
	for call, want := range map[string]int{
		"C_GenerateKey CKR_OK": 1, "C_Encrypt CKR_DEVICE_ERROR": 1, "C_Encrypt CKR_OK": 1, "C_EncryptInit CKR_OK": 2,
		"C_Initialize CKR_OK": 1, "C_Login CKR_OK": 1, "C_GenerateRandom CKR_OK": 0,
	} {
		if told[call] != want {
			t.Errorf("%s is told %d times, want %d", call, told[call], want)
		}
	}
	for call := range told {
		if !regexp.MustCompile(`^C_\w+ CKR_\w+$`).MatchString(call) {
			t.Errorf("%q is told", call)
		}
	}
	if slowest < latency {
		t.Errorf("nothing took more than %v, though each call takes %v", slowest, latency)
	}
}

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
