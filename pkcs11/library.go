package pkcs11

import (
	"context"
	"errors"
	"fmt"
)

// Library is a loaded PKCS#11 library. It shows what can be known of a token without a login.
type Library struct {
	cfg    Config
	module *module
}

// OpenLibrary loads the library that the configuration names, until ctx ends. Its errors name the problem and the cure.
func OpenLibrary(ctx context.Context, cfg Config) (*Library, error) {
	m, err := openInTime(ctx, &cfg)
	if err != nil {
		return nil, err
	}
	return &Library{cfg, m}, nil
}

// Close unloads the library, unless a Token uses it too.
func (l *Library) Close() error { return l.module.release() }

// TokenState is what a token shows without a login.
type TokenState struct {
	Name string // label, serial number and slot, for messages
	// PIN is why a careful process does not try the PIN, see Config.Careful; nil if it does.
	PIN error
	// Sessions is the number of open sessions of all processes, and MaxSessions the largest number; 0 if the token does
	// not report it, or has no limit.
	Sessions, MaxSessions uint
}

// Token finds the one token that the configuration names, without a login. It returns when ctx ends, also if the
// library hangs.
func (l *Library) Token(ctx context.Context) (TokenState, error) {
	return inTime(ctx, func() (TokenState, error) { return l.token(ctx) }, nil, l.cfg.didNotAnswer)
}

func (l *Library) token(ctx context.Context) (TokenState, error) {
	visit, err := l.module.enter(ctx)
	if err != nil {
		return TokenState{}, err
	}
	defer l.module.leave(visit)
	b := Boundary(l.module.b)
	if l.cfg.Wrap != nil {
		b = l.cfg.Wrap(b)
	}
	found, err := findToken(b, &l.cfg)
	if err != nil {
		return TokenState{}, err
	}
	s := TokenState{Name: found.String(), PIN: pinFault(found, true, "")}
	if n := found.info.SessionCount; n != unavailable {
		s.Sessions = n
	}
	if n := found.info.MaxSessionCount; n != unavailable {
		s.MaxSessions = n
	}
	return s, nil
}

// pinFault returns why the user's PIN must not be tried at a token. A careful process does not try it after a wrong
// try either. then ends the advice to log in with the HSM's own tool.
func pinFault(found candidate, careful bool, then string) error {
	switch flags := found.info.Flags; {
	case flags&flagPINLocked != 0:
		return refusal{fmt.Errorf("the PIN of token %s is locked after too many wrong tries; the HSM's security "+
			"officer must reset it", found), true}
	case flags&flagPINInitialized == 0:
		return refusal{fmt.Errorf("token %s %w; the HSM's security officer must set one", found, errNoUserPIN), true}
	case flags&flagPINFinalTry != 0:
		return refusal{fmt.Errorf("token %s would lock at one more wrong PIN, so it is not tried; log in once "+
			"with the HSM's own tool and the right PIN%s", found, then), true}
	case careful && flags&flagPINCountLow != 0:
		return refusal{fmt.Errorf("a wrong PIN was tried at token %s before, and the token locks after a few wrong "+
			"tries, so the PIN is not tried now; log in once with the HSM's own tool and the right "+
			"PIN%s", found, then), true}
	}
	return nil
}

// mechanismError says that a token was opened, and has no way to make a key and to encrypt with it.
type mechanismError struct{ error }

func (e mechanismError) Unwrap() error { return e.error }

// IsMechanism reports whether Open has logged in to the token, and the token then made no AES key, or encrypted by no
// mechanism that this package can use.
func IsMechanism(err error) bool {
	return errors.As(err, new(mechanismError))
}
