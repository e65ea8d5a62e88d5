package pkcs11

import (
	"sync"
	"sync/atomic"
	"time"
)

// learnedFor is the time for which a Token remembers a result that is worse than its profile: fewer sessions, less data
// in a call, another mechanism. The cause may end, and one wrong result must not slow all later calls.
const learnedFor = time.Minute

// maxLearned is the number of keys above which results that no longer count are dropped.
const maxLearned = 1024

// learned has, for single keys, a result that is worse than the token's profile.
type learned[T any] struct {
	byKey sync.Map     // keyName -> lesson[T]
	keys  atomic.Int64 // number of them
}

type lesson[T any] struct {
	value T
	until time.Time
}

// get returns the result for a key. known says that there is a result, and counts that it is not too old.
func (l *learned[T]) get(name keyName) (value T, known, counts bool) {
	if l.keys.Load() == 0 {
		return value, false, false
	}
	v, known := l.byKey.Load(name)
	r, _ := v.(lesson[T])
	return r.value, known, known && time.Now().Before(r.until)
}

// set remembers the result for a key. first says that there was none for any key.
func (l *learned[T]) set(name keyName, value T) (first bool) {
	if l.keys.Load() >= maxLearned {
		l.prune()
	}
	if _, known := l.byKey.Swap(name, lesson[T]{value, time.Now().Add(learnedFor)}); known {
		return false
	}
	return l.keys.Add(1) == 1
}

// drop forgets the result for a key. last says that it was the only one.
func (l *learned[T]) drop(name keyName) (last bool) {
	_, known := l.byKey.LoadAndDelete(name)
	return known && l.keys.Add(-1) == 0
}

// prune forgets results that no longer count. Their keys may never be used again.
func (l *learned[T]) prune() {
	now := time.Now()
	for name, v := range l.byKey.Range {
		if r, _ := v.(lesson[T]); now.After(r.until) && l.byKey.CompareAndDelete(name, v) {
			l.keys.Add(-1)
		}
	}
}
