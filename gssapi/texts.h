// Texts of the library, copied for Go.
#ifndef CLAVIGER_GSSAPI_TEXTS_H
#define CLAVIGER_GSSAPI_TEXTS_H
#include <stdlib.h>
#include <string.h>
#include <gssapi/gssapi.h>

static inline char *text_of_name(gss_name_t name) {
	OM_uint32 minor;
	gss_buffer_desc b = GSS_C_EMPTY_BUFFER;
	char *s = NULL;
	if (gss_display_name(&minor, name, &b, NULL) == GSS_S_COMPLETE && memchr(b.value, 0, b.length) == NULL && (s = malloc(b.length + 1)) != NULL) {
		memcpy(s, b.value, b.length);
		s[b.length] = 0;
	}
	gss_release_buffer(&minor, &b);
	return s;
}

static inline char *text_of_status(OM_uint32 code, int type) {
	OM_uint32 minor, more = 0;
	gss_buffer_desc b = GSS_C_EMPTY_BUFFER;
	char *s = NULL;
	if (gss_display_status(&minor, code, type, GSS_C_NO_OID, &more, &b) == GSS_S_COMPLETE && (s = malloc(b.length + 1)) != NULL) {
		memcpy(s, b.value, b.length);
		s[b.length] = 0;
	}
	gss_release_buffer(&minor, &b);
	return s;
}

#endif
