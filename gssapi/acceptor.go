//go:build cgo && !nogssapi

package gssapi

/*
#cgo LDFLAGS: -lgssapi_krb5 -lkrb5
#include <stdlib.h>
#include <string.h>
#include <gssapi/gssapi.h>
#include <gssapi/gssapi_ext.h>
#include <krb5.h>
#include "texts.h"

// acquire gets the credentials of an acceptor with all keys of a keytab.
static OM_uint32 acquire(OM_uint32 *minor, const char *keytab, const char *rcache, gss_cred_id_t *out) {
	gss_key_value_element_desc elements[2] = {{"keytab", keytab}, {"rcache", rcache}};
	gss_key_value_set_desc store = {rcache == NULL ? 1 : 2, elements};
	return gss_acquire_cred_from(minor, GSS_C_NO_NAME, GSS_C_INDEFINITE, GSS_C_NO_OID_SET, GSS_C_ACCEPT,
		&store, out, NULL, NULL);
}

// accepted is the result for a token. The texts must be freed; NULL means none.
typedef struct {
	OM_uint32 major, minor;
	char *client, *service, *reply;
	size_t reply_len;
	char *general, *specific; // texts of the status
} accepted;

// accept_token accepts a token and reads the texts of the status on the same thread, because the library keeps these
// texts for each thread.
static void accept_token(gss_cred_id_t cred, const void *token, size_t len, accepted *out) {
	gss_ctx_id_t ctx = GSS_C_NO_CONTEXT;
	gss_name_t client = GSS_C_NO_NAME, service = GSS_C_NO_NAME;
	gss_buffer_desc in = {len, (void *)token}, reply = GSS_C_EMPTY_BUFFER;
	OM_uint32 ignored;
	memset(out, 0, sizeof *out);
	out->major = gss_accept_sec_context(&out->minor, &ctx, cred, &in, GSS_C_NO_CHANNEL_BINDINGS, &client, NULL, &reply,
		NULL, NULL, NULL);
	if (GSS_ERROR(out->major)) {
		out->general = text_of_status(out->major, GSS_C_GSS_CODE);
		out->specific = text_of_status(out->minor, GSS_C_MECH_CODE);
	} else if (out->major == GSS_S_COMPLETE) {
		out->client = text_of_name(client);
		if (gss_inquire_context(&ignored, ctx, NULL, &service, NULL, NULL, NULL, NULL, NULL) == GSS_S_COMPLETE)
			out->service = text_of_name(service);
		if (reply.length > 0 && (out->reply = malloc(reply.length)) != NULL) {
			memcpy(out->reply, reply.value, reply.length);
			out->reply_len = reply.length;
		}
	}
	gss_release_buffer(&ignored, &reply);
	gss_release_name(&ignored, &client);
	gss_release_name(&ignored, &service);
	gss_delete_sec_context(&ignored, &ctx, GSS_C_NO_BUFFER);
}

static void free_accepted(accepted *a) {
	free(a->client); free(a->service); free(a->reply); free(a->general); free(a->specific);
}

static char *copy_of(const char *s) { return s == NULL ? NULL : strdup(s); }

// next_entry reads the next entry of a keytab. The caller frees the name.
static krb5_error_code next_entry(krb5_context ctx, krb5_keytab kt, krb5_kt_cursor *cursor, char **name, int *vno,
	int *enctype) {
	krb5_keytab_entry e;
	char *s = NULL;
	krb5_error_code code = krb5_kt_next_entry(ctx, kt, &e, cursor);
	if (code != 0) return code;
	code = krb5_unparse_name(ctx, e.principal, &s);
	if (code == 0) { *name = copy_of(s); krb5_free_unparsed_name(ctx, s); }
	*vno = e.vno;
	*enctype = e.key.enctype;
	krb5_free_keytab_entry_contents(ctx, &e);
	return code;
}
*/
import "C"

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"slices"
	"strings"
	"sync"
	"unsafe"
)

// Available reports whether this build supports Kerberos.
const Available = true

