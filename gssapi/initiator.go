//go:build cgo && !nogssapi

package gssapi

/*
#include <stdlib.h>
#include <string.h>
#include <gssapi/gssapi.h>
#include <gssapi/gssapi_ext.h>
#include <gssapi/gssapi_krb5.h>
#include "texts.h"

static gss_OID_desc spnego_mech = {6, "\x2b\x06\x01\x05\x05\x02"};

// outcome is the result of a call. The texts must be freed; NULL means none.
typedef struct {
	OM_uint32 major;
	void *out;
	size_t out_len;
	char *general, *specific;
} outcome;

static void free_outcome(outcome *o) { free(o->out); free(o->general); free(o->specific); }

// keep copies the result of a call, or the texts of its failure.
static void keep(outcome *o, OM_uint32 major, OM_uint32 minor, gss_buffer_t b) {
	OM_uint32 ignored;
	memset(o, 0, sizeof *o);
	o->major = major;
	if (GSS_ERROR(major)) {
		o->general = text_of_status(major, GSS_C_GSS_CODE);
		o->specific = text_of_status(minor, GSS_C_MECH_CODE);
	} else if (b != NULL && b->length > 0 && (o->out = malloc(b->length)) != NULL) {
		memcpy(o->out, b->value, b->length);
		o->out_len = b->length;
	}
	if (b != NULL) gss_release_buffer(&ignored, b);
}

static void import_name(char *text, int host_based, gss_name_t *name, outcome *o) {
	OM_uint32 minor, major;
	gss_buffer_desc b = {strlen(text), text};
	major = gss_import_name(&minor, &b, host_based ? GSS_C_NT_HOSTBASED_SERVICE : (gss_OID)GSS_KRB5_NT_PRINCIPAL_NAME,
		name);
	keep(o, major, minor, NULL);
}

static void login(gss_name_t who, const char *keytab, const char *ccache, gss_cred_id_t *cred, outcome *o) {
	OM_uint32 minor, major;
	gss_key_value_element_desc e[2];
	gss_key_value_set_desc store = {0, e};
	gss_OID_desc krb5 = *(gss_OID)gss_mech_krb5, both[2] = {krb5, spnego_mech};
	gss_OID_set_desc mechs = {2, both};
	if (keytab != NULL) { e[store.count].key = "client_keytab"; e[store.count++].value = keytab; }
	if (ccache != NULL) { e[store.count].key = "ccache"; e[store.count++].value = ccache; }
	major = gss_acquire_cred_from(&minor, who, GSS_C_INDEFINITE, &mechs, GSS_C_INITIATE,
		store.count > 0 ? &store : NULL, cred, NULL, NULL);
	keep(o, major, minor, NULL);
}

static void init_step(gss_cred_id_t cred, gss_ctx_id_t *ctx, gss_name_t target, int spnego, int mutual, void *in,
	size_t len, outcome *o) {
	OM_uint32 minor, major;
	gss_buffer_desc token = {len, in}, out = GSS_C_EMPTY_BUFFER;
	major = gss_init_sec_context(&minor, cred, ctx, target, spnego ? &spnego_mech : (gss_OID)gss_mech_krb5,
		(mutual ? GSS_C_MUTUAL_FLAG : 0) | GSS_C_INTEG_FLAG, 0, GSS_C_NO_CHANNEL_BINDINGS,
		len > 0 ? &token : GSS_C_NO_BUFFER, NULL, &out, NULL, NULL);
	keep(o, major, minor, &out);
}

static void wrap(gss_ctx_id_t ctx, void *in, size_t len, outcome *o) {
	OM_uint32 minor, major;
	gss_buffer_desc message = {len, in}, out = GSS_C_EMPTY_BUFFER;
	major = gss_wrap(&minor, ctx, 0, GSS_C_QOP_DEFAULT, &message, NULL, &out);
	keep(o, major, minor, &out);
}

static void unwrap(gss_ctx_id_t ctx, void *in, size_t len, outcome *o) {
	OM_uint32 minor, major;
	gss_buffer_desc token = {len, in}, out = GSS_C_EMPTY_BUFFER;
	major = gss_unwrap(&minor, ctx, &token, &out, NULL, NULL);
	keep(o, major, minor, &out);
}
*/
import "C"

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"strings"
	"unsafe"
)

// Initiator proves our identity to one service, once. It must be used by one goroutine.
type Initiator struct {
	conf   InitiatorConfig
	cred   C.gss_cred_id_t
	target C.gss_name_t
	ctx    C.gss_ctx_id_t
	done   bool
	closed bool
}

