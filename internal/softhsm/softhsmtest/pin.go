package softhsmtest

import (
	"testing"

	p11 "github.com/miekg/pkcs11"
)

// ChangePIN changes the PIN of the first token of a library, in this process and not in a worker, as the HSM's own tool
// does. The process must not have initialised the library otherwise.
func ChangePIN(t testing.TB, module, from, to string) {
	t.Helper()
	lib := p11.New(module)
	defer lib.Destroy()
	if err := lib.Initialize(); err != nil {
		t.Fatal(err)
	}
	defer lib.Finalize() //nolint:errcheck // the change is what counts
	slots, err := lib.GetSlotList(true)
	if err != nil || len(slots) == 0 {
		t.Fatal(slots, err)
	}
	s, err := lib.OpenSession(slots[0], p11.CKF_SERIAL_SESSION|p11.CKF_RW_SESSION)
	if err == nil {
		err = lib.Login(s, p11.CKU_USER, from)
	}
	if err == nil {
		err = lib.SetPIN(s, from, to)
	}
	if err != nil {
		t.Fatal(err)
	}
}
