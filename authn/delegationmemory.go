package authn

import (
	"bytes"
	"cmp"
	"context"
	"maps"
	"slices"
	"sync"
	"time"

	"claviger"
	"claviger/metastore"
)

// memoryTokens is the token store of a single node. Its tokens end with the process, as in Hadoop's default store.
type memoryTokens struct {
	now func() time.Time

	mu       sync.Mutex
	sequence int32
	keyID    int32
	keys     map[int32]metastore.MasterKey
	tokens   map[int32]metastore.Delegation
}

var _ metastore.Delegations = (*memoryTokens)(nil)

func newMemoryTokens(now func() time.Time) *memoryTokens {
	return &memoryTokens{now: now, keys: make(map[int32]metastore.MasterKey),
		tokens: make(map[int32]metastore.Delegation)}
}

func (m *memoryTokens) NextSequences(_ context.Context, n int32) (first int32, err error) {
	if n <= 0 {
		return 0, claviger.Errorf("authn.NextSequences", claviger.Invalid, "",
			"%d sequence numbers were requested; the count must be positive", n)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.sequence += n
	return m.sequence - n + 1, nil
}

func (m *memoryTokens) NextKeyID(context.Context) (int32, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.keyID++
	return m.keyID, nil
}

func (m *memoryTokens) PutMasterKey(_ context.Context, k metastore.MasterKey) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	k.Key = bytes.Clone(k.Key)
	m.keys[k.ID] = k
	return nil
}

func (m *memoryTokens) MasterKeys(context.Context) ([]metastore.MasterKey, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.SortedFunc(maps.Values(m.keys),
			func(a, b metastore.MasterKey) int { return cmp.Compare(a.ID, b.ID) }),
		nil
}

func (m *memoryTokens) RemoveMasterKey(_ context.Context, id int32) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.keys, id)
	return nil
}

func (m *memoryTokens) PutDelegation(_ context.Context, d metastore.Delegation) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.tokens[d.Sequence] = d
	return nil
}

func (m *memoryTokens) RenewDelegation(_ context.Context, sequence int32, renew time.Time) (bool, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	d, ok := m.tokens[sequence]
	if ok {
		d.Renew = renew
		m.tokens[sequence] = d
	}
	return ok, nil
}

func (m *memoryTokens) Delegation(_ context.Context, sequence int32) (metastore.Delegation, bool, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	d, ok := m.tokens[sequence]
	return d, ok, nil
}

func (m *memoryTokens) RemoveDelegation(_ context.Context, sequence int32) (bool, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	_, ok := m.tokens[sequence]
	delete(m.tokens, sequence)
	return ok, nil
}

func (m *memoryTokens) RemoveExpired(_ context.Context, before time.Time) (int, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.removeExpired(before), nil
}

func (m *memoryTokens) removeExpired(before time.Time) int {
	n := len(m.tokens)
	maps.DeleteFunc(m.tokens, func(_ int32, d metastore.Delegation) bool { return d.Renew.Before(before) })
	return n - len(m.tokens)
}

// Clocks compares the process's clock with itself, because no other node uses this store.
func (m *memoryTokens) Clocks(context.Context) (metastore.Clocks, error) {
	now := m.now()
	return metastore.Compare(now, now, now, "this process's"), nil
}

func (m *memoryTokens) CountDelegations(context.Context) (int, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return len(m.tokens), nil
}

// Identifiers holds the lock only while it lists the tokens, and not while fn runs.
func (m *memoryTokens) Identifiers(_ context.Context, fn func(identifier []byte)) error {
	m.mu.Lock()
	all := make([][]byte, 0, len(m.tokens))
	for _, d := range m.tokens {
		all = append(all, d.Identifier)
	}
	m.mu.Unlock()
	for _, b := range all {
		fn(b)
	}
	return nil
}
