package faultmodule_test

import (
	"bytes"
	"errors"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	p11 "github.com/miekg/pkcs11"

	"claviger/internal/faultmodule"
	"claviger/internal/softhsm/softhsmtest"
)

// A token is SoftHSM behind a fault module, with two AES keys "a" and "b".
type token struct {
	*faultmodule.Module
	ctx     *p11.Ctx
	session p11.SessionHandle
	slot    uint
}

func open(t *testing.T) *token {
	t.Helper()
	hsm := softhsmtest.New(t)
	k := &token{Module: faultmodule.New(t, hsm.Module)}
	k.ctx = p11.New(k.Path)
	if k.ctx == nil {
		t.Fatal("the module cannot be loaded")
	}
	t.Cleanup(func() {
		k.Heal()
		_ = k.ctx.Finalize()
		k.ctx.Destroy()
	})
	if err := k.ctx.Initialize(); err != nil {
		t.Fatal(err)
	}
	slots, err := k.ctx.GetSlotList(true)
	if err != nil || len(slots) == 0 {
		t.Fatal(slots, err)
	}
	k.slot = slots[0]
	k.login(t)
	for _, label := range []string{"a", "b"} {
		if _, err := k.ctx.GenerateKey(k.session, []*p11.Mechanism{p11.NewMechanism(p11.CKM_AES_KEY_GEN, nil)},
			[]*p11.Attribute{p11.NewAttribute(p11.CKA_LABEL, label), p11.NewAttribute(p11.CKA_VALUE_LEN, 16),
				p11.NewAttribute(p11.CKA_TOKEN, false), p11.NewAttribute(p11.CKA_ENCRYPT, true)}); err != nil {
			t.Fatal(err)
		}
	}
	return k
}

func (k *token) login(t *testing.T) {
	t.Helper()
	var err error
	if k.session, err = k.ctx.OpenSession(k.slot, p11.CKF_SERIAL_SESSION|p11.CKF_RW_SESSION); err != nil {
		t.Fatal(err)
	}
	if err := k.ctx.Login(k.session, p11.CKU_USER, "12345678"); err != nil {
		t.Fatal(err)
	}
}

func (k *token) find(t *testing.T, label string) p11.ObjectHandle {
	t.Helper()
	if err := k.ctx.FindObjectsInit(k.session, []*p11.Attribute{p11.NewAttribute(p11.CKA_LABEL, label)}); err != nil {
		t.Fatal(err)
	}
	found, _, err := k.ctx.FindObjects(k.session, 2)
	if err != nil || len(found) != 1 {
		t.Fatal(found, err)
	}
	if err := k.ctx.FindObjectsFinal(k.session); err != nil {
		t.Fatal(err)
	}
	return found[0]
}

func (k *token) encrypt(h p11.ObjectHandle, n int) ([]byte, error) {
	if err := k.ctx.EncryptInit(k.session, []*p11.Mechanism{p11.NewMechanism(p11.CKM_AES_ECB, nil)}, h); err != nil {
		return nil, err
	}
	return k.ctx.Encrypt(k.session, make([]byte, n))
}

func want(t *testing.T, what string, err error, code uint) {
	t.Helper()
	if code == 0 && err == nil || errors.Is(err, p11.Error(code)) {
		return
	}
	t.Errorf("%s: %v, want %v", what, err, p11.Error(code))
}

// TestErrors: an order applies to as many calls as its Times, before or after the
// call of the real module.
func TestErrors(t *testing.T) {
	k := open(t)
	h := k.find(t, "a")
	k.Order(faultmodule.EncryptInit, faultmodule.Order{Action: faultmodule.Fail, Value: p11.CKR_DEVICE_ERROR, Times: 2})
	for range 2 {
		_, err := k.encrypt(h, 16)
		want(t, "while ordered", err, p11.CKR_DEVICE_ERROR)
	}
	_, err := k.encrypt(h, 16)
	want(t, "afterwards", err, 0)
	if n := k.Done(faultmodule.EncryptInit); n != 2 {
		t.Errorf("%d orders were carried out, want 2", n)
	}
	k.Order(faultmodule.EncryptInit, faultmodule.Order{Action: faultmodule.FailAfter, Value: p11.CKR_HOST_MEMORY})
	_, err = k.encrypt(h, 16)
	want(t, "after the call", err, p11.CKR_HOST_MEMORY)
	_, err = k.encrypt(h, 16)
	want(t, "while another operation is active", err, p11.CKR_OPERATION_ACTIVE)
}

