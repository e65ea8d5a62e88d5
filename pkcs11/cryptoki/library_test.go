package cryptoki

import (
	"bytes"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	p11 "github.com/miekg/pkcs11"

	"claviger/internal/processtest"
)

// source is a PKCS#11 library that has some functions only. A macro chooses what is wrong with it.
const source = `
typedef unsigned long ulong_t;
typedef struct { unsigned char version[2]; void *functions[68]; } functions_t;
static functions_t list;

static ulong_t encrypt_init(ulong_t session, void *mechanism, ulong_t key) { return session == 7 ? 0xb3 : 0; }

static ulong_t encrypt(ulong_t session, unsigned char *in, ulong_t n, unsigned char *out, ulong_t *out_len) {
	for (ulong_t i = 0; i < n; i++)
		out[i] = in[i] ^ 0xff;
	*out_len = session == 8 ? n + 1 : n;
	return session == 9 ? 0x30 : 0;
}

static ulong_t decrypt_init(ulong_t session, void *mechanism, ulong_t key) { return session == 7 ? 0xb3 : 0; }

static ulong_t sign_init(ulong_t session, void *mechanism, ulong_t key) { return session == 7 ? 0xb3 : 0; }

static ulong_t sign(ulong_t session, unsigned char *in, ulong_t n, unsigned char *out, ulong_t *out_len) {
	for (ulong_t i = 0; i < 256; i++)
		out[i] = in[i % n];
	*out_len = session == 8 ? *out_len + 1 : 256;
	return session == 9 ? 0x30 : 0;
}

ulong_t C_GetFunctionList(functions_t **p) {
	static int asked;
	if (FAILS && asked++ > 0)
		return 5;
	list.functions[29] = encrypt_init;
	list.functions[30] = encrypt;
	list.functions[33] = decrypt_init;
	list.functions[42] = sign_init;
	list.functions[43] = sign;
	*p = &list;
	return 0;
}
`

// build compiles source.
func build(t *testing.T, fails string) (path string) {
	t.Helper()
	dir := t.TempDir()
	code := filepath.Join(dir, "library.c")
	if err := os.WriteFile(code, []byte(source), 0o600); err != nil {
		t.Fatal(err)
	}
	path = filepath.Join(dir, "library.so")
	out, err := exec.CommandContext(t.Context(), "cc", "-shared", "-fPIC", "-DFAILS="+fails, "-o", path,
		code).CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	return path
}

// TestEncrypt: the result and the errors of C_EncryptInit and C_Encrypt reach the caller. A library that reports more
// bytes than fit is an error, and so is an empty text, for which C_Encrypt is not called.
func TestEncrypt(t *testing.T) {
	path := build(t, "0")
	l := Load(path)
	if l == nil {
		t.Fatal("the library is not loaded")
	}
	m := p11.NewMechanism(p11.CKM_AES_ECB, nil)
	in := bytes.Repeat([]byte{1}, 48)
	got, err := l.Encrypt(1, m, 2, in)
	if err != nil || !bytes.Equal(got, bytes.Repeat([]byte{0xfe}, 48)) {
		t.Errorf("%x, %v", got, err)
	}
	for session, want := range map[p11.SessionHandle]uint{7: p11.CKR_SESSION_HANDLE_INVALID, 9: p11.CKR_DEVICE_ERROR} {
		if got, err := l.Encrypt(session, m, 2, in); got != nil || !errors.Is(err, p11.Error(want)) {
			t.Errorf("session %d: %x, %v", session, got, err)
		}
	}
	if got, err := l.Encrypt(8, m, 2, in); got != nil || err == nil || err.Error() != "the HSM made 49 bytes of 48" {
		t.Errorf("a result that is too long: %x, %v", got, err)
	}
	if got, err := l.Encrypt(1, m, 2, nil); got != nil || !errors.Is(err, p11.Error(p11.CKR_DATA_LEN_RANGE)) {
		t.Errorf("no data: %x, %v", got, err)
	}
	oaep := p11.NewOAEPParams(p11.CKM_SHA256, p11.CKG_MGF1_SHA256, p11.CKZ_DATA_SPECIFIED, nil)
	if err := l.DecryptInit(1, oaep, 2); err != nil {
		t.Error(err)
	}
	if err := l.DecryptInit(7, oaep, 2); !errors.Is(err, p11.Error(p11.CKR_SESSION_HANDLE_INVALID)) {
		t.Errorf("C_DecryptInit: %v", err)
	}
	l.Destroy()
	if processtest.Mapped(t, path) {
		t.Error("Destroy left the library in memory")
	}
}

// TestSign: the result and the errors of C_SignInit and C_Sign reach the caller.
func TestSign(t *testing.T) {
	l := Load(build(t, "0"))
	if l == nil {
		t.Fatal("the library is not loaded")
	}
	defer l.Destroy()
	m := p11.NewMechanism(p11.CKM_RSA_PKCS, nil)
	got, err := l.Sign(1, m, 2, []byte("ab"))
	if err != nil || !bytes.Equal(got, bytes.Repeat([]byte("ab"), 128)) {
		t.Errorf("%x, %v", got, err)
	}
	for session, want := range map[p11.SessionHandle]error{7: p11.Error(p11.CKR_SESSION_HANDLE_INVALID),
		9: p11.Error(p11.CKR_DEVICE_ERROR)} {
		if got, err := l.Sign(session, m, 2, []byte("ab")); got != nil || !errors.Is(err, want) {
			t.Errorf("session %d: %x, %v", session, got, err)
		}
	}
	if got, err := l.Sign(8, m, 2, []byte("ab")); got != nil || err == nil ||
		err.Error() != "the HSM made 1025 bytes of 2" {
		t.Errorf("a result that is too long: %x, %v", got, err)
	}
	if got, err := l.Sign(1, m, 2, nil); got != nil || !errors.Is(err, p11.Error(p11.CKR_DATA_LEN_RANGE)) {
		t.Errorf("no data: %x, %v", got, err)
	}
}

// TestLoadFails: a file that is no PKCS#11 library is not loaded, and does not stay in memory.
func TestLoadFails(t *testing.T) {
	text := filepath.Join(t.TempDir(), "text.so")
	if err := os.WriteFile(text, []byte("text\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for what, path := range map[string]string{"no file": text + ".none", "text": text,
		"a library that gives its functions once only": build(t, "1")} {
		if l := Load(path); l != nil || processtest.Mapped(t, path) {
			t.Errorf("%s: %v, in memory: %t", what, l, processtest.Mapped(t, path))
		}
	}
}
