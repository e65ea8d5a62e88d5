package zookeeper

import (
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	"claviger/metastore"
	"claviger/writable"
)

// Limits of the content of nodes. Hadoop's keys have 8 bytes, and its passwords 20.
const (
	maxMasterKey = 4096
	maxPassword  = 4096
)

func appendMasterKey(k metastore.MasterKey) []byte {
	b := writable.AppendLong(nil, int64(k.ID))
	b = writable.AppendLong(b, k.Expires.UnixMilli())
	b = writable.AppendLong(b, int64(len(k.Key)))
	return append(b, k.Key...)
}

func parseMasterKey(b []byte) (k metastore.MasterKey, err error) {
	r := &writable.Reader{Rest: b}
	k.ID = r.Int()
	k.Expires = time.UnixMilli(r.Long())
	n := r.Int()
	if n > maxMasterKey {
		return k, fmt.Errorf("its key has %d bytes, more than %d", n, maxMasterKey)
	}
	if n <= 0 { // -1 is Hadoop's null
		return k, errors.New("it has no key")
	}
	k.Key = append(k.Key, r.Take(int64(n))...)
	if r.Failed {
		return k, errors.New("it ends too early")
	}
	return k, nil
}

// identifierLength returns the length in bytes of the identifier at the beginning of b:
//
//	byte 0 | Text owner | Text renewer | Text realUser | VLong issueDate |
//	VLong maxDate | VInt sequenceNumber | VInt masterKeyId
func identifierLength(b []byte) (int, error) {
	r := &writable.Reader{Rest: b}
	version := r.Take(1)
	for range 3 {
		r.Take(r.Long())
	}
	for range 2 {
		r.Long()
	}
	for range 2 {
		r.Int()
	}
	if r.Failed || version[0] != 0 {
		return 0, errors.New("it does not begin with an identifier in Hadoop's format")
	}
	return len(b) - len(r.Rest), nil
}

func appendDelegation(d metastore.Delegation) []byte {
	b := append([]byte(nil), d.Identifier...)
	renew := uint64(d.Renew.UnixMilli()) //nolint:gosec // a signed number, as Java writes it
	b = binary.BigEndian.AppendUint64(b, renew)
	b = binary.BigEndian.AppendUint32(b, uint32(len(d.Password))) //nolint:gosec // a password is short
	return append(b, d.Password...)
}

// parseDelegation reads a token without its sequence number, which is in the node's name.
func parseDelegation(b []byte) (d metastore.Delegation, err error) {
	n, err := identifierLength(b)
	if err != nil {
		return d, err
	}
	rest := b[n:]
	if len(rest) < 12 {
		return d, errors.New("it ends after the identifier")
	}
	size := binary.BigEndian.Uint32(rest[8:])
	if size > maxPassword {
		return d, fmt.Errorf("a password has %d bytes, and may have at most %d", size, maxPassword)
	}
	if int(size) > len(rest)-12 {
		return d, fmt.Errorf("the length of a password is %d bytes, but only %d follow", size, len(rest)-12)
	}
	d.Identifier = append([]byte(nil), b[:n]...)
	d.Renew = time.UnixMilli(int64(binary.BigEndian.Uint64(rest))) //nolint:gosec // a signed number
	d.Password = append(d.Password, rest[12:12+size]...)
	return d, nil
}
