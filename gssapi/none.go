//go:build !cgo || nogssapi

package gssapi

// Available reports whether this build supports Kerberos.
const Available = false

// Acceptor cannot be made in this build.
type Acceptor struct{}

// NewAcceptor returns ErrNotBuilt.
func NewAcceptor(AcceptorConfig) (*Acceptor, error) { return nil, ErrNotBuilt }

// Accept returns ErrNotBuilt.
func (*Acceptor) Accept([]byte) (Accepted, error) { return Accepted{}, ErrNotBuilt }

// Check returns ErrNotBuilt.
func (*Acceptor) Check() error { return ErrNotBuilt }

// Close does nothing.
func (*Acceptor) Close() {}

// Initiator cannot be made in this build.
type Initiator struct{}

// NewInitiator returns ErrNotBuilt.
func NewInitiator(InitiatorConfig) (*Initiator, error) { return nil, ErrNotBuilt }

// Step returns ErrNotBuilt.
func (*Initiator) Step([]byte) ([]byte, bool, error) { return nil, false, ErrNotBuilt }

// Wrap returns ErrNotBuilt.
func (*Initiator) Wrap([]byte) ([]byte, error) { return nil, ErrNotBuilt }

// Unwrap returns ErrNotBuilt.
func (*Initiator) Unwrap([]byte) ([]byte, error) { return nil, ErrNotBuilt }

// Close does nothing.
func (*Initiator) Close() error { return nil }

// DefaultRealm returns ErrNotBuilt.
func DefaultRealm() (string, error) { return "", ErrNotBuilt }

// Keytab returns ErrNotBuilt.
func Keytab(string) ([]KeytabEntry, error) { return nil, ErrNotBuilt }