// TestChance: an order with Permille applies to some calls, but not to all.
func TestChance(t *testing.T) {
	k := open(t)
	k.Order(faultmodule.GetSessionInfo, faultmodule.Order{Action: faultmodule.Fail, Value: p11.CKR_DEVICE_ERROR,
		Times: faultmodule.Always, Permille: 300})
	failed := 0
	for range 1000 {
		if _, err := k.ctx.GetSessionInfo(k.session); err != nil {
			failed++
		}
	}
	if failed < 200 || failed > 400 {
		t.Errorf("%d of 1,000 calls failed, want about 300", failed)
	}
}

// TestFlip: one bit of the result differs.
func TestFlip(t *testing.T) {
	k := open(t)
	h := k.find(t, "a")
	right, err := k.encrypt(h, 64)
	want(t, "encrypt", err, 0)
	// The first of the two calls of C_Encrypt requests the length.
	k.Order(faultmodule.Encrypt, faultmodule.Order{Action: faultmodule.Flip, Times: faultmodule.Always})
	wrong, err := k.encrypt(h, 64)
	want(t, "encrypt", err, 0)
	bits := 0
	for i := range right {
		for b := right[i] ^ wrong[i]; b != 0; b &= b - 1 {
			bits++
		}
	}
	if bits != 1 {
		t.Errorf("%d bits differ, want 1", bits)
	}
}

// TestHandles: stale handles are refused, renumbered handles name another key, and a
// search finds the right handle.
func TestHandles(t *testing.T) {
	k := open(t)
	a, b := k.find(t, "a"), k.find(t, "b")
	ofA, err := k.encrypt(a, 16)
	want(t, "a", err, 0)
	ofB, err := k.encrypt(b, 16)
	want(t, "b", err, 0)
	k.Renumber()
	got, err := k.encrypt(a, 16)
	if a^1 == b && (err != nil || !bytes.Equal(got, ofB)) {
		t.Errorf("the handle of a, renumbered: %x, %v, want the result of b", got, err)
	}
	if got, err = k.encrypt(k.find(t, "a"), 16); err != nil || !bytes.Equal(got, ofA) {
		t.Errorf("a, found again: %x, %v", got, err)
	}
	if a^1 != b {
		t.Errorf("the handles %d and %d do not differ in the last bit only, so nothing was tested", a, b)
	}
	a = k.find(t, "a")
	k.StaleHandles()
	_, err = k.encrypt(a, 16)
	want(t, "stale", err, p11.CKR_KEY_HANDLE_INVALID)
	_, err = k.ctx.GetAttributeValue(k.session, a, []*p11.Attribute{p11.NewAttribute(p11.CKA_LABEL, nil)})
	want(t, "stale", err, p11.CKR_OBJECT_HANDLE_INVALID)
	if got, err = k.encrypt(k.find(t, "a"), 16); err != nil || !bytes.Equal(got, ofA) {
		t.Errorf("a, found again: %x, %v", got, err)
	}
}

// TestExchange: the handles of two objects change places after the ordered call, once both objects exist. The next
// exchange undoes that.
func TestExchange(t *testing.T) {
	k := open(t)
	a, b := k.find(t, "a"), k.find(t, "b")
	ofA, err := k.encrypt(a, 16)
	want(t, "a", err, 0)
	ofB, err := k.encrypt(b, 16)
	want(t, "b", err, 0)
	k.ExchangeLabels("a", "missing")
	k.Order(faultmodule.FindObjects, faultmodule.Order{Action: faultmodule.Exchange})
	if k.find(t, "a") != a || k.Exchanged() || k.Done(faultmodule.FindObjects) != 0 {
		t.Error("exchanged with an object that does not exist")
	}
	k.ExchangeLabels("a", "b")
	k.Order(faultmodule.FindObjects, faultmodule.Order{Action: faultmodule.Exchange, Skip: 1, Times: 2})
	for call, want := range []p11.ObjectHandle{a, a, b, a} { // the second call exchanges, the third undoes that
		if got := k.find(t, "a"); got != want {
			t.Errorf("search %d finds %d, want %d", call, got, want)
		}
		got, err := k.encrypt(a, 16)
		if exchanged := call == 1; err != nil || exchanged != k.Exchanged() ||
			!bytes.Equal(got, map[bool][]byte{true: ofB, false: ofA}[exchanged]) {
			t.Errorf("after search %d: %x, %v", call, got, err)
		}
	}
	if n := k.Done(faultmodule.FindObjects); n != 2 {
		t.Errorf("%d orders were carried out", n)
	}
}

