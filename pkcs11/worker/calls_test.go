package worker

import (
	"bytes"
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha1" //nolint:gosec // OAEP of older HSMs
	"crypto/sha256"
	"errors"
	"math/big"
	"os"
	"reflect"
	"strings"
	"syscall"
	"testing"
	"time"

	p11 "github.com/miekg/pkcs11"

	"claviger/internal/faultmodule"
	"claviger/internal/softhsm/softhsmtest"
	"claviger/pkcs11/cryptoki"
)

var (
	ecb  = p11.NewMechanism(p11.CKM_AES_ECB, nil)
	oaep = p11.NewOAEPParams(p11.CKM_SHA_1, p11.CKG_MGF1_SHA1, p11.CKZ_DATA_SPECIFIED, nil)
)

// TestErrorCodes: each function returns the result code of the library, also if it is a code of a vendor.
func TestErrorCodes(t *testing.T) {
	m, c := start(t, 0)
	template := []*p11.Attribute{p11.NewAttribute(p11.CKA_LABEL, "x")}
	calls := map[string]struct {
		f    faultmodule.Function
		call func() error
	}{
		"GetSlotList":      {faultmodule.GetSlotList, func() error { return errorOf(c.GetSlotList(true)) }},
		"GetTokenInfo":     {faultmodule.GetTokenInfo, func() error { return errorOf(c.GetTokenInfo(1)) }},
		"GetMechanismList": {faultmodule.GetMechanismList, func() error { return errorOf(c.GetMechanismList(1)) }},
		"OpenSession": {faultmodule.OpenSession, func() error {
			return errorOf(c.OpenSession(1, p11.CKF_SERIAL_SESSION))
		}},
		"CloseSession":   {faultmodule.CloseSession, func() error { return c.CloseSession(1) }},
		"GetSessionInfo": {faultmodule.GetSessionInfo, func() error { return errorOf(c.GetSessionInfo(1)) }},
		"Login":          {faultmodule.Login, func() error { return c.Login(1, p11.CKU_USER, "1234") }},
		"GenerateRandom": {faultmodule.GenerateRandom, func() error { return errorOf(c.GenerateRandom(1, 8)) }},
		"GenerateKey": {faultmodule.GenerateKey, func() error {
			return errorOf(c.GenerateKey(1, mech(ecb), template))
		}},
		"CreateObject":  {faultmodule.CreateObject, func() error { return errorOf(c.CreateObject(1, template)) }},
		"DestroyObject": {faultmodule.DestroyObject, func() error { return c.DestroyObject(1, 1) }},
		"GetAttributeValue": {faultmodule.GetAttributeValue, func() error {
			return errorOf(c.GetAttributeValue(1, 1, template))
		}},
		"FindObjectsInit": {faultmodule.FindObjectsInit, func() error { return c.FindObjectsInit(1, template) }},
		"FindObjects": {faultmodule.FindObjects, func() error {
			_, _, err := c.FindObjects(1, 1)
			return err
		}},
		"FindObjectsFinal": {faultmodule.FindObjectsFinal, func() error { return c.FindObjectsFinal(1) }},
		"Encrypt": {faultmodule.EncryptInit, func() error {
			return errorOf(c.Encrypt(1, ecb, 1, make([]byte, 16)))
		}},
		"GenerateKeyPair": {faultmodule.GenerateKeyPair, func() error {
			_, _, err := c.GenerateKeyPair(1, mech(ecb), template, template)
			return err
		}},
		"DecryptInit": {faultmodule.DecryptInit, func() error { return c.DecryptInit(1, oaep, 1) }},
		"Decrypt":     {faultmodule.Decrypt, func() error { return errorOf(c.Decrypt(1, make([]byte, 16))) }},
		"Sign": {faultmodule.SignInit, func() error {
			return errorOf(c.Sign(1, p11.NewMechanism(p11.CKM_RSA_PKCS, nil), 1, make([]byte, 16)))
		}},
		"Initialize": {faultmodule.Initialize, func() error { return c.Initialize() }},
		"Finalize":   {faultmodule.Finalize, c.Finalize},
	}
	boundary := reflect.TypeFor[cryptoki.Boundary]()
	for i := range boundary.NumMethod() {
		name := boundary.Method(i).Name
		call, ok := calls[name]
		if !ok {
			t.Errorf("%s is not tested", name)
			continue
		}
		for _, code := range []uint{p11.CKR_FUNCTION_FAILED, p11.CKR_VENDOR_DEFINED + 5} {
			if c.process.Load() == nil { // after Finalize
				if err := c.Initialize(); err != nil {
					t.Fatal(err)
				}
			}
			m.Order(call.f, faultmodule.Order{Action: faultmodule.Fail, Value: code})
			if err := call.call(); !errors.Is(err, p11.Error(code)) {
				t.Errorf("%s: %v, want %v", name, err, p11.Error(code))
			}
			if n := m.Done(call.f); n == 0 {
				t.Errorf("%s does not call the function", name)
			}
		}
	}
}

