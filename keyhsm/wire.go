package keyhsm

import (
	"encoding/json"
	"errors"
	"net/http"
	"time"

	"claviger"
)

// Port is the default port of Key HSM.
const Port = 9090

// maxBody is the size limit of requests and answers: the longest envelope in base64, and the JSON
// around it.
const maxBody int64 = int64(MaxWrapped+2)/3*4 + 1<<10

// The bodies of the protocol. encoding/json writes bytes in base64.
type (
	wrapRequest struct {
		UUID    string `json:"uuid"`
		Content []byte `json:"content"`
	}
	wrapAnswer struct {
		Wrapped []byte `json:"wrapped"`
	}
	unwrapRequest struct {
		UUID    string `json:"uuid"`
		Wrapped []byte `json:"wrapped"`
	}
	unwrapAnswer struct {
		Content []byte `json:"content"`
	}
	errorAnswer struct {
		Error errorBody `json:"error"`
	}
	errorBody struct {
		Kind    string `json:"kind"`
		Key     string `json:"key,omitempty"`
		Message string `json:"message"`
	}
)

// Status is the status of a Server.
type Status struct {
	// State is Ready, KeyGone or HSMUnavailable. Detail is the reason if it is not Ready.
	State  string `json:"state"`
	Detail string `json:"detail,omitempty"`

	KeyID    string `json:"keyId"` // of the pair that wraps new deposits
	KeyLabel string `json:"keyLabel"`
	KeyBits  int    `json:"keyBits,omitempty"`
	OAEP     string `json:"oaep,omitempty"` // the hash, "SHA-1" or "SHA-256"

	Token        string `json:"token"`
	Serial       string `json:"serial"`
	Manufacturer string `json:"manufacturer"`
	Model        string `json:"model"`

	Trusted          int       `json:"trusted"` // number of trusted certificates
	CertificateUntil time.Time `json:"certificateUntil"`
	Started          time.Time `json:"started"`
	Loaded           time.Time `json:"loaded"` // when the server last read certificates, or failed to
	LoadError        string    `json:"loadError,omitempty"`

	// Counted since the start.
	Wrapped   int64 `json:"wrapped"`
	Unwrapped int64 `json:"unwrapped"`
	Refused   int64 `json:"refused"` // requests that were answered with an error
}

// The states of a Status.
const (
	Ready          = "ready"
	KeyGone        = "key gone"
	HSMUnavailable = "HSM unavailable"
)

// Kinds of errors as the protocol writes them.
const (
	wireInvalid     = "invalid"
	wireKeyGone     = "key-gone"
	wireDenied      = "denied"
	wireUnavailable = "unavailable"
	wireInternal    = "internal"
)

// writeError maps an error to an HTTP status and a body. The text of an internal error goes only to the
// log.
func writeError(w http.ResponseWriter, err error) (status int) {
	var e *claviger.Error
	body := errorBody{Kind: wireInternal, Message: "Key HSM failed; see its log for the reason"}
	status = http.StatusInternalServerError
	if errors.As(err, &e) {
		kind := ""
		switch {
		case errors.Is(err, ErrKeyGone):
			kind, status = wireKeyGone, http.StatusGone
		case e.Kind == claviger.Invalid:
			kind, status = wireInvalid, http.StatusBadRequest
		case e.Kind == claviger.Denied:
			kind, status = wireDenied, http.StatusForbidden
		case e.Kind == claviger.Unavailable, e.Kind == claviger.Closed:
			kind, status = wireUnavailable, http.StatusServiceUnavailable
		}
		if kind != "" {
			body = errorBody{Kind: kind, Key: e.Key, Message: text(e)}
		}
	}
	writeJSON(w, status, errorAnswer{body})
	return status
}

// text returns the text of an error without its Op and Key.
func text(e *claviger.Error) string {
	if e.Err == nil {
		return e.Kind.String()
	}
	return e.Err.Error()
}

// readError makes an error of an answer that writeError wrote.
func readError(op string, status int, data []byte) error {
	var a errorAnswer
	if err := json.Unmarshal(data, &a); err == nil {
		switch a.Error.Kind {
		case wireKeyGone:
			return claviger.E(op, claviger.Invalid, a.Error.Key, remoteError{a.Error.Message, ErrKeyGone})
		case wireInvalid:
			return claviger.E(op, claviger.Invalid, a.Error.Key, remoteError{a.Error.Message, nil})
		case wireDenied:
			return claviger.E(op, claviger.Denied, a.Error.Key, remoteError{a.Error.Message, nil})
		case wireUnavailable:
			return claviger.E(op, claviger.Unavailable, a.Error.Key, remoteError{"Key HSM: " + a.Error.Message, nil})
		case wireInternal:
			return claviger.E(op, claviger.Internal, a.Error.Key, remoteError{a.Error.Message, nil})
		}
	}
	return claviger.Errorf(op, claviger.Unavailable, "",
		"the server answered with status %d, and not in the protocol of Key HSM; is this the address of a Key HSM?",
		status)
}

// remoteError is an error message from the server.
type remoteError struct {
	message string
	wraps   error // nil: none
}

func (e remoteError) Error() string { return e.message }
func (e remoteError) Unwrap() error { return e.wraps }

func writeJSON(w http.ResponseWriter, status int, v any) {
	data, err := json.Marshal(v)
	if err != nil { // it cannot fail: v is of the types above
		status, data = http.StatusInternalServerError, []byte("{}")
	}
	h := w.Header()
	h.Set("Content-Type", "application/json")
	h.Set("Cache-Control", "no-store")
	w.WriteHeader(status)
	_, _ = w.Write(append(data, '\n')) // it fails if the client has left
}
