package hsm_test

import (
	"context"
	"crypto/aes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"claviger"
	"claviger/metastore"
	"claviger/metastore/sqlite"
	"claviger/owner"
	"claviger/pkcs11"
	"claviger/provider/hsm"
)

// manyKeys is the number of versions of each key of a manyToken.
const versionsOfMany = 3

// manyToken is a token with many keys, which a real token would need hours to make: key n has the name that nameOfMany
// gives it, and versionsOfMany versions. A search takes as long as one of a list in memory. before, if it is set, is
// called before each listing of the keys.
type manyToken struct {
	keys   int
	before func(context.Context)

	mu    sync.Mutex
	data  map[string]pkcs11.Data
	lost  map[string]bool           // labels
	extra map[string]pkcs11.KeyInfo // by label
}

func nameOfMany(n int) string { return fmt.Sprintf("key%06d", n) }

// idOfMany is the CKA_ID of a version.
func idOfMany(key, version int) []byte {
	id := binary.BigEndian.AppendUint32(nil, uint32(key))     //nolint:gosec // small
	return binary.BigEndian.AppendUint32(id, uint32(version)) //nolint:gosec // small
}

func (m *manyToken) info(key, version int) pkcs11.KeyInfo {
	return pkcs11.KeyInfo{ID: idOfMany(key, version), Label: claviger.VersionName(nameOfMany(key), fmt.Sprint(version)),
		Bits: 256, Sensitive: true, Encrypt: true}
}

// encryptMany encrypts a block with a version's key, which is the digest of its CKA_ID.
func encryptMany(id, block []byte) {
	key := sha256.Sum256(id)
	c, err := aes.NewCipher(key[:])
	if err != nil {
		panic(err)
	}
	c.Encrypt(block, block)
}

func checkOfMany(id []byte) []byte {
	block := []byte("claviger check 1")
	encryptMany(id, block)
	sum := sha256.Sum256(block)
	return sum[:8]
}

func (m *manyToken) Info() pkcs11.TokenInfo { return pkcs11.TokenInfo{Label: "many", Serial: "1"} }

func (m *manyToken) GenerateKey(_ context.Context, id []byte, label string, bits int) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.extra == nil {
		m.extra = map[string]pkcs11.KeyInfo{}
	}
	m.extra[label] = pkcs11.KeyInfo{ID: slices.Clone(id), Label: label, Bits: bits, Sensitive: true, Encrypt: true}
	return nil
}

func (m *manyToken) find(ctx context.Context, match func(pkcs11.KeyInfo) bool, id []byte) (list []pkcs11.KeyInfo) {
	if key := int(binary.BigEndian.Uint32(id)); key < m.keys {
		if info := m.info(key, int(binary.BigEndian.Uint32(id[4:]))); match(info) && !m.isLost(info.Label) {
			list = append(list, info)
		}
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, k := range m.extra {
		if match(k) {
			list = append(list, k)
		}
	}
	return list
}

func (m *manyToken) isLost(label string) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.lost[label]
}

func (m *manyToken) Find(ctx context.Context, id []byte) (*pkcs11.KeyInfo, error) {
	list := m.find(ctx, func(k pkcs11.KeyInfo) bool { return slices.Equal(k.ID, id) }, id)
	if len(list) == 0 {
		return nil, nil //nolint:nilnil // as the token does
	}
	return &list[0], nil
}

func (m *manyToken) FindLabel(ctx context.Context, label string) ([]pkcs11.KeyInfo, error) {
	id := idOfMany(m.keys, 0)
	var key, version int
	if n, _ := fmt.Sscanf(label, "key%d@%d", &key, &version); n == 2 && version < versionsOfMany {
		id = idOfMany(key, version)
	}
	return m.find(ctx, func(k pkcs11.KeyInfo) bool { return k.Label == label }, id), nil
}

