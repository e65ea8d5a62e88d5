package pkcs11

import (
	"context"
	"errors"
	"slices"

	p11 "github.com/miekg/pkcs11"

	"claviger"
	"claviger/pkcs11/worker"
)

// errNoTokenShown means that the library shows no slot with a token. A network HSM that cannot be reached has none.
var errNoTokenShown = errors.New("shows no token")

// awayCodes are the results of libraries whose HSM cannot be reached or is starting. None of them is about a PIN,
// a name or an attribute.
var awayCodes = []uint{
	p11.CKR_DEVICE_ERROR, p11.CKR_DEVICE_REMOVED, p11.CKR_DEVICE_MEMORY, p11.CKR_TOKEN_NOT_PRESENT,
	p11.CKR_TOKEN_NOT_RECOGNIZED,
	p11.CKR_GENERAL_ERROR, p11.CKR_FUNCTION_FAILED, p11.CKR_HOST_MEMORY, p11.CKR_SESSION_CLOSED,
	p11.CKR_SESSION_HANDLE_INVALID, p11.CKR_SESSION_COUNT, p11.CKR_SLOT_ID_INVALID, p11.CKR_FUNCTION_CANCELED,
	p11.CKR_CRYPTOKI_NOT_INITIALIZED,
}

// markAway marks errors of an HSM that may work again later; see claviger.Unreachable.
func markAway(err error) error {
	if err == nil {
		return nil
	}
	var refused refusal
	if errors.As(err, &refused) {
		if errors.As(err, new(heldBack)) && !refused.pin { // it is tried again, as the login before it was
			return claviger.Unreachable(err)
		}
		return err
	}
	var code p11.Error
	var gone worker.GoneError
	if errors.As(err, &gone) || errors.Is(err, errNoTokenShown) || errors.Is(err, context.DeadlineExceeded) ||
		errors.As(err, &code) && (slices.Contains(awayCodes, uint(code)) || uint(code) >= p11.CKR_VENDOR_DEFINED) {
		return claviger.Unreachable(err)
	}
	return err
}
