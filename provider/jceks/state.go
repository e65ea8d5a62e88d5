package jceks

import (
	"crypto/aes"
	"crypto/cipher"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"

	"claviger"
	"claviger/keystore"
	"claviger/secret"
)

// state is one state of the keystore in memory. Only the opened contents of its slots change.
type state struct {
	id       identity
	store    *keystore.JCEKS
	slots    map[string]*slot // by alias
	versions map[string][]int // numbers of the version entries by key name, ascending
}

// newState indexes the store. It reuses the slots of entries that did not change since before, so that they need not be
// decrypted again.
func newState(store *keystore.JCEKS, id identity, before *state) *state {
	aliases := store.Aliases()
	st := &state{id: id, store: store, slots: make(map[string]*slot, len(aliases)), versions: make(map[string][]int)}
	for _, alias := range aliases {
		e := store.Entry(alias)
		if e.Kind != keystore.SecretKeyEntry {
			continue // not an entry of Hadoop; the store keeps it
		}
		var s *slot
		if before != nil {
			s = before.slots[alias]
		}
		if s == nil || s.entry != e && !s.entry.Equal(e) {
			s = &slot{entry: e}
		}
		st.slots[alias] = s
		if key, n, ok := versionNumber(alias); ok {
			st.versions[key] = append(st.versions[key], n)
		}
	}
	for _, list := range st.versions {
		slices.Sort(list)
	}
	return st
}

// versionNumber parses the name of a version whose id is a number in Hadoop's form.
func versionNumber(name string) (key string, n int, ok bool) {
	key, ok = claviger.KeyOfVersion(name)
	if !ok {
		return "", 0, false
	}
	id := name[len(key)+1:]
	n, err := strconv.Atoi(id)
	return key, n, err == nil && n >= 0 && n < maxVersions && strconv.Itoa(n) == id
}

func numberedVersion(key string, n int) string { return claviger.VersionName(key, strconv.Itoa(n)) }

// slot is an entry with its opened content.
type slot struct {
	entry  *keystore.Entry
	mu     sync.Mutex             // held during the decryption, so that it happens once
	opened atomic.Pointer[opened] // nil before the first use
}

// opened is the content of an entry: metadata or material, or the permanent error of its decryption.
type opened struct {
	meta     *metadata
	material secret.Bytes
	block    cipher.Block // nil if the material is not an AES key
	err      error
}

// open returns the content of the entry. The first call decrypts it.
func (s *slot) open(password secret.Bytes) *opened {
	if o := s.opened.Load(); o != nil {
		return o
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if o := s.opened.Load(); o != nil {
		return o
	}
	o := &opened{}
	got, err := s.entry.Open(password)
	switch {
	case err != nil:
		o.err = err
	case got.HadoopMetadata != nil:
		if o.meta, err = parseMetadata(got.HadoopMetadata); err != nil {
			o.err = fmt.Errorf("entry %q: %w", s.entry.Alias, err)
		}
	default:
		*o = *openedMaterial(got.Material)
	}
	s.opened.Store(o)
	return o
}

func openedMaterial(material secret.Bytes) *opened {
	o := &opened{material: material}
	if block, err := aes.NewCipher(material); err == nil {
		o.block = block
	}
	return o
}

// isKey reports whether the alias, which contains an '@', is a key's name. If a version could also have the alias,
// isKey opens the entry: the entry of a version has material.
func (st *state) isKey(alias string, password secret.Bytes) bool {
	s := st.slots[alias]
	if s == nil || len(st.versions[alias]) == 0 {
		return false
	}
	if _, _, ok := versionNumber(alias); !ok {
		return true
	}
	return s.open(password).meta != nil
}

// keys returns the names of keys.
func (st *state) keys(password secret.Bytes) []string {
	names := []string{}
	for alias := range st.slots {
		if !strings.Contains(alias, "@") || st.isKey(alias, password) {
			names = append(names, alias)
		}
	}
	slices.Sort(names)
	return names
}

// foreign returns the first aliases of entries that are not secret keys.
func (st *state) foreign() []string {
	const limit = 10
	var aliases []string
	for _, alias := range st.store.Aliases() {
		if st.slots[alias] == nil && len(aliases) < limit {
			aliases = append(aliases, alias)
		}
	}
	return aliases
}

// live returns the numbers of a key's versions. It leaves out numbers that the metadata does not count, and entries
// that are other keys.
func (st *state) live(key string, m *metadata, password secret.Bytes) []int {
	list := st.versions[key]
	n, _ := slices.BinarySearch(list, m.Versions)
	return slices.DeleteFunc(slices.Clone(list[:n]), func(n int) bool {
		return st.isKey(numberedVersion(key, n), password)
	})
}

// free returns the lowest number, at least first, from which n consecutive versions of the key would not have the name
// of another key.
func (st *state) free(key string, first, n int, password secret.Bytes) int {
	for _, taken := range st.versions[key] {
		if taken >= first && taken < first+n && st.isKey(numberedVersion(key, taken), password) {
			first = taken + 1
		}
	}
	return first
}