// errorOf returns the error of a call that also has a result.
func errorOf[T any](_ T, err error) error { return err }

// mech returns a list of mechanisms, as some functions want it.
func mech(m ...*p11.Mechanism) []*p11.Mechanism { return m }

// must returns the result of a call that has to succeed.
func must[T any](t *testing.T) func(T, error) T {
	t.Helper()
	return func(got T, err error) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return got
	}
}

// session opens a session and logs in.
func session(t *testing.T, c *client, pinFile string) (slot uint, s p11.SessionHandle) {
	t.Helper()
	slot = must[[]uint](t)(c.GetSlotList(true))[0]
	s = must[p11.SessionHandle](t)(c.OpenSession(slot, p11.CKF_SERIAL_SESSION|p11.CKF_RW_SESSION))
	pin := must[[]byte](t)(os.ReadFile(pinFile))
	if err := c.Login(s, p11.CKU_USER, strings.TrimSpace(string(pin))); err != nil {
		t.Fatal(err)
	}
	return slot, s
}

// TestResults: the results of each function reach the caller.
func TestResults(t *testing.T) {
	tok := softhsmtest.New(t)
	c := load(t, tok.Module, 0)
	if err := c.Initialize(); err != nil {
		t.Fatal(err)
	}
	slot, s := session(t, c, tok.PINFile)
	if i := must[p11.TokenInfo](t)(c.GetTokenInfo(slot)); strings.TrimRight(i.Label, " ") != tok.Label {
		t.Errorf("label %q", i.Label)
	}
	if i := must[p11.SessionInfo](t)(c.GetSessionInfo(s)); i.State != 3 { // CKS_RW_USER_FUNCTIONS
		t.Errorf("state %d", i.State)
	}
	if len(must[[]*p11.Mechanism](t)(c.GetMechanismList(slot))) == 0 {
		t.Error("no mechanisms")
	}
	if b := must[[]byte](t)(c.GenerateRandom(s, 16)); len(b) != 16 {
		t.Errorf("random %x", b)
	}
	key := must[p11.ObjectHandle](t)(c.GenerateKey(s, mech(p11.NewMechanism(p11.CKM_AES_KEY_GEN, nil)),
		[]*p11.Attribute{p11.NewAttribute(p11.CKA_VALUE_LEN, 32), p11.NewAttribute(p11.CKA_ENCRYPT, true)}))
	out := must[[]byte](t)(c.Encrypt(s, ecb, key, make([]byte, 32)))
	if len(out) != 32 || !bytes.Equal(out[:16], out[16:]) || bytes.Equal(out, make([]byte, 32)) {
		t.Errorf("encrypted %x", out)
	}
	template := []*p11.Attribute{p11.NewAttribute(p11.CKA_CLASS, p11.CKO_DATA), p11.NewAttribute(p11.CKA_LABEL, "x")}
	var made []p11.ObjectHandle
	for range 2 {
		made = append(made, must[p11.ObjectHandle](t)(c.CreateObject(s, template)))
	}
	label := must[[]*p11.Attribute](t)(c.GetAttributeValue(s, made[0], []*p11.Attribute{
		p11.NewAttribute(p11.CKA_LABEL, nil)}))
	if len(label) != 1 || string(label[0].Value) != "x" {
		t.Errorf("attributes %v", label)
	}
	for _, n := range []int{2, 1} {
		if err := c.FindObjectsInit(s, template); err != nil {
			t.Fatal(err)
		}
		if found, _, err := c.FindObjects(s, 10); len(found) != n || err != nil {
			t.Errorf("found %v, %v", found, err)
		}
		if err := c.FindObjectsFinal(s); err != nil {
			t.Error(err)
		}
		if err := c.DestroyObject(s, made[n-1]); err != nil {
			t.Error(err)
		}
	}
	if err := c.CloseSession(s); err != nil {
		t.Error(err)
	}
	if _, err := c.GetSessionInfo(s); !errors.Is(err, p11.Error(p11.CKR_SESSION_HANDLE_INVALID)) {
		t.Errorf("after CloseSession: %v", err)
	}
}

