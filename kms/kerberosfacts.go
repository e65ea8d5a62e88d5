package kms

import (
	"errors"
	"log/slog"
	"slices"
	"strings"

	"claviger/authn"
	"claviger/gssapi"
)

// KerberosFacts are the settings by which clients log in with Kerberos.
type KerberosFacts struct {
	Keytab  string // path
	Service string // principal of the server, or "*"
	Keys    []gssapi.KeytabEntry
	Rules   *authn.Rules
}

// Kerberos reads the settings and the keytab as a start does, with warnings in log. If clients do not log in with
// Kerberos, the result is nil.
func (s *Service) Kerberos(log *slog.Logger) (*KerberosFacts, error) {
	h, rules, err := authHandler(s.Conf, false, log)
	if err != nil {
		return nil, err
	}
	if _, ok := h.(*authn.Kerberos); !ok {
		return nil, nil
	}
	f := &KerberosFacts{Service: s.Conf.String(authService), Rules: rules}
	f.Keytab, _ = s.Conf.Path(authKeytab)
	f.Keys, err = gssapi.Keytab(f.Keytab)
	// The keytab may have keys of other services, which the server does not use.
	f.Keys = slices.DeleteFunc(f.Keys, func(k gssapi.KeytabEntry) bool { return !f.uses(k.Principal) })
	return f, err
}

// uses reports whether the server accepts tickets for a principal.
func (f *KerberosFacts) uses(principal string) bool {
	if f.Service == "*" {
		return strings.HasPrefix(principal, "HTTP/")
	}
	short, _, _ := strings.Cut(principal, "@")
	return principal == f.Service || short == f.Service
}

// ErrNoKDC means that no KDC answers.
var ErrNoKDC = errors.New("no KDC answers")

// Try logs in with the key of a principal of the keytab, gets a ticket for the principal itself, and opens the ticket
// with the keytab, as the server opens those of clients. It tries once. If no KDC answers, the error is an ErrNoKDC.
func (f *KerberosFacts) Try(principal string) error {
	i, err := gssapi.NewInitiator(gssapi.InitiatorConfig{Keytab: f.Keytab, Principal: principal, Target: principal,
		SPNEGO: true})
	if err != nil {
		return unreachable(err)
	}
	defer i.Close() //nolint:errcheck // it only frees memory
	token, _, err := i.Step(nil)
	if err != nil {
		return unreachable(err)
	}
	a, err := gssapi.NewAcceptor(gssapi.AcceptorConfig{Keytab: f.Keytab, Principals: []string{principal}})
	if err != nil {
		return err
	}
	defer a.Close()
	_, err = a.Accept(token)
	return err
}

// unreachable adds ErrNoKDC to an error of the library that says so.
func unreachable(err error) error {
	lower := strings.ToLower(err.Error())
	for _, text := range []string{"cannot contact any kdc", "cannot find kdc", "cannot resolve network address"} {
		if strings.Contains(lower, text) {
			return errors.Join(ErrNoKDC, err)
		}
	}
	return err
}

// Principals returns the principals of the keytab that the server accepts tickets for.
func (f *KerberosFacts) Principals() (names []string) {
	for _, k := range f.Keys {
		if !slices.Contains(names, k.Principal) {
			names = append(names, k.Principal)
		}
	}
	return names
}

// Newest returns the newest version of a principal's keys in the keytab (kvno), and their encryption types.
func (f *KerberosFacts) Newest(principal string) (version int, types []string) {
	for _, k := range f.Keys {
		if k.Principal != principal || k.Version < version {
			continue
		}
		if k.Version > version {
			version, types = k.Version, nil
		}
		types = append(types, k.Encryption)
	}
	return version, types
}
