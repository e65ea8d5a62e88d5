package cryptoki

/*
#cgo linux LDFLAGS: -ldl
#include <dlfcn.h>
#include <signal.h>
#include <stdlib.h>

// The parts of pkcs11.h that encrypt needs (OASIS PKCS #11 v2.40). All unsigned longs of Cryptoki have the size of
// long.
typedef unsigned long ulong_t;

typedef struct {
	ulong_t mechanism;
	void *parameter;
	ulong_t parameter_len;
} mechanism_t;

// CK_FUNCTION_LIST: the version, and the functions in the standard's order.
typedef struct {
	unsigned char version[2];
	void *functions[68];
} functions_t;

enum { encrypt_init = 29, sign_init = 42 }; // C_Encrypt and C_Sign follow

// load loads the library of that path, which is loaded already and so has the same state, and returns its functions.
// It frees the path.
static functions_t *load(char *path, void **library) {
	functions_t *list = NULL;
	*library = dlopen(path, RTLD_LAZY);
	free(path);
	if (*library == NULL) {
		return NULL;
	}
	ulong_t (*get)(functions_t **) = (ulong_t (*)(functions_t **))dlsym(*library, "C_GetFunctionList");
	if (get == NULL || get(&list) != 0) {
		return NULL;
	}
	return list;
}

static void unload(void *library) {
	if (library != NULL) {
		dlclose(library);
	}
}

// operate calls a function that begins an operation with a key, such as C_EncryptInit, and the next one of the list,
// which ends the operation.
static ulong_t operate(functions_t *list, int begin, ulong_t session, ulong_t mechanism, void *parameter,
	ulong_t parameter_len, ulong_t key, unsigned char *in, ulong_t in_len, unsigned char *out, ulong_t *out_len) {
	mechanism_t m = { mechanism, parameter, parameter_len };
	ulong_t result = ((ulong_t (*)(ulong_t, mechanism_t *, ulong_t))list->functions[begin])(session, &m, key);
	if (result != 0) {
		return result;
	}
	return ((ulong_t (*)(ulong_t, unsigned char *, ulong_t, unsigned char *, ulong_t *))list->functions[begin + 1])(
		session, in, in_len, out, out_len);
}

static void default_signals(void) {
	signal(SIGABRT, SIG_DFL);
	signal(SIGBUS, SIG_DFL);
	signal(SIGFPE, SIG_DFL);
	signal(SIGILL, SIG_DFL);
	signal(SIGSEGV, SIG_DFL);
}
*/
import "C"

import (
	"fmt"
	"unsafe"

	p11 "github.com/miekg/pkcs11"
)

// library is a loaded PKCS#11 library: p11.Ctx with an Encrypt and a Sign of its own. p11.Ctx first asks the library
// for the length of the result, and encrypts by two calls from Go to C. The length of a result of AES without padding
// is known, and Sign has room for the longest signature, so one call from Go to C is enough.
type library struct {
	*p11.Ctx
	loaded    unsafe.Pointer // of dlopen
	functions *C.functions_t
}

var _ Library = (*library)(nil)

// Load loads a library into this process. It returns nil if the library cannot be loaded.
func Load(path string) Library {
	ctx := p11.New(path)
	if ctx == nil {
		return nil
	}
	l := &library{Ctx: ctx}
	if l.functions = C.load(C.CString(path), &l.loaded); l.functions == nil {
		l.Destroy()
		return nil
	}
	return l
}

// DefaultSignals restores the default actions of the signals that a fault in C code raises: the process ends, as a
// program in C does. Go's runtime would write the stacks of all goroutines, which say nothing about C.
func DefaultSignals() { C.default_signals() }

// Destroy unloads the library. No call may run.
func (l *library) Destroy() {
	l.Ctx.Destroy()
	C.unload(l.loaded)
	l.loaded, l.functions = nil, nil
}

// Encrypt calls C_EncryptInit and C_Encrypt.
func (l *library) Encrypt(s p11.SessionHandle, m *p11.Mechanism, key p11.ObjectHandle, in []byte) ([]byte, error) {
	if len(in) == 0 {
		return nil, p11.Error(p11.CKR_DATA_LEN_RANGE)
	}
	return l.operate(C.encrypt_init, s, m, key, in, NewBuffer(len(in)))
}

// MaxSignature is the size of the longest signature, in bytes: that of an RSA key of 8192 bits.
const MaxSignature = 1024

// Sign calls C_SignInit and C_Sign.
func (l *library) Sign(s p11.SessionHandle, m *p11.Mechanism, key p11.ObjectHandle, data []byte) ([]byte, error) {
	if len(data) == 0 {
		return nil, p11.Error(p11.CKR_DATA_LEN_RANGE)
	}
	return l.operate(C.sign_init, s, m, key, data, make([]byte, MaxSignature))
}

// operate calls the function with that number in the list, and the next one. The result is in out.
func (l *library) operate(begin C.int, s p11.SessionHandle, m *p11.Mechanism, key p11.ObjectHandle, in,
	out []byte) ([]byte, error) {
	var parameter unsafe.Pointer
	if len(m.Parameter) > 0 {
		parameter = unsafe.Pointer(&m.Parameter[0])
	}
	n := C.ulong_t(len(out))
	result := C.operate(l.functions, begin, C.ulong_t(s), C.ulong_t(m.Mechanism), parameter,
		C.ulong_t(len(m.Parameter)), C.ulong_t(key), (*C.uchar)(&in[0]), C.ulong_t(len(in)), (*C.uchar)(&out[0]), &n)
	if result != 0 {
		return nil, p11.Error(result)
	}
	if int(n) > len(out) {
		return nil, fmt.Errorf("the HSM made %d bytes of %d", n, len(in))
	}
	return out[:n], nil
}

// DecryptInit calls C_DecryptInit with CKM_RSA_PKCS_OAEP.
func (l *library) DecryptInit(s p11.SessionHandle, padding *p11.OAEPParams, key p11.ObjectHandle) error {
	return l.Ctx.DecryptInit(s, []*p11.Mechanism{p11.NewMechanism(p11.CKM_RSA_PKCS_OAEP, padding)}, key)
}
