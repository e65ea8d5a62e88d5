package claviger

import (
	"errors"
	"fmt"
	"strings"
)

// Kind is the class of an error. Each package that answers clients has one file that maps kinds to its wire form.
type Kind int

// The kinds. "Key" below is Error.Key: a key name or a full version name.
const (
	// Internal is a fault of this program: its text goes to the log, never to a caller.
	Internal Kind = iota
	// Invalid is a request that cannot be served as it is. Error.Err's text is for the caller.
	Invalid
	// InvalidKeySize: a bit length other than 128, 192, 256. Key: key name.
	InvalidKeySize
	// MaterialLength: the given material does not have the key's length. Err's text is for the caller ("Wrong key
	// length. Required 128, but got 0").
	MaterialLength
	// UnknownCipher: the algorithm of a cipher such as "FOO/CTR/NoPadding" is unknown. Key: key name.
	UnknownCipher
	// KeyNotFound: no key of that name. Key: key name.
	KeyNotFound
	// KeyExists: a key of that name exists already. Key: key name.
	KeyExists
	// VersionNotFound: no version of that name, neither here nor at any configured source. Key: version name.
	VersionNotFound
	// WrongKey: a version that does not belong to the named key. Err's text is for the caller.
	WrongKey
	// BadIV: an IV that is not IVSize bytes long. Key: version name.
	BadIV
	// Denied: an operation-level ACL or blacklist refuses the caller. Err's text is for the caller.
	Denied
	// KeyDenied: a key-level ACL refuses the caller. Err's text is for the caller.
	KeyDenied
	// Unsupported: the provider cannot do this by design (take material into an HSM). Err's text is for the caller.
	Unsupported
	// Unavailable: this node cannot serve the request now, and has changed nothing; another node may serve it. Key:
	// the key or version of the request. Err's text is for the log.
	Unavailable
	// SourceUnreachable: the version is not here, and the source that may have it does not answer. Err's text is for
	// the log; it names the source.
	SourceUnreachable
	// SourceRefused: the version is not here, and the source refused this server. Err's text is for the caller; it
	// names the property at the source that would allow the request.
	SourceRefused
	// Closed: used after Close.
	Closed
)

var kindNames = [...]string{
	"internal", "invalid", "invalid key size", "material length", "unknown cipher", "key not found", "key exists",
	"version not found", "wrong key", "bad IV", "denied", "key denied", "unsupported", "unavailable",
	"source unreachable", "source refused", "closed",
}

func (k Kind) String() string {
	if k >= 0 && int(k) < len(kindNames) {
		return kindNames[k]
	}
	return fmt.Sprintf("kind %d", int(k))
}

// Error is the only error type that crosses package borders. Its text has Key and Err, but not Op; a log shows Op in an
// attribute of its own (LogHandler).
type Error struct {
	Op   string // "package.Operation", with the path if the package's name is not unique; only for the log
	Key  string // a key or version name, see Kind
	Kind Kind
	Err  error // may be nil if Kind and Key say everything
}

// E builds an *Error. err may be nil.
func E(op string, kind Kind, key string, err error) *Error {
	return &Error{Op: op, Key: key, Kind: kind, Err: err}
}

// Errorf builds an *Error whose Err is made from a format.
func Errorf(op string, kind Kind, key, format string, args ...any) *Error {
	return &Error{Op: op, Key: key, Kind: kind, Err: fmt.Errorf(format, args...)}
}

func (e *Error) Error() string {
	text := e.Kind.String()
	if e.Err != nil {
		text = e.Err.Error()
	}
	inner, ok := e.Err.(*Error) //nolint:errorlint // only the outermost error puts its key in front of the text
	if e.Key == "" || ok && inner.Key == e.Key {
		return text
	}
	return fmt.Sprintf("%q: %s", e.Key, text)
}

func (e *Error) Unwrap() error { return e.Err }

// Reason returns the text of err without its key, for a sentence that names the key itself.
func Reason(err error) string {
	for {
		e, ok := err.(*Error) //nolint:errorlint // only the outermost error: an error that wraps an *Error says more
		if !ok {
			return err.Error()
		}
		if e.Err == nil {
			return e.Kind.String()
		}
		err = e.Err
	}
}

// Ops returns the operations that err went through, outermost first, as in "keyring.Decrypt hsm.Unwrap"; "" if err has
// no *Error.
func Ops(err error) string {
	var ops []string
	for e := (*Error)(nil); errors.As(err, &e); err = e.Err {
		ops = append(ops, e.Op)
		if e.Err == nil {
			break
		}
	}
	return strings.Join(ops, " ")
}

// Answer gives an error of kind Unavailable or Internal a text for the caller, in addition to its own text, which is
// for the log.
// Answer(nil, text) is nil.
func Answer(err error, text string) error {
	if err == nil {
		return nil
	}
	return &answered{err, text}
}

// AnswerOf returns the text that Answer gave the error, or "".
func AnswerOf(err error) string {
	var a *answered
	if errors.As(err, &a) {
		return a.text
	}
	return ""
}

type answered struct {
	error
	text string
}

func (a *answered) Unwrap() error { return a.error }

// KindOf returns the kind of the first *Error in err's chain, and Internal for any other error. It must not be called
// with nil.
func KindOf(err error) Kind {
	if e, ok := errors.AsType[*Error](err); ok {
		return e.Kind
	}
	return Internal
}

// Is reports whether err is an *Error of the given kind. It allocates nothing, because successful requests call it
// too.
func Is(err error, kind Kind) bool {
	e, ok := errors.AsType[*Error](err)
	return ok && e.Kind == kind
}
