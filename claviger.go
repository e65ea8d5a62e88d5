// Package claviger has the types that all packages of the key management server share: encryption-zone (EZ) keys and
// their metadata, key versions and their names, encrypted data encryption keys (EDEKs), callers, and the one domain
// error.
//
// It imports only the standard library and package secret. Nothing in it does I/O. Key material always has the type
// secret.Bytes.
package claviger

import (
	"math"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"claviger/secret"
)

// ACLNameAttribute is the metadata attribute with the name of the ACL that guards a key. Hadoop's KMS sets it when a
// key is created, and uses it from then on.
const ACLNameAttribute = "key.acl.name"

// DefaultCipher and DefaultBitLength are Hadoop's values for a request that creates a key without them
// (hadoop.security.key.default.cipher and hadoop.security.key.default.bitlength).
const (
	DefaultCipher    = "AES/CTR/NoPadding"
	DefaultBitLength = 128
)

// IVSize is the length in bytes of an EDEK's initialisation vector, and of a counter block.
const IVSize = 16

// Metadata describes one EZ key. A migration moves it. It never has key material.
type Metadata struct {
	Name        string
	Cipher      string            // as HDFS compares it, e.g. "AES/CTR/NoPadding"
	BitLength   int               // 128, 192 or 256
	Description *string           // nil is JSON null, which differs from ""
	Attributes  map[string]string // never nil in what a provider returns
	Created     time.Time         // to the millisecond; Hadoop's "created"
	// Versions is the newest version's number + 1 if versions are numbered, so NAME@(Versions-1) is the current
	// version: clients compute that name. If the ids are opaque, it is the number of versions.
	Versions int
}

// ACLName returns the name under which kms-acls.xml guards the key: the attribute key.acl.name, else the key's own
// name.
func (m *Metadata) ACLName() string {
	if n, ok := m.Attributes[ACLNameAttribute]; ok {
		return n
	}
	return m.Name
}

// KeyVersion is one version of an EZ key.
type KeyVersion struct {
	Key       string       // name of the EZ key
	Name      string       // full version name, "<key>@<id>"
	BitLength int          // length of the key, and of the DEKs that it wraps
	Material  secret.Bytes // nil if the provider does not give it
	// Of is the metadata of the version's key, from the same reading as the version. The rules of that metadata guard
	// the version, so a caller never sees a version of another key that took the name in between. Of is shared and must
	// not be changed. If the key of a version has lost its metadata (this happens in Java keystores), Of has only the
	// name. Of is nil only if the provider cannot read both at once: it is another KMS.
	Of *Metadata
}

// EDEK is an encrypted data encryption key as HDFS stores it with a file: the wrapped bytes, the IV, and the full name
// of the key version that wrapped them. Material is DEK xor keystream; it has no integrity check.
type EDEK struct {
	Version  string // full version name, "<key>@<id>"
	IV       []byte // IVSize bytes in every well-formed EDEK
	Material []byte // as long as the DEK
}

// VersionRef is the name of a key version, parsed once: the key's name is the part before the last '@', the id the
// part after it. The NameNode relies on that rule. If a name does not have this form, Key is empty, and no version
// has the name.
type VersionRef struct {
	Key string // name of the EZ key; "" if no version can have the name
	ID  string // a number, or an opaque id; see NumberOfID

	name string
}

// ParseVersion parses a full version name.
func ParseVersion(name string) VersionRef {
	i := strings.LastIndexByte(name, '@')
	if i <= 0 || i == len(name)-1 {
		return VersionRef{name: name}
	}
	return VersionRef{Key: name[:i], ID: name[i+1:], name: name}
}

// Name returns the full version name, byte for byte as it was parsed.
func (v VersionRef) Name() string { return v.name }

// Valid reports whether a version can have the name.
func (v VersionRef) Valid() bool { return v.Key != "" }

// Number returns N of a version name "<key>@N"; ok is false for an opaque name.
func (v VersionRef) Number() (n int, ok bool) {
	if !v.Valid() {
		return 0, false
	}
	return NumberOfID(v.ID)
}

// KeyOfVersion returns the key's name in a version name; see VersionRef. ok is false if no version can have the name.
func KeyOfVersion(version string) (key string, ok bool) {
	v := ParseVersion(version)
	return v.Key, v.Valid()
}

// MaxName is the longest name of a key, in bytes of UTF-8. MaxVersionName is the longest name of a version: a key's
// name, '@' and an id of at most 20 bytes. A key is not made if its versions could not be requested.
const (
	MaxName        = 4096
	MaxVersionName = MaxName + 1 + 20
)

// BadName returns the reason why no new key may have the name, in words that follow "the name", or "" if a key may have
// it. It is not for names of keys that exist already.
func BadName(name string) (why string) {
	switch {
	case name == "":
		return "" // each caller has its own error for an empty name
	case len(name) > MaxName:
		return "is longer than " + strconv.Itoa(MaxName) + " bytes"
	case !utf8.ValidString(name):
		return "is not UTF-8"
	case strings.ContainsRune(name, 0):
		return "holds a NUL"
	}
	return ""
}

// VersionName joins a key name and a version id.
func VersionName(key, id string) string { return key + "@" + id }

// MaxVersion is the highest number that a version can have: "versions" in the metadata is one more, and clients read it
// as a Java int.
const MaxVersion = math.MaxInt32 - 1

// NumberOfID returns the number that a version id is: decimal, without leading zeros, at most MaxVersion. ok is false
// for an opaque id.
func NumberOfID(id string) (n int, ok bool) {
	n, err := strconv.Atoi(id)
	if err != nil || n < 0 || n > MaxVersion || strconv.Itoa(n) != id {
		return 0, false
	}
	return n, true
}

// VersionNumber returns N of a version name "<key>@N"; ok is false for an opaque name.
func VersionNumber(version string) (n int, ok bool) { return ParseVersion(version).Number() }

// CountVersions returns Metadata.Versions of a key. newest is the id of its newest version, count the number of its
// versions.
func CountVersions(newest string, count int) int {
	if n, ok := NumberOfID(newest); ok {
		return n + 1
	}
	return count
}

// Principal is an authenticated caller.
type Principal struct {
	// Name is the full principal ("hdfs/nn1.example.com@EXAMPLE.COM"); equal to Short under simple authentication.
	// Audit lines have it.
	Name string
	// Short is the name that auth_to_local makes of Name. ACLs and proxy-user rules compare it.
	Short string
	// Real is the authenticated user behind an impersonation (doAs), else nil.
	Real *Principal
	// Token is the sequence number of the delegation token in the request; 0: none.
	Token int32
}

// Caller is the sender of a request, for ACL decisions and audit lines.
type Caller struct {
	Principal
	RemoteAddr string // IP address of the peer, without port
	RequestID  string // unique while this process runs
}
