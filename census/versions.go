package census

import (
	"fmt"
	"sync"
)

// maxVersions bounds the key versions of an image.
const maxVersions = 1 << 20

// versions gives each key version a number. The number 0 stands for no EDEK.
type versions struct {
	mu      sync.Mutex
	numbers map[string]uint32
	names   []string
}

func newVersions() *versions {
	return &versions{numbers: map[string]uint32{"": 0}, names: []string{""}}
}

// local is a cache of versions for one goroutine.
type local struct {
	all        *versions
	numbers    map[string]uint32
	last       string // the last name, with its number: the next inode often has the same version
	lastNumber uint32
}

func (v *versions) local() local { return local{all: v, numbers: map[string]uint32{}} }

// number returns the number of a version.
func (l *local) number(name []byte) (uint32, error) {
	if string(name) == l.last { // neither this nor the next lookup allocates
		return l.lastNumber, nil
	}
	n, ok := l.numbers[string(name)]
	if !ok {
		var err error
		if n, err = l.all.number(string(name)); err != nil {
			return 0, err
		}
		l.numbers[string(name)] = n
	}
	l.last, l.lastNumber = l.all.name(n), n
	return n, nil
}

func (v *versions) number(name string) (uint32, error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	n, ok := v.numbers[name]
	if !ok {
		if len(v.names) == maxVersions {
			return 0, fmt.Errorf("there are more than %d key versions", maxVersions)
		}
		n = uint32(len(v.names)) //nolint:gosec // <= maxVersions
		v.names = append(v.names, name)
		v.numbers[name] = n
	}
	return n, nil
}

func (v *versions) name(number uint32) string {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.names[number]
}