// TestKeyPair: an RSA pair that was made through the worker decrypts and signs.
func TestKeyPair(t *testing.T) {
	tok := softhsmtest.New(t)
	c := load(t, tok.Module, 0)
	if err := c.Initialize(); err != nil {
		t.Fatal(err)
	}
	_, s := session(t, c, tok.PINFile)
	public, private, err := c.GenerateKeyPair(s, mech(p11.NewMechanism(p11.CKM_RSA_PKCS_KEY_PAIR_GEN, nil)),
		[]*p11.Attribute{p11.NewAttribute(p11.CKA_MODULUS_BITS, 2048), p11.NewAttribute(p11.CKA_ENCRYPT, true),
			p11.NewAttribute(p11.CKA_PUBLIC_EXPONENT, []byte{1, 0, 1})},
		[]*p11.Attribute{p11.NewAttribute(p11.CKA_DECRYPT, true), p11.NewAttribute(p11.CKA_SIGN, true)})
	if err != nil {
		t.Fatal(err)
	}
	modulus := must[[]*p11.Attribute](t)(c.GetAttributeValue(s, public, []*p11.Attribute{
		p11.NewAttribute(p11.CKA_MODULUS, nil)}))
	key := &rsa.PublicKey{N: new(big.Int).SetBytes(modulus[0].Value), E: 65537}
	want := sha256.Sum256(nil)
	sealed, err := rsa.EncryptOAEP(sha1.New(), rand.Reader, key, want[:], nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := c.DecryptInit(s, oaep, private); err != nil {
		t.Fatal(err)
	}
	if got := must[[]byte](t)(c.Decrypt(s, sealed)); !bytes.Equal(got, want[:]) {
		t.Errorf("decrypted %x, want %x", got, want)
	}
	pss := p11.NewMechanism(p11.CKM_RSA_PKCS_PSS, p11.NewPSSParams(p11.CKM_SHA256, p11.CKG_MGF1_SHA256, sha256.Size))
	signature := must[[]byte](t)(c.Sign(s, pss, private, want[:]))
	if err := rsa.VerifyPSS(key, crypto.SHA256, want[:], signature, nil); err != nil {
		t.Errorf("a signature of %d bytes: %v", len(signature), err)
	}
}

// TestFinalizeAndKill: both end the process. Later calls say so, until Initialize starts another.
func TestFinalizeAndKill(t *testing.T) {
	m, c := start(t, 0)
	notInitialised := p11.Error(p11.CKR_CRYPTOKI_NOT_INITIALIZED)
	for range 2 {
		pid := pidOf(c)
		if err := c.Finalize(); err != nil || !ended(pid) {
			t.Errorf("Finalize: %v; the process has ended: %t", err, ended(pid))
		}
		if err := c.Finalize(); !errors.Is(err, notInitialised) {
			t.Errorf("Finalize again: %v", err)
		}
		if _, err := c.GetSlotList(true); !errors.Is(err, notInitialised) {
			t.Errorf("a call after Finalize: %v", err)
		}
		c.Kill("for the test")
		if err := c.Initialize(); err != nil {
			t.Fatal(err)
		}
		if _, err := c.GetSlotList(true); err != nil {
			t.Error(err)
		}
	}
	pid := pidOf(c)
	if c.Kill("for the test"); !ended(pid) {
		t.Error("Kill left the process")
	}
	_, err := c.GetSlotList(true)
	wantGone(t, err, "for the test")
	_, _, err = c.GenerateKeyPair(1, nil, nil, nil)
	wantGone(t, err, "for the test")
	_, err = c.GenerateKey(1, nil, nil)
	wantGone(t, err, "for the test")
	wantGone(t, c.Finalize(), "for the test")
	if err := os.Rename(m.Path, m.Path+".away"); err != nil {
		t.Fatal(err)
	}
	if err := c.Initialize(); err == nil || !strings.Contains(err.Error(), "cannot be loaded again") {
		t.Errorf("Initialize without the library: %v", err)
	}
	if _, err := c.GetSlotList(true); !errors.Is(err, notInitialised) {
		t.Errorf("a call without the library: %v", err)
	}
	limitFiles(t, 0, func() {
		if err := c.Initialize(); !errors.Is(err, syscall.EMFILE) {
			t.Errorf("Initialize with too few files: %v", err)
		}
	})
}

// TestCallLimits: a call that takes longer than the limit ends the worker. Functions that take long in an HSM that
// works have a longer limit. Finalize does not wait for a library that hangs.
func TestCallLimits(t *testing.T) {
	const limit = time.Second
	m, c := start(t, limit)
	for f, call := range map[faultmodule.Function]func() error{
		faultmodule.OpenSession: func() error { return errorOf(c.OpenSession(1000, p11.CKF_SERIAL_SESSION)) },
		faultmodule.Login:       func() error { return c.Login(1000, p11.CKU_USER, "1") },
	} {
		m.Delay(f, limit+limit/2)
		var code p11.Error
		if err := call(); !errors.As(err, &code) { // SoftHSM has no such slot and no such session
			t.Error(err)
		}
	}
	m.Order(faultmodule.Finalize, faultmodule.Order{Action: faultmodule.Hang})
	within(t, "Finalize", func() { wantGone(t, c.Finalize(), "C_Finalize did not return in 1s") })
	m.Heal()
	if err := c.Initialize(); err != nil {
		t.Fatal(err)
	}
	m.Order(faultmodule.GetSlotList, faultmodule.Order{Action: faultmodule.Hang})
	within(t, "the call", func() {
		_, err := c.GetSlotList(true)
		wantGone(t, err, "C_GetSlotList did not return in 1s, the call-limit of the keystore file")
	})
}

// TestLimitCure: a longer call-limit is the advice for calls that it limits, and for no others. Only functions of the
// library are named as PKCS #11 names them.
func TestLimitCure(t *testing.T) {
	for _, f := range []string{loadLibrary, ping, "Initialize", "Finalize", "OpenSession", "Login", "GenerateKeyPair"} {
		if got := limitCure(&Request{Function: f}); got != "" {
			t.Errorf("%s%s", f, got)
		}
	}
	for _, f := range []string{"GetSlotList", "Encrypt", "GenerateKey"} {
		if got := limitCure(&Request{Function: f}); !strings.Contains(got, "set a longer call-limit") {
			t.Errorf("%s: %q", f, got)
		}
	}
	for f, want := range map[string]string{loadLibrary: loadLibrary, ping: ping, "Login": "C_Login"} {
		if got := nameOf(&Request{Function: f}); got != want {
			t.Errorf("%s is named %s", f, got)
		}
	}
}

// TestLimitEndsWithCall: the limit of a call that has returned does not end the worker later.
func TestLimitEndsWithCall(t *testing.T) {
	for limit := 200 * time.Millisecond; ; limit *= 2 {
		p := load(t, softhsmtest.New(t).Module, 0).process.Load()
		begun := time.Now()
		if _, err := p.call(&Request{Function: ping}, limit); err != nil {
			wantGone(t, err, "ping did not return in") // the machine is busy
			continue
		}
		for over := false; !over; { // one more call after the limit
			over = time.Since(begun) > limit+limit/2
			if _, err := p.call(&Request{Function: ping}, time.Minute); err != nil {
				t.Fatal(err)
			}
		}
		return
	}
}

// TestCrash: a library that faults ends the worker as it ends a program in C. Go's runtime does not write its stacks.
func TestCrash(t *testing.T) {
	m, c := start(t, 0)
	for action, why := range map[faultmodule.Action]string{
		faultmodule.Abort: "signal: aborted", faultmodule.Segfault: "signal: segmentation fault"} {
		m.Order(faultmodule.GetSlotList, faultmodule.Order{Action: action})
		_, err := c.GetSlotList(true)
		wantGone(t, err, why)
		if err := c.Finalize(); err == nil {
			t.Error("Finalize succeeds without a process")
		}
		if err := c.Initialize(); err != nil {
			t.Fatal(err)
		}
	}
}

// TestUnknownFunction: a function that the worker does not know is an error of the call, and the worker goes on. A call
// before the library is loaded is an error too.
func TestUnknownFunction(t *testing.T) {
	_, c := start(t, 0)
	if _, err := c.do(&Request{Function: "Sing"}); err == nil || err.Error() != `there is no function "Sing"` {
		t.Error(err)
	}
	if _, err := c.GetSlotList(true); err != nil {
		t.Error(err)
	}
	var r Response
	if new(library).answer(&Request{Function: "Finalize"}, &r); r.err() == nil {
		t.Error("a call before the library is loaded succeeds")
	}
}

// TestResponseError: an error without a code keeps its text.
func TestResponseError(t *testing.T) {
	var r Response
	if r.fail(nil); r.err() != nil {
		t.Error(r.err())
	}
	if r.fail(errors.New("the text")); r.err() == nil || r.err().Error() != "the text" {
		t.Error(r.err())
	}
}

// TestHungCalls: when a call takes longer than its limit, the error of a call that runs for as long says that it hung.
// That of a call that has just begun does not, nor do the errors after a kill for another reason.
func TestHungCalls(t *testing.T) {
	const limit = time.Second
	m, c := start(t, limit)
	m.OrderAll(faultmodule.Order{Action: faultmodule.Hang, Times: faultmodule.Always}, faultmodule.GetSlotList,
		faultmodule.GetTokenInfo, faultmodule.GetMechanismList)
	long, short, killed := make(chan error), make(chan error), make(chan error)
	go func() { long <- errorOf(c.GetSlotList(true)) }()
	time.AfterFunc(limit*3/4, func() { short <- errorOf(c.GetTokenInfo(1)) })
	within(t, "the calls", func() {
		for name, call := range map[string]struct {
			result chan error
			hung   bool
		}{"long": {long, true}, "short": {short, false}} {
			var gone GoneError
			err := <-call.result
			if wantGone(t, err, "C_GetSlotList did not return in 1s"); errors.As(err, &gone) && gone.Hung != call.hung {
				t.Errorf("%s: %+v", name, gone)
			}
		}
	})
	if err := c.Initialize(); err == nil {
		t.Error("Initialize in a process that has ended")
	}
	_ = c.Finalize() // the process has ended
	if err := c.Initialize(); err != nil {
		t.Fatal(err)
	}
	go func() { killed <- errorOf(c.GetMechanismList(1)) }()
	time.AfterFunc(limit*3/4, func() { c.Kill("for the test") })
	within(t, "the call", func() {
		var gone GoneError
		if err := <-killed; !errors.As(err, &gone) || gone.Hung {
			t.Errorf("killed: %+v", err)
		}
	})
}