// TestSessions: the cap, sessions that are closed, and a login that is lost.
func TestSessions(t *testing.T) {
	k := open(t)
	k.LimitSessions(2)
	s, err := k.ctx.OpenSession(k.slot, p11.CKF_SERIAL_SESSION)
	want(t, "second session", err, 0)
	_, err = k.ctx.OpenSession(k.slot, p11.CKF_SERIAL_SESSION)
	want(t, "third session", err, p11.CKR_SESSION_COUNT)
	want(t, "close", k.ctx.CloseSession(s), 0)
	_, err = k.ctx.OpenSession(k.slot, p11.CKF_SERIAL_SESSION)
	want(t, "after one was closed", err, 0)
	k.LogOut()
	info, err := k.ctx.GetSessionInfo(k.session)
	if err != nil || info.State != p11.CKS_RW_PUBLIC_SESSION {
		t.Errorf("after the logout: state %d, %v", info.State, err)
	}
	k.CloseSessions()
	_, err = k.ctx.GetSessionInfo(k.session)
	want(t, "after all sessions were closed", err, p11.CKR_SESSION_HANDLE_INVALID)
	k.login(t)
	if n := k.Calls(faultmodule.Login); n != 2 {
		t.Errorf("%d logins counted, want 2", n)
	}
}

// TestLimits: data that is too long, and a mechanism that is refused. A session
// can be used after both.
func TestLimits(t *testing.T) {
	k := open(t)
	h := k.find(t, "a")
	k.LimitData(32)
	_, err := k.encrypt(h, 48)
	want(t, "48 bytes", err, p11.CKR_DATA_LEN_RANGE)
	_, err = k.encrypt(h, 32)
	want(t, "32 bytes", err, 0)
	k.RefuseMechanism(p11.CKM_AES_ECB)
	_, err = k.encrypt(h, 16)
	want(t, "ECB", err, p11.CKR_MECHANISM_INVALID)
	k.Heal()
	_, err = k.encrypt(h, 48)
	want(t, "healed", err, 0)
}

// TestTime: calls take longer, and hang until they are released.
func TestTime(t *testing.T) {
	k := open(t)
	k.SetLatency(20 * time.Millisecond)
	began := time.Now()
	if _, err := k.ctx.GetSessionInfo(k.session); err != nil || time.Since(began) < 20*time.Millisecond {
		t.Errorf("a call took %v, %v", time.Since(began), err)
	}
	k.SetLatency(0)
	k.Order(faultmodule.GetSessionInfo, faultmodule.Order{Action: faultmodule.Hang})
	done := make(chan error)
	go func() {
		_, err := k.ctx.GetSessionInfo(k.session)
		done <- err
	}()
	for k.Done(faultmodule.GetSessionInfo) == 0 {
		time.Sleep(time.Millisecond) // between two reads of the count
	}
	if n := k.Running(faultmodule.GetSessionInfo); n != 1 {
		t.Errorf("%d calls are running, want 1", n)
	}
	if _, err := k.ctx.GetSessionInfo(k.session); err != nil {
		t.Errorf("another call: %v", err)
	}
	select {
	case err := <-done:
		t.Errorf("the call returned: %v", err)
	default:
	}
	k.Release()
	want(t, "released", <-done, 0)
}

// TestCrash: the process that calls is ended, as by a library with a fault.
func TestCrash(t *testing.T) {
	if os.Getenv("CRASH") != "" {
		k := open(t)
		action := map[string]faultmodule.Action{"abort": faultmodule.Abort, "segfault": faultmodule.Segfault}
		k.Order(faultmodule.GetSessionInfo, faultmodule.Order{Action: action[os.Getenv("CRASH")]})
		_, err := k.ctx.GetSessionInfo(k.session)
		t.Fatal("the process has not ended:", err)
	}
	for how, signal := range map[string]syscall.Signal{"abort": syscall.SIGABRT, "segfault": syscall.SIGSEGV} {
		cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run", "^TestCrash$")
		cmd.Env = append(os.Environ(), "CRASH="+how)
		out, err := cmd.CombinedOutput()
		var ended *exec.ExitError
		if !errors.As(err, &ended) {
			t.Fatalf("%s: %v\n%s", how, err, out)
		}
		status, _ := ended.Sys().(syscall.WaitStatus)
		if status.Signaled() && status.Signal() != signal ||
			!status.Signaled() && !strings.Contains(string(out), "SIG") {
			t.Errorf("%s: %v\n%s", how, err, out)
		}
	}
}
