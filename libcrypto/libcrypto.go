// Package libcrypto makes RSA signatures with the libcrypto of OpenSSL 3, which takes about a third of the time of Go's
// own code. The first call of NewSigner loads the library. If it is not installed, NewSigner returns an error, and the
// caller signs with the rsa.PrivateKey.
//
// The library gets digests only, so it parses no input of a client.
package libcrypto

/*
#cgo linux LDFLAGS: -ldl
#include <dlfcn.h>
#include <stddef.h>

// The parts of openssl/evp.h, rsa.h, crypto.h and err.h that sign needs (OpenSSL 3.0). The types are opaque.
typedef void pkey_t, pkey_ctx_t, md_t;

enum { pkey_rsa = 6, padding_pkcs1 = 1, padding_pss = 6, saltlen_digest = -1 };
enum { init_load_config = 0x40, init_no_atexit = 0x80000 };

// f has the functions of the library. load sets them.
static struct {
	int (*init)(unsigned long long options, const void *settings);
	pkey_t *(*parse)(int type, pkey_t **out, const unsigned char **der, long length);
	void (*free)(pkey_t *);
	pkey_ctx_t *(*ctx_new)(pkey_t *, void *engine);
	void (*ctx_free)(pkey_ctx_t *);
	int (*sign_init)(pkey_ctx_t *);
	int (*set_padding)(pkey_ctx_t *, int);
	int (*set_md)(pkey_ctx_t *, const md_t *);
	int (*set_saltlen)(pkey_ctx_t *, int);
	int (*sign)(pkey_ctx_t *, unsigned char *signature, size_t *length, const unsigned char *digest, size_t size);
	const md_t *(*md)(const char *name);
	unsigned long (*error)(void);
	void (*error_text)(unsigned long, char *text, size_t size);
	void (*clear_errors)(void);
} f;

// load loads the library. It returns NULL, or the reason why the library cannot be used.
static const char *load(const char *name) {
	void *library = dlopen(name, RTLD_NOW | RTLD_LOCAL);
	if (library == NULL) {
		return dlerror();
	}
	struct { void **at; const char *name; } all[] = {
		{(void **)&f.init, "OPENSSL_init_crypto"},
		{(void **)&f.parse, "d2i_PrivateKey"},
		{(void **)&f.free, "EVP_PKEY_free"},
		{(void **)&f.ctx_new, "EVP_PKEY_CTX_new"},
		{(void **)&f.ctx_free, "EVP_PKEY_CTX_free"},
		{(void **)&f.sign_init, "EVP_PKEY_sign_init"},
		{(void **)&f.set_padding, "EVP_PKEY_CTX_set_rsa_padding"},
		{(void **)&f.set_md, "EVP_PKEY_CTX_set_signature_md"},
		{(void **)&f.set_saltlen, "EVP_PKEY_CTX_set_rsa_pss_saltlen"},
		{(void **)&f.sign, "EVP_PKEY_sign"},
		{(void **)&f.md, "EVP_get_digestbyname"},
		{(void **)&f.error, "ERR_get_error"},
		{(void **)&f.error_text, "ERR_error_string_n"},
		{(void **)&f.clear_errors, "ERR_clear_error"},
	};
	for (size_t i = 0; i < sizeof all / sizeof *all; i++) {
		if ((*all[i].at = dlsym(library, all[i].name)) == NULL) {
			return dlerror(); // the library stays loaded: it may have started threads
		}
	}
	// No exit handler: it would free the library's data while other threads still sign.
	if (f.init(init_load_config | init_no_atexit, NULL) != 1) {
		return "OPENSSL_init_crypto failed";
	}
	return NULL;
}

// failed writes the first error of this thread to text, and clears the others.
static void failed(char *text, size_t size) {
	f.error_text(f.error(), text, size);
	f.clear_errors();
}

// held counts the keys that the library holds now. Only tests read it.
static long held;

static long held_keys(void) { return __atomic_load_n(&held, __ATOMIC_SEQ_CST); }

static pkey_t *parse(const unsigned char *der, long length, char *text, size_t size) {
	pkey_t *key = f.parse(pkey_rsa, NULL, &der, length);
	if (key == NULL) {
		failed(text, size);
		return NULL;
	}
	__atomic_add_fetch(&held, 1, __ATOMIC_SEQ_CST);
	return key;
}

static void release(pkey_t *key) {
	f.free(key);
	__atomic_sub_fetch(&held, 1, __ATOMIC_SEQ_CST);
}

// sign returns 1, or 0 and an error in text.
static int sign(pkey_t *key, const char *md, int padding, const unsigned char *digest, size_t size,
	unsigned char *signature, size_t *length, char *text, size_t text_size) {
	const md_t *hash = f.md(md);
	pkey_ctx_t *ctx = f.ctx_new(key, NULL);
	int ok = hash != NULL && ctx != NULL && f.sign_init(ctx) > 0 && f.set_padding(ctx, padding) > 0 &&
		f.set_md(ctx, hash) > 0 && (padding != padding_pss || f.set_saltlen(ctx, saltlen_digest) > 0) &&
		f.sign(ctx, signature, length, digest, size) > 0;
	if (!ok) {
		failed(text, text_size);
	}
	f.ctx_free(ctx);
	return ok;
}
*/
import "C"

import (
	"crypto"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"runtime"
	"sync"
	"unsafe"
)

// Name is the file of the library, as the system's loader finds it.
const Name = "libcrypto.so.3"

