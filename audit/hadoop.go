package audit

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
	"time"

	"claviger"
)

// timeLayout is log4j's %d{ISO8601}, in local time.
const timeLayout = "2006-01-02 15:04:05,000"

// maxOwed is how many lines are kept for better times while none can be written.
const maxOwed = 1 << 12

// maxHeld is how many aggregated entries are held. A caller can make up key
// names, so there must be an end; what comes above it is written at once.
const maxHeld = 1 << 14

// aggregated are the operations that Hadoop does not write line by line.
var aggregated = map[Op]bool{GetKeyVersion: true, GetCurrentKey: true, DecryptEEK: true, GenerateEEK: true,
	ReencryptEEK: true}

// Hadoop writes Hadoop's kms-audit.log:
//
//	2026-11-23 14:03:30,123 OK[op=CREATE_KEY, key=k1, user=alice] UserProvidedMaterial:false Description:null
//
// The frequent operations are aggregated as there. The first OK of a user, key
// and operation is written at once, with accessCount=1. At the end of the window
// a second line tells how many there were, the first included; then the entry
// stays for one more window, in which nothing is written at once, and so on as
// long as each window brings something. interval is the time since the entry was
// made. An UNAUTHORIZED of the same user, key and operation ends the window.
type Hadoop struct {
	window time.Duration
	now    func() time.Time
	stop   chan struct{} // closed by Close; nil where nothing is aggregated
	swept  chan struct{} // closed when the sweeping has ended

	mu     sync.Mutex // guards what follows, and keeps lines whole and in order
	w      io.Writer
	held   map[heldKey]*heldEntry
	owed   []string // lines that could not be written yet, the oldest first
	err    error
	closed bool
}

type heldKey struct {
	user, key string
	op        Op
}

type heldEntry struct {
	first Event // whose message is written
	count int64 // since the last line; the first line's event counts again
	ends  time.Time
}

var (
	_ Logger = (*Hadoop)(nil)
	_ Guard  = (*Hadoop)(nil)
)

// errClosed is what Err says after Close.
var errClosed = errors.New("the audit log is closed")

// NewHadoop writes to w, one Write a line, and closes it on Close if it can be
// closed. window is hadoop.kms.audit.aggregation.window.ms; with 0 every event
// is a line.
func NewHadoop(w io.Writer, window time.Duration) *Hadoop {
	h := newHadoop(w, window, time.Now)
	if window > 0 {
		h.stop, h.swept = make(chan struct{}), make(chan struct{})
		go h.run()
	}
	return h
}

func newHadoop(w io.Writer, window time.Duration, now func() time.Time) *Hadoop {
	return &Hadoop{window: window, now: now, w: w, held: make(map[heldKey]*heldEntry)}
}

// run ends windows; as in Hadoop a line may come up to a tenth of a window late.
func (h *Hadoop) run() {
	defer close(h.swept)
	tick := time.NewTicker(max(h.window/10, time.Millisecond))
	defer tick.Stop()
	for {
		select {
		case <-h.stop:
			return
		case <-tick.C:
			h.sweep()
		}
	}
}

// sweep ends the windows that are over.
func (h *Hadoop) sweep() {
	h.mu.Lock()
	defer h.mu.Unlock()
	if len(h.owed) > 0 {
		h.pay()
	}
	now := h.now()
	h.end(now, func(e *heldEntry) bool { return !now.Before(e.ends) })
}

// end ends the windows that over names, the oldest first. An entry that had
// nothing to tell is dropped, another begins its next window.
func (h *Hadoop) end(now time.Time, over func(*heldEntry) bool) {
	var ended []heldKey
	for k, e := range h.held {
		if over(e) {
			ended = append(ended, k)
		}
	}
	slices.SortFunc(ended, func(a, b heldKey) int {
		return cmp.Or(h.held[a].first.Time.Compare(h.held[b].first.Time), strings.Compare(string(a.op), string(b.op)),
			strings.Compare(a.key, b.key), strings.Compare(a.user, b.user))
	})
	for _, k := range ended {
		h.endOne(k, now)
	}
}

func (h *Hadoop) endOne(k heldKey, now time.Time) {
	e := h.held[k]
	if e == nil {
		return
	}
	if e.count == 0 {
		delete(h.held, k)
		return
	}
	h.write(now, aggregatedLine(e.first, e.count, now))
	e.count, e.ends = 0, now.Add(h.window)
}

// Log writes or counts an event.
func (h *Hadoop) Log(_ context.Context, e Event) {
	switch e.Op {
	case GetDelegationToken, RenewDelegationToken, CancelDelegationToken:
		return // Hadoop has no line for them
	}
	e = e.masked()
	h.mu.Lock()
	defer h.mu.Unlock()
	now := h.now()
	if e.Time.IsZero() {
		e.Time = now
	}
	if e.KeyRight || !aggregated[e.Op] || e.Key == "" || e.Caller.Name == "" {
		h.write(e.Time, line(e))
		return
	}
	k := heldKey{e.Caller.Name, e.Key, e.Op}
	if e.Status != OK {
		if e.Status == Unauthorized {
			h.endOne(k, now)
		}
		h.write(e.Time, line(e))
		return
	}
	if held := h.held[k]; held != nil {
		held.count++
		return
	}
	if h.window > 0 && len(h.held) < maxHeld {
		h.held[k] = &heldEntry{first: e, count: 1, ends: now.Add(h.window)}
	}
	h.write(e.Time, aggregatedLine(e, 1, e.Time))
}

