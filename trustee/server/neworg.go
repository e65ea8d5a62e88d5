package server

import (
	"crypto/rand"
	"encoding/base32"
	"strings"
	"time"

	"claviger"
	"claviger/trustee"
)

// NewOrg returns an organization with a new random secret of 160 bits, in characters that are easy to type. It
// does not add the organization to a store. Kind Invalid if no organization can have the name.
func NewOrg(name string, contacts []string) (Org, error) {
	blank := func(c rune) bool { return c <= ' ' || c == 0x7f }
	if name == "" || len(name) > 255 || strings.ContainsFunc(name, blank) {
		return Org{}, claviger.E("server.NewOrg", claviger.Invalid, name, nil)
	}
	var secret [20]byte
	_, _ = rand.Read(secret[:]) // it never fails
	return Org{
		Name: name, UUID: trustee.NewUUID(), Contacts: contacts, Created: time.Now(),
		Auth: strings.ToLower(base32.StdEncoding.EncodeToString(secret[:])),
	}, nil
}
