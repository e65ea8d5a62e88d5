package keytrustee

import (
	"crypto/aes"
	"crypto/cipher"
	"slices"
	"sync"
	"time"

	"claviger/secret"
)

// maxMaterials bounds the number of kept versions.
const maxMaterials = 1 << 16

// materials keeps the material of versions in memory for a limited time, and then wipes it.
type materials struct {
	life time.Duration

	mu     sync.RWMutex
	closed bool
	list   map[string]*keptMaterial // by full version name
	timer  *time.Timer              // of the next sweep; nil if nothing is kept
}

// keptMaterial is the material of one version.
type keptMaterial struct {
	material secret.Bytes
	// block holds the key schedule. Go cannot wipe it, so it lives until it is collected.
	block cipher.Block
	until time.Time
}

func newMaterials(life time.Duration) *materials {
	return &materials{life: life, list: map[string]*keptMaterial{}}
}

// block returns the cipher of a version; nil if the version is not kept.
func (m *materials) block(version string) cipher.Block {
	m.mu.RLock()
	defer m.mu.RUnlock()
	if k := m.list[version]; k != nil && time.Now().Before(k.until) {
		return k.block
	}
	return nil
}

// material returns a copy of a version's material; nil if the version is not kept.
func (m *materials) material(version string) secret.Bytes {
	m.mu.RLock()
	defer m.mu.RUnlock()
	if k := m.list[version]; k != nil && time.Now().Before(k.until) {
		return slices.Clone(k.material)
	}
	return nil
}

// keep stores a copy of material.
func (m *materials) keep(version string, material secret.Bytes) error {
	block, err := aes.NewCipher(material)
	if err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.closed {
		return nil
	}
	m.drop(version)
	for other := range m.list {
		if len(m.list) < maxMaterials {
			break
		}
		m.drop(other)
	}
	m.list[version] = &keptMaterial{slices.Clone(material), block, time.Now().Add(m.life)}
	if m.timer == nil {
		m.timer = time.AfterFunc(m.life, m.sweep)
	}
	return nil
}

// forget wipes the material of these versions.
func (m *materials) forget(versions []versionRef) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, v := range versions {
		m.drop(v.Name)
	}
}

// clear wipes everything.
func (m *materials) clear() {
	m.mu.Lock()
	defer m.mu.Unlock()
	for version := range m.list {
		m.drop(version)
	}
}

// drop wipes one entry. The caller holds the lock.
func (m *materials) drop(version string) {
	if k := m.list[version]; k != nil {
		k.material.Wipe()
		delete(m.list, version)
	}
}

// sweep wipes expired entries. The timer calls sweep again until nothing is kept.
func (m *materials) sweep() {
	m.mu.Lock()
	defer m.mu.Unlock()
	now := time.Now()
	next := m.life
	for version, k := range m.list {
		if left := k.until.Sub(now); left > 0 {
			next = min(next, left)
		} else {
			m.drop(version)
		}
	}
	m.timer = nil
	if len(m.list) > 0 {
		m.timer = time.AfterFunc(next, m.sweep)
	}
}

// close wipes everything. After that, keep stores nothing.
func (m *materials) close() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.closed = true
	if m.timer != nil {
		m.timer.Stop()
		m.timer = nil
	}
	for version := range m.list {
		m.drop(version)
	}
}
