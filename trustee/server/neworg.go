package server

import (
	"crypto/rand"
	"encoding/base32"
	"strings"
	"time"

	"claviger"
	"claviger/trustee"
)

// NewOrg returns an organization with a fresh secret of 160 bits that can be typed. A store does not have it
// yet. A name that no organization can have is claviger.Invalid.
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
