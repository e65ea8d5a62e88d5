package pkcs11

import (
	"sync"
	"testing"
	"time"

	p11 "github.com/miekg/pkcs11"
)

// TestOnCall: OnCall gets one Call for each encryption.
func TestOnCall(t *testing.T) {
	tok, m := open(t)
	id := []byte{1, 2, 3}
	if err := tok.GenerateKey(t.Context(), id, "k@1", 128); err != nil {
		t.Fatal(err)
	}
	var mu sync.Mutex
	var calls []Call
	tok.OnCall(func(c Call) { mu.Lock(); defer mu.Unlock(); calls = append(calls, c) })
	release := m.Hang("Encrypt")
	var done sync.WaitGroup
	encrypt := func(blocks int) {
		done.Go(func() {
			if err := tok.EncryptBlocks(t.Context(), id, "k@1", nil, make([]byte, blocks*blockSize)); err != nil {
				t.Error(err)
			}
		})
	}
	for i := range tok.inFlight { // each of them makes a call
		encrypt(100)
		for {
			if used, _ := tok.Sessions(); used > i {
				break
			}
			time.Sleep(time.Millisecond)
		}
	}
	if used, most := tok.Sessions(); used != tok.inFlight || used > most {
		t.Errorf("%d sessions of %d are in use", used, most)
	}
	release()
	done.Wait()
	m.Fail("Encrypt", 1, p11.Error(p11.CKR_DATA_INVALID))
	if err := tok.EncryptBlocks(t.Context(), id, "k@1", nil, make([]byte, blockSize)); err == nil {
		t.Error("no error")
	}
	mu.Lock()
	defer mu.Unlock()
	blocks, callers, failed := 0, 0, 0
	for _, c := range calls {
		if c.Took <= 0 || c.Waited < 0 {
			t.Errorf("%+v", c)
		}
		if c.Err != nil {
			failed++
			continue
		}
		blocks, callers = blocks+c.Blocks, callers+c.Callers
	}
	if want := tok.inFlight; callers != want || blocks != 100*want || failed != 1 {
		t.Errorf("%d callers, %d blocks, %d failures: %+v", callers, blocks, failed, calls)
	}
	tok.OnCall(nil)
	reported := len(calls)
	mu.Unlock()
	if err := tok.EncryptBlocks(t.Context(), id, "k@1", nil, make([]byte, blockSize)); err != nil {
		t.Error(err)
	}
	mu.Lock()
	if len(calls) != reported {
		t.Errorf("%d calls were reported after OnCall(nil)", len(calls)-reported)
	}
}