func (m *manyToken) List(ctx context.Context) ([]pkcs11.KeyInfo, error) {
	if m.before != nil {
		m.before(ctx)
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	list := make([]pkcs11.KeyInfo, 0, m.keys*versionsOfMany)
	for key := range m.keys {
		for version := range versionsOfMany {
			if info := m.info(key, version); !m.isLost(info.Label) {
				list = append(list, info)
			}
		}
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, k := range m.extra {
		list = append(list, k)
	}
	return list, nil
}

func (m *manyToken) StartDate(context.Context, []byte, string) (time.Time, error) {
	return time.Time{}, nil
}

func (m *manyToken) Protection(context.Context, []byte, string) ([]pkcs11.Protection, error) {
	return nil, nil
}

func (m *manyToken) ListData(context.Context, string) (list []pkcs11.Data, _ error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, d := range m.data {
		list = append(list, d)
	}
	return list, nil
}

func (m *manyToken) PutData(_ context.Context, d pkcs11.Data) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.data == nil {
		m.data = map[string]pkcs11.Data{}
	}
	m.data[d.Label] = d
	return nil
}

func (m *manyToken) DestroyData(context.Context, string, string) error { return nil }

func (m *manyToken) Destroy(context.Context, []byte, string) error { return nil }

func (m *manyToken) CheckValue(ctx context.Context, id []byte, label string) ([]byte, error) {
	if k, err := m.Find(ctx, id); err != nil || k == nil {
		return nil, claviger.E("many.CheckValue", claviger.KeyNotFound, label, err)
	}
	return checkOfMany(id), nil
}

func (m *manyToken) Prove(ctx context.Context, id []byte, label string, _ []byte) error {
	_, err := m.CheckValue(ctx, id, label)
	return err
}

func (m *manyToken) Unusable(context.Context, []byte, string) (bool, error) { return false, nil }

func (m *manyToken) Choose(context.Context, []byte, string, []byte) error { return nil }

func (m *manyToken) EncryptBlocks(ctx context.Context, id []byte, label string, _, blocks []byte) error {
	if k, err := m.Find(ctx, id); err != nil || k == nil {
		return claviger.E("many.EncryptBlocks", claviger.KeyNotFound, label, err)
	}
	for block := range slices.Chunk(blocks, aes.BlockSize) {
		encryptMany(id, block)
	}
	return nil
}

func (m *manyToken) EncryptAlone(ctx context.Context, id []byte, label string, check, blocks []byte) error {
	return m.EncryptBlocks(ctx, id, label, check, blocks)
}

func (m *manyToken) Ping(context.Context) error       { return nil }
func (m *manyToken) Hidden() error                    { return nil }
func (m *manyToken) OnReset(func())                   {}
func (m *manyToken) OnCall(func(pkcs11.Call))         {}
func (m *manyToken) OnFunction(func(pkcs11.Function)) {}
func (m *manyToken) Sessions() (used, most int)       { return 0, 1 }
func (m *manyToken) Close() error                     { return nil }

// fillMany writes the records of a manyToken's keys to a new store in a file.
func fillMany(t testing.TB, path string, keys int) {
	t.Helper()
	s, err := sqlite.Open(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	c := &metastore.Content{Rows: map[string][][]any{}}
	for key := range keys {
		name, row := nameOfMany(key), int64(key+1)
		c.Rows["ez_key"] = append(c.Rows["ez_key"], []any{row, name, claviger.DefaultCipher, int64(256), nil,
			`{"key.acl.name":"` + name + `"}`, int64(1)})
		for version := range versionsOfMany {
			id := idOfMany(key, version)
			c.Rows["key_version"] = append(c.Rows["key_version"], []any{row, int64(version), fmt.Sprint(version),
				hex.EncodeToString(id), int64(1), checkOfMany(id)})
		}
		c.Rows["key_number"] = append(c.Rows["key_number"], []any{name, int64(0), int64(versionsOfMany)})
	}
	if err := s.Fill(t.Context(), c); err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
}

// openMany opens the store and the provider, as a server does at its start.
func openMany(t testing.TB, path string, tok *manyToken, log *slog.Logger) (*hsm.Provider, metastore.Store) {
	t.Helper()
	s, err := sqlite.OpenNode(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.Claim(t.Context(), owner.Self("claviger kms", ""), false); err != nil {
		t.Fatal(err)
	}
	p, err := hsm.OpenOn(t.Context(), tok, s, log)
	if err != nil {
		t.Fatal(err)
	}
	return p, s
}

// closeMany closes what openMany has opened.
func closeMany(t testing.TB) func(*hsm.Provider, metastore.Store) {
	return func(p *hsm.Provider, s metastore.Store) {
		t.Helper()
		if err := errors.Join(p.Close(), s.Close()); err != nil {
			t.Fatal(err)
		}
	}
}

// BenchmarkStart measures the start of a server with many keys of versionsOfMany versions, to the first answer: the
// store in SQLite is opened, the provider is bound, and one key is read and used. The token itself is a list in memory.
func BenchmarkStart(b *testing.B) {
	for _, keys := range []int{1_000, 100_000} {
		path, tok := filepath.Join(b.TempDir(), "claviger.db"), &manyToken{keys: keys}
		fillMany(b, path, keys)
		closeMany(b)(openMany(b, path, tok, slog.New(slog.DiscardHandler))) // binds store and token, once for all
		b.Run(fmt.Sprintf("keys=%d", keys), func(b *testing.B) {
			for b.Loop() {
				p, s := openMany(b, path, tok, slog.New(slog.DiscardHandler))
				name := nameOfMany(keys - 1)
				if m, err := p.Metadata(b.Context(), name); err != nil || m[0] == nil {
					b.Fatal(m, err)
				}
				if err := p.EncryptBlocks(b.Context(), name+"@2", make([]byte, 16)); err != nil {
					b.Fatal(err)
				}
				b.StopTimer()
				closeMany(b)(p, s)
				b.StartTimer()
			}
		})
	}
}