// load loads the library once. Its error says why no signer can be made.
var load = sync.OnceValue(func() error { return loadFrom(Name) })

func loadFrom(name string) error {
	file := append([]byte(name), 0)
	runtime.LockOSThread() // dlerror belongs to the thread
	defer runtime.UnlockOSThread()
	if why := C.load((*C.char)(unsafe.Pointer(&file[0]))); why != nil {
		return errors.New(C.GoString(why))
	}
	return nil
}

// busy limits how many calls of the library run at the same time. Each call holds a thread, so without the limit a
// burst of connections would start a thread for each.
var busy = make(chan struct{}, runtime.GOMAXPROCS(0))

// digests has the library's name of each hash whose digests it signs. TLS uses no others.
var digests = map[crypto.Hash][]byte{crypto.SHA256: []byte("SHA256\x00"), crypto.SHA384: []byte("SHA384\x00"),
	crypto.SHA512: []byte("SHA512\x00")}

// Signer is a crypto.Signer of an RSA key. The library signs digests of SHA-256, SHA-384 and SHA-512: with PKCS #1
// v1.5, and with PSS if the salt is as long as the digest. Go's own code makes all other signatures, and signs if the
// library fails. A Signer may be used by several goroutines.
//
// The library has a copy of the key. It wipes the copy when nothing uses the Signer any more.
type Signer struct {
	key    *rsa.PrivateKey
	pkey   unsafe.Pointer
	failed func(error)
}

var _ crypto.Signer = (*Signer)(nil)

// NewSigner gives a key to the library. It returns an error unless the library then makes a good signature of each
// kind. Whenever a later call of the library fails, failed is called with the error.
func NewSigner(key *rsa.PrivateKey, failed func(error)) (*Signer, error) {
	if err := load(); err != nil {
		return nil, err
	}
	der := x509.MarshalPKCS1PrivateKey(key)
	defer clear(der)
	pkey, err := parse(der)
	if err != nil {
		return nil, err
	}
	s := &Signer{key: key, pkey: pkey, failed: failed}
	runtime.AddCleanup(s, func(p unsafe.Pointer) { C.release(p) }, pkey)
	if err := s.prove(); err != nil {
		return nil, err
	}
	return s, nil
}

// parse gives a key in PKCS #1 to the library. The caller must release the result.
func parse(der []byte) (unsafe.Pointer, error) {
	var text [256]C.char
	pkey := C.parse((*C.uchar)(&der[0]), C.long(len(der)), &text[0], C.size_t(len(text)))
	if pkey == nil {
		return nil, errors.New(C.GoString(&text[0]))
	}
	return pkey, nil
}

// copies returns the number of keys that the library holds now. It is for tests, which cannot use cgo.
func copies() int { return int(C.held_keys()) }

// prove makes a signature of each kind, and verifies it.
func (s *Signer) prove() error {
	digest := sha256.Sum256([]byte("claviger"))
	signature, err := s.sign(digest[:], crypto.SHA256, C.padding_pkcs1)
	if err == nil {
		err = rsa.VerifyPKCS1v15(&s.key.PublicKey, crypto.SHA256, digest[:], signature)
	}
	if err != nil {
		return fmt.Errorf("a signature of PKCS #1 v1.5: %w", err)
	}
	if signature, err = s.sign(digest[:], crypto.SHA256, C.padding_pss); err == nil {
		err = rsa.VerifyPSS(&s.key.PublicKey, crypto.SHA256, digest[:], signature, salt)
	}
	if err != nil {
		return fmt.Errorf("a signature of PSS: %w", err)
	}
	return nil
}

// salt is the salt length of the library's PSS signatures, for rsa.VerifyPSS.
var salt = &rsa.PSSOptions{SaltLength: rsa.PSSSaltLengthEqualsHash}

// Public returns the public key.
func (s *Signer) Public() crypto.PublicKey { return &s.key.PublicKey }

// Sign signs a digest.
func (s *Signer) Sign(random io.Reader, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	hash, padding := opts.HashFunc(), C.int(C.padding_pkcs1)
	if pss, ok := opts.(*rsa.PSSOptions); ok {
		if padding = C.padding_pss; pss.SaltLength != rsa.PSSSaltLengthEqualsHash && pss.SaltLength != hash.Size() {
			return s.key.Sign(random, digest, opts)
		}
	}
	if digests[hash] == nil || len(digest) != hash.Size() {
		return s.key.Sign(random, digest, opts)
	}
	signature, err := s.sign(digest, hash, padding)
	if err != nil {
		s.failed(err)
		return s.key.Sign(random, digest, opts)
	}
	return signature, nil
}

func (s *Signer) sign(digest []byte, hash crypto.Hash, padding C.int) ([]byte, error) {
	busy <- struct{}{}
	defer func() { <-busy }()
	signature, name := make([]byte, s.key.Size()), digests[hash]
	length := C.size_t(len(signature))
	var text [256]C.char
	ok := C.sign(s.pkey, (*C.char)(unsafe.Pointer(&name[0])), padding, (*C.uchar)(&digest[0]), C.size_t(len(digest)),
		(*C.uchar)(&signature[0]), &length, &text[0], C.size_t(len(text)))
	runtime.KeepAlive(s)
	if ok != 1 {
		return nil, errors.New(C.GoString(&text[0]))
	}
	if int(length) != len(signature) {
		return nil, fmt.Errorf("a signature has %d bytes, not %d", length, len(signature))
	}
	return signature, nil
}