// Begin says no as long as a line is owed, after one more try. Hadoop's format
// has no line for what has only begun, so that a yes means no more than that all
// lines before were written. Chain promises more.
func (h *Hadoop) Begin(_ context.Context, e Event) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.err != nil && !h.closed {
		h.pay()
	}
	if h.err != nil {
		return refused(e, h.err)
	}
	return nil
}

// refused is the error of an operation that is not done for want of its record.
func refused(e Event, err error) error {
	return claviger.Errorf("audit.Begin", claviger.Unavailable, e.Key, "%s is not done, since it cannot be audited: %w",
		e.Op, err)
}

// Err is nil while lines can be written. What could not be written is tried
// again with the next line, and is lost where it is more than 4,096 lines.
func (h *Hadoop) Err() error {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.err
}

// Reopen opens a file anew, as after a rotation by somebody else.
func (h *Hadoop) Reopen() error {
	if f, ok := h.w.(*File); ok {
		return f.Reopen()
	}
	return nil
}

// Close ends all windows, then closes the writer. Events that come later are
// lost, and Err says so.
func (h *Hadoop) Close() error {
	h.mu.Lock()
	if h.closed {
		h.mu.Unlock()
		return nil
	}
	now := h.now()
	if len(h.owed) > 0 {
		h.pay()
	}
	h.end(now, func(*heldEntry) bool { return true })
	err := h.err
	h.closed, h.err = true, errClosed
	h.mu.Unlock()

	if h.stop != nil {
		close(h.stop)
		<-h.swept
	}
	if c, ok := h.w.(io.Closer); ok {
		err = errors.Join(err, c.Close())
	}
	return err
}

// write writes one line. h.mu is held.
func (h *Hadoop) write(at time.Time, text string) {
	if h.closed {
		return
	}
	if len(h.owed) == maxOwed {
		h.owed = h.owed[1:]
	}
	h.owed = append(h.owed, at.Local().Format(timeLayout)+" "+text+"\n")
	h.pay()
}

// pay writes what is owed. h.mu is held.
func (h *Hadoop) pay() {
	h.err = nil
	if f, ok := h.w.(*File); ok {
		turned, err := f.Turn(h.now())
		if h.err = err; err != nil && !turned {
			return // it would be written into a file that nobody finds
		}
	}
	for i, l := range h.owed {
		if _, err := h.w.Write([]byte(l)); err != nil {
			h.err = err
			h.owed = slices.Delete(h.owed, 0, i)
			return
		}
	}
	h.owed = h.owed[:0]
}

// line words an event as Hadoop's SimpleKMSAuditLogger does. A blank always
// stands before the message, even before an empty one.
func line(e Event) string {
	user := "user=" + inLine(e.Caller.Name)
	switch {
	case e.Status == Unauthenticated:
		return fmt.Sprintf("%s RemoteHost:%s Method:%s URL:%s ErrorMsg:'%s'", e.Status, inLine(e.Caller.RemoteAddr),
			inLine(e.Method), inLine(e.URL), firstLine(e.Message))
	case e.Status == Error && e.Caller.Name == "":
		return fmt.Sprintf("%s Method:'%s' Exception:'%s'", e.Status, inLine(e.Method), firstLine(e.Message))
	case e.Status == Error:
		return fmt.Sprintf("%s[%s] Method:'%s' Exception:'%s'", e.Status, user, inLine(e.Method), firstLine(e.Message))
	}
	var parts []string
	if e.Op != "" {
		parts = append(parts, "op="+string(e.Op))
	}
	if e.Key != "" {
		parts = append(parts, "key="+inLine(e.Key))
	}
	if e.Caller.Name != "" {
		parts = append(parts, user)
	}
	if len(parts) == 0 {
		return string(e.Status) + " " + firstLine(e.Message)
	}
	return string(e.Status) + "[" + strings.Join(parts, ", ") + "] " + firstLine(e.Message)
}

func aggregatedLine(e Event, count int64, now time.Time) string {
	return fmt.Sprintf("%s[op=%s, key=%s, user=%s, accessCount=%d, interval=%dms] %s",
		e.Status, e.Op, inLine(e.Key), inLine(e.Caller.Name), count, now.Sub(e.Time).Milliseconds(),
		firstLine(e.Message))
}

// firstLine is all that is written of a message: the rest of an exception's text
// would look like lines of its own.
func firstLine(s string) string {
	if i := strings.IndexAny(s, "\r\n"); i >= 0 {
		s = s[:i]
	}
	return inLine(s)
}

// inLine keeps a text in its line. Names and URLs may hold any character.
func inLine(s string) string { return claviger.Escape(s, "") }