// Acceptor accepts tokens with the keys of a keytab. Its methods may be called from many goroutines.
type Acceptor struct {
	keytab     string // path
	principals []string
	every      bool // accept each HTTP/... principal

	mu     sync.RWMutex // held for reading while a token is checked
	cred   C.gss_cred_id_t
	closed bool
}

// NewAcceptor opens the keytab, and checks that it has keys of the principals.
func NewAcceptor(conf AcceptorConfig) (*Acceptor, error) {
	if len(conf.Principals) == 0 {
		return nil, errors.New("no principal to accept tickets for")
	}
	a := &Acceptor{keytab: conf.Keytab, principals: conf.Principals,
		every: slices.Equal(conf.Principals, []string{"*"})}
	if err := a.Check(); err != nil {
		return nil, err
	}
	keytab := C.CString("FILE:" + conf.Keytab)
	defer C.free(unsafe.Pointer(keytab))
	var rcache *C.char
	if conf.ReplayCache != "" {
		rcache = C.CString(conf.ReplayCache)
		defer C.free(unsafe.Pointer(rcache))
	}
	runtime.LockOSThread() // the library keeps the texts of a status for each thread
	defer runtime.UnlockOSThread()
	var minor C.OM_uint32
	if major := C.acquire(&minor, keytab, rcache, &a.cred); major != C.GSS_S_COMPLETE {
		return nil, fmt.Errorf("keytab %s: %w", conf.Keytab, explain(statusText(major, C.GSS_C_GSS_CODE),
			statusText(minor, C.GSS_C_MECH_CODE)))
	}
	return a, nil
}

// Check reads the keytab file again. It returns an error if the file cannot be read, or has no key of one of our
// principals. Then clients cannot log in.
func (a *Acceptor) Check() error {
	known, err := principalsOf(a.keytab)
	if err != nil {
		return fmt.Errorf("keytab %s: %w", a.keytab, err)
	}
	has := func(p string) bool {
		return slices.ContainsFunc(known, func(k string) bool { return isPrincipal(k, p) })
	}
	for _, p := range a.principals {
		if !a.every && !has(p) {
			return fmt.Errorf("keytab %s has no key of %s; it has keys of %s", a.keytab, p, strings.Join(known, ", "))
		}
	}
	if a.every && !slices.ContainsFunc(known, func(k string) bool { return strings.HasPrefix(k, "HTTP/") }) {
		return fmt.Errorf("keytab %s has no key of a principal HTTP/...; it has keys of %s", a.keytab,
			strings.Join(known, ", "))
	}
	return nil
}

func statusText(code C.OM_uint32, kind C.int) string {
	s := C.text_of_status(code, kind)
	defer C.free(unsafe.Pointer(s))
	return C.GoString(s)
}

// isPrincipal reports whether the principal full has that name. name may have a realm or not.
func isPrincipal(full, name string) bool {
	if !strings.Contains(name, "@") {
		full, _, _ = strings.Cut(full, "@")
	}
	return full == name
}

// principalsOf returns the principals with keys in a keytab.
func principalsOf(keytab string) ([]string, error) {
	entries, err := Keytab(keytab)
	var found []string
	for _, e := range entries {
		if !slices.Contains(found, e.Principal) {
			found = append(found, e.Principal)
		}
	}
	return found, err
}

