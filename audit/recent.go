package audit

import (
	"container/list"
	"context"
	"slices"
	"strings"
	"sync"
	"time"
)

// Recent keeps the last events in memory, for a console. Uses of keys that succeeded are joined with the last equal
// event, as in Hadoop's log, so that a busy key does not push out the others. It forgets all when the process ends.
type Recent struct {
	most int

	mu     sync.Mutex
	events *list.List // of *RecentEvent, newest first
	joined map[joinedKey]*list.Element
}

// RecentEvent is an event of Recent. Its Time is that of the last of the joined events.
type RecentEvent struct {
	Event
	Count int // of joined events
	First time.Time
}

// joinedKey has what is equal in events that are joined.
type joinedKey struct {
	op              Op
	key, user, real string
}

// NewRecent makes a Recent for that many events.
func NewRecent(most int) *Recent {
	return &Recent{most: most, events: list.New(), joined: make(map[joinedKey]*list.Element)}
}

// maxRecentText is the longest text that Recent keeps, in bytes. A text may be part of a long request.
const maxRecentText = 1 << 10

// Log is part of Logger.
func (r *Recent) Log(_ context.Context, e Event) {
	if e.Time.IsZero() {
		e.Time = time.Now()
	}
	key, joins := joinKey(&e)
	r.mu.Lock()
	defer r.mu.Unlock()
	if joins {
		if at := r.joined[key]; at != nil {
			if known, ok := at.Value.(*RecentEvent); ok {
				known.Time, known.Version, known.Caller.RemoteAddr = e.Time, e.Version, e.Caller.RemoteAddr
				known.Caller.RequestID = e.Caller.RequestID
				known.Count, known.EDEKs = known.Count+1, known.EDEKs+e.EDEKs
				r.events.MoveToFront(at)
				return
			}
		}
	}
	at := r.events.PushFront(&RecentEvent{Event: e.brief(), Count: 1, First: e.Time})
	if joins {
		r.joined[key] = at
	}
	if r.events.Len() > r.most {
		r.drop(r.events.Back())
	}
}

// drop removes an event. The caller holds the lock.
func (r *Recent) drop(at *list.Element) {
	r.events.Remove(at)
	if e, ok := at.Value.(*RecentEvent); ok {
		if key, joins := joinKey(&e.Event); joins && r.joined[key] == at {
			delete(r.joined, key)
		}
	}
}

// joinKey returns what is equal in events that are joined; ok is false for changes of keys, and for all that failed.
func joinKey(e *Event) (k joinedKey, ok bool) {
	if e.Status != OK || slices.Contains(Management, e.Op) || len(e.Key) > maxRecentText {
		return k, false
	}
	k = joinedKey{op: e.Op, key: e.Key, user: e.Caller.Name}
	if e.Caller.Real != nil {
		k.real = e.Caller.Real.Name
	}
	return k, true
}

// brief returns the event with short texts that share no memory with a request.
func (e Event) brief() Event {
	for _, text := range []*string{&e.Key, &e.Version, &e.Message, &e.URL} {
		if len(*text) > maxRecentText {
			*text = strings.ToValidUTF8((*text)[:maxRecentText], "") + "…"
		}
		*text = strings.Clone(*text)
	}
	e.From = nil
	return e
}

// Events returns the events without credentials, newest first.
func (r *Recent) Events() []RecentEvent {
	r.mu.Lock()
	events := make([]RecentEvent, 0, r.events.Len())
	for at := r.events.Front(); at != nil; at = at.Next() {
		if e, ok := at.Value.(*RecentEvent); ok {
			events = append(events, *e)
		}
	}
	r.mu.Unlock()
	for i := range events {
		events[i].Event = events[i].masked()
	}
	return events
}

// Err is part of Logger.
func (r *Recent) Err() error { return nil }

// Close is part of Logger.
func (r *Recent) Close() error { return nil }

var _ Logger = (*Recent)(nil)