// NewInitiator logs in with a keytab or with a credential cache. All initiators with the same keytab and principal
// share the tickets of the keytab, and the library renews these tickets.
func NewInitiator(conf InitiatorConfig) (*Initiator, error) {
	if conf.Keytab != "" {
		f, err := os.Open(conf.Keytab) // the library's error does not contain the reason
		if err != nil {
			return nil, asLogin(&Error{Kind: NoCredentials, Detail: "keytab: " + err.Error()}, &conf)
		}
		_ = f.Close()
		if conf.Principal == "" {
			return nil, &Error{Kind: NoCredentials, Detail: "keytab " + conf.Keytab + ": no principal is named"}
		}
	}
	i := &Initiator{conf: conf}
	if err := i.open(); err != nil {
		_ = i.Close()
		return nil, asLogin(err, &i.conf)
	}
	return i, nil
}

func (i *Initiator) open() error {
	var who, target C.gss_name_t // not in i, because C must not get memory with Go pointers
	defer func() {
		var minor C.OM_uint32
		C.gss_release_name(&minor, &who)
	}()
	if i.conf.Principal != "" {
		if err := importName(i.conf.Principal, false, &who); err != nil {
			return err
		}
	}
	service, _, _ := strings.Cut(i.conf.Target, "@")
	if err := importName(i.conf.Target, !strings.Contains(service, "/"), &target); err != nil {
		return err
	}
	i.target = target
	var keytab, ccache *C.char
	switch {
	case i.conf.Keytab != "":
		keytab = C.CString("FILE:" + i.conf.Keytab)
		ccache = C.CString(fmt.Sprintf("MEMORY:claviger-%x",
			sha256.Sum256([]byte(i.conf.Keytab+"\x00"+i.conf.Principal))))
	case i.conf.CCache != "":
		ccache = C.CString(i.conf.CCache)
	}
	defer C.free(unsafe.Pointer(keytab))
	defer C.free(unsafe.Pointer(ccache))
	var o C.outcome
	C.login(who, keytab, ccache, &i.cred, &o)
	_, err := result(&o)
	return err
}

// importName converts a principal, or "service@host" if hostBased is true, to the library's form.
func importName(text string, hostBased bool, name *C.gss_name_t) error {
	s := C.CString(text)
	defer C.free(unsafe.Pointer(s))
	var o C.outcome
	C.import_name(s, flag(hostBased), name, &o)
	_, err := result(&o)
	return err
}

// result returns the result of a call, and frees it.
func result(o *C.outcome) ([]byte, error) {
	defer C.free_outcome(o)
	if o.general != nil {
		return nil, explain(C.GoString(o.general), C.GoString(o.specific))
	}
	return C.GoBytes(o.out, C.int(o.out_len)), nil
}

var errNotReady = errors.New("gssapi: the context is not established yet, or is closed")

// Step takes the other side's token (none at first) and returns the next token to send. If done is true, the exchange
// is complete, and with Mutual the other side has proved its identity.
func (i *Initiator) Step(in []byte) (out []byte, done bool, err error) {
	if i.closed || i.done {
		return nil, false, errNotReady
	}
	if len(in) > MaxToken {
		return nil, false, badToken(fmt.Sprintf("the service's token has %d bytes; at most %d are allowed", len(in),
			MaxToken), "")
	}
	var o C.outcome
	C.init_step(i.cred, &i.ctx, i.target, flag(i.conf.SPNEGO), flag(i.conf.Mutual), pointer(in), C.size_t(len(in)), &o)
	i.done = o.major == C.GSS_S_COMPLETE
	out, err = result(&o)
	return out, i.done, asLogin(err, &i.conf)
}

func flag(b bool) C.int {
	if b {
		return 1
	}
	return 0
}

func pointer(b []byte) unsafe.Pointer { return unsafe.Pointer(unsafe.SliceData(b)) }

// Wrap puts a message into a token that protects it against changes. The message is not encrypted.
func (i *Initiator) Wrap(message []byte) ([]byte, error) {
	if i.closed || !i.done {
		return nil, errNotReady
	}
	var o C.outcome
	C.wrap(i.ctx, pointer(message), C.size_t(len(message)), &o)
	return result(&o)
}

// Unwrap takes the message out of the other side's token.
func (i *Initiator) Unwrap(token []byte) ([]byte, error) {
	if i.closed || !i.done {
		return nil, errNotReady
	}
	var o C.outcome
	C.unwrap(i.ctx, pointer(token), C.size_t(len(token)), &o)
	return result(&o)
}

// Close frees the library's memory.
func (i *Initiator) Close() error {
	if i.closed {
		return nil
	}
	i.closed = true
	var minor C.OM_uint32
	C.gss_delete_sec_context(&minor, &i.ctx, nil)
	C.gss_release_cred(&minor, &i.cred)
	C.gss_release_name(&minor, &i.target)
	return nil
}