// Keytab returns the entries of a keytab. A keytab without entries is an error.
func Keytab(keytab string) ([]KeytabEntry, error) {
	f, err := os.Open(keytab) // the library's error does not contain the reason
	if err != nil {
		return nil, err
	}
	_ = f.Close()
	var ctx C.krb5_context
	if code := C.krb5_init_context(&ctx); code != 0 {
		return nil, fmt.Errorf("reading krb5.conf: error %d of the library", code)
	}
	defer C.krb5_free_context(ctx)
	failed := func(code C.krb5_error_code) error {
		text := C.krb5_get_error_message(ctx, code)
		defer C.krb5_free_error_message(ctx, text)
		return errors.New(C.GoString(text))
	}
	name := C.CString("FILE:" + keytab)
	defer C.free(unsafe.Pointer(name))
	var kt C.krb5_keytab
	if code := C.krb5_kt_resolve(ctx, name, &kt); code != 0 {
		return nil, failed(code)
	}
	defer C.krb5_kt_close(ctx, kt)
	var cursor C.krb5_kt_cursor
	if code := C.krb5_kt_start_seq_get(ctx, kt, &cursor); code != 0 {
		return nil, failed(code)
	}
	defer C.krb5_kt_end_seq_get(ctx, kt, &cursor)
	var found []KeytabEntry
	for {
		var p *C.char
		var vno, enctype C.int
		switch code := C.next_entry(ctx, kt, &cursor, &p, &vno, &enctype); {
		case code == C.KRB5_KT_END && len(found) == 0:
			return nil, errors.New("it is empty")
		case code == C.KRB5_KT_END:
			return found, nil
		case code != 0:
			return nil, failed(code)
		}
		found = append(found, KeytabEntry{C.GoString(p), int(vno), encryptionName(int(enctype))})
		C.free(unsafe.Pointer(p))
	}
}

// Accept returns the sender of a token. Errors are of type *Error.
func (a *Acceptor) Accept(token []byte) (Accepted, error) {
	if err := check(token); err != nil {
		return Accepted{}, err
	}
	a.mu.RLock()
	defer a.mu.RUnlock()
	if a.closed {
		return Accepted{}, &Error{Kind: Other, Detail: "the acceptor is closed", Java: unspecified}
	}
	var out C.accepted
	C.accept_token(a.cred, unsafe.Pointer(&token[0]), C.size_t(len(token)), &out)
	defer C.free_accepted(&out)
	switch {
	case out.general != nil:
		return Accepted{}, explain(C.GoString(out.general), C.GoString(out.specific))
	case out.major != C.GSS_S_COMPLETE:
		return Accepted{}, badToken("the client began a negotiation of several steps; it must begin with Kerberos",
			"GSSException: Defective token detected")
	case out.client == nil || out.service == nil:
		return Accepted{}, badToken("the names in the ticket cannot be read", "GSSException: Defective token detected")
	}
	accepted := Accepted{Client: C.GoString(out.client), Service: C.GoString(out.service),
		Reply: C.GoBytes(unsafe.Pointer(out.reply), C.int(out.reply_len))}
	if !a.isOwnService(accepted.Service) {
		e := &Error{Kind: WrongService, Detail: fmt.Sprintf("the ticket of %s is for %s, and this service is %s",
			accepted.Client, accepted.Service, strings.Join(a.principals, ", "))}
		e.advise("")
		return Accepted{}, e
	}
	return accepted, nil
}

func (a *Acceptor) isOwnService(service string) bool {
	if a.every {
		return strings.HasPrefix(service, "HTTP/")
	}
	return slices.ContainsFunc(a.principals, func(p string) bool { return isPrincipal(service, p) })
}

// Close frees the credentials. After it, Accept refuses all tokens.
func (a *Acceptor) Close() {
	a.mu.Lock()
	defer a.mu.Unlock()
	if !a.closed {
		var minor C.OM_uint32
		C.gss_release_cred(&minor, &a.cred)
		a.closed = true
	}
}

// DefaultRealm returns the default realm of krb5.conf.
func DefaultRealm() (string, error) {
	var ctx C.krb5_context
	if code := C.krb5_init_context(&ctx); code != 0 {
		return "", fmt.Errorf("reading krb5.conf: error %d of the library", code)
	}
	defer C.krb5_free_context(ctx)
	var realm *C.char
	if code := C.krb5_get_default_realm(ctx, &realm); code != 0 {
		text := C.krb5_get_error_message(ctx, code)
		defer C.krb5_free_error_message(ctx, text)
		return "", errors.New(C.GoString(text))
	}
	defer C.krb5_free_default_realm(ctx, realm)
	return C.GoString(realm), nil
}
