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

// maxPending is the maximum number of lines that are kept while no line can be written.
const maxPending = 1 << 12

// maxHeld is the maximum number of aggregated entries. A limit is needed because a caller can invent names of keys.
// Above the limit, each event gets its own line.
const maxHeld = 1 << 14

// aggregated has the operations that Hadoop aggregates.
var aggregated = map[Op]bool{GetKeyVersion: true, GetCurrentKey: true, DecryptEEK: true, GenerateEEK: true,
	ReencryptEEK: true}

// Hadoop writes Hadoop's kms-audit.log:
//
//	2026-11-23 14:03:30,123 OK[op=CREATE_KEY, key=k1, user=alice] UserProvidedMaterial:false Description:null
//
// Frequent operations are aggregated as in Hadoop. For each user, key and operation, the first OK is written at once,
// with accessCount=1, and a window begins. At the end of the window, a second line has the number of events, including
// the first event. Then the next window begins, in which no event is written at once. If a window has no events, the
// entry ends. interval is the time since the entry was made. An UNAUTHORIZED of the same user, key and operation ends
// the window.
type Hadoop struct {
	window time.Duration
	now    func() time.Time
	stop   chan struct{} // closed by Close; nil if nothing is aggregated
	done   chan struct{} // closed when run has ended

	mu      sync.Mutex // guards the fields below, and keeps lines whole and in order
	w       io.Writer
	held    map[heldKey]*heldEntry
	pending []string // lines that could not be written yet, the oldest first
	err     error
	closed  bool
}

type heldKey struct {
	user, key string
	op        Op
}

type heldEntry struct {
	first Event     // its message is written
	count int64     // events since the last line; the event of the first line counts again
	ends  time.Time // of the window
}

var (
	_ Logger = (*Hadoop)(nil)
	_ Guard  = (*Hadoop)(nil)
)

// errClosed is the result of Err after Close.
var errClosed = errors.New("the audit log is closed")

// NewHadoop makes a Hadoop that writes to w, with one Write for each line. If w is an io.Closer, Close closes it.
// window is hadoop.kms.audit.aggregation.window.ms; if it is 0, each event gets its own line.
func NewHadoop(w io.Writer, window time.Duration) *Hadoop {
	h := newHadoop(w, window, time.Now)
	if window > 0 {
		h.stop, h.done = make(chan struct{}), make(chan struct{})
		go h.run()
	}
	return h
}

func newHadoop(w io.Writer, window time.Duration, now func() time.Time) *Hadoop {
	return &Hadoop{window: window, now: now, w: w, held: make(map[heldKey]*heldEntry)}
}

// run ends windows. As in Hadoop, a line may be late by up to a tenth of a window.
func (h *Hadoop) run() {
	defer close(h.done)
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

// sweep ends the windows whose time has passed.
func (h *Hadoop) sweep() {
	h.mu.Lock()
	defer h.mu.Unlock()
	if len(h.pending) > 0 {
		h.writePending()
	}
	now := h.now()
	h.endWindows(now, func(e *heldEntry) bool { return !now.Before(e.ends) })
}

// endWindows ends the windows that ends selects, the oldest first.
func (h *Hadoop) endWindows(now time.Time, ends func(*heldEntry) bool) {
	var ended []heldKey
	for k, e := range h.held {
		if ends(e) {
			ended = append(ended, k)
		}
	}
	slices.SortFunc(ended, func(a, b heldKey) int {
		return cmp.Or(h.held[a].first.Time.Compare(h.held[b].first.Time), strings.Compare(string(a.op), string(b.op)),
			strings.Compare(a.key, b.key), strings.Compare(a.user, b.user))
	})
	for _, k := range ended {
		h.endWindow(k, now)
	}
}

// endWindow ends the window of an entry. If the window had events, endWindow writes a line and begins the next window;
// otherwise it removes the entry.
func (h *Hadoop) endWindow(k heldKey, now time.Time) {
	e := h.held[k]
	if e == nil || e.count == 0 {
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
		return // Hadoop writes no line for these
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
			h.endWindow(k, now)
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

// Begin tries to write the pending lines, and returns an error if that fails. Hadoop's format has no line for an
// attempt, so nil only means that all earlier lines were written. Chain also writes the
// attempt itself.
func (h *Hadoop) Begin(_ context.Context, e Event) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.err != nil && !h.closed {
		h.writePending()
	}
	if h.err != nil {
		return refused(e, h.err)
	}
	return nil
}

// refused returns the error for an operation that cannot be recorded and so is not done.
func refused(e Event, err error) error {
	return claviger.Errorf("audit.Begin", claviger.Unavailable, e.Key, "%s is not done, since it cannot be audited: %w",
		e.Op, err)
}

// Err is nil while lines can be written. Lines that could not be written are tried again with the next line. If there
// are more than 4,096 of them, the oldest are lost.
func (h *Hadoop) Err() error {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.err
}

// Reopen opens the file again, for example after a rotation by logrotate.
func (h *Hadoop) Reopen() error {
	if f, ok := h.w.(*File); ok {
		return f.Reopen()
	}
	return nil
}

// Close ends all windows, then closes the writer. Later events are lost, and Err returns an error.
func (h *Hadoop) Close() error {
	h.mu.Lock()
	if h.closed {
		h.mu.Unlock()
		return nil
	}
	now := h.now()
	if len(h.pending) > 0 {
		h.writePending()
	}
	h.endWindows(now, func(*heldEntry) bool { return true })
	err := h.err
	h.closed, h.err = true, errClosed
	h.mu.Unlock()

	if h.stop != nil {
		close(h.stop)
		<-h.done
	}
	if c, ok := h.w.(io.Closer); ok {
		err = errors.Join(err, c.Close())
	}
	return err
}

// write writes one line. The caller holds h.mu.
func (h *Hadoop) write(at time.Time, text string) {
	if h.closed {
		return
	}
	if len(h.pending) == maxPending {
		h.pending = h.pending[1:]
	}
	h.pending = append(h.pending, at.Local().Format(timeLayout)+" "+text+"\n")
	h.writePending()
}

// writePending writes the pending lines. The caller holds h.mu.
func (h *Hadoop) writePending() {
	h.err = nil
	if f, ok := h.w.(*File); ok {
		newFile, err := f.RotateIfNeeded(h.now())
		if h.err = err; err != nil && !newFile {
			return // the open file was moved or removed, so the lines would be in a file without a path
		}
	}
	for i, l := range h.pending {
		if _, err := h.w.Write([]byte(l)); err != nil {
			h.err = err
			h.pending = slices.Delete(h.pending, 0, i)
			return
		}
	}
	h.pending = h.pending[:0]
}

// line returns the line of an event, as Hadoop's SimpleKMSAuditLogger writes it. There is always a blank before the
// message, even if the message is empty.
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

// firstLine returns the first line of a message. The other lines would look like lines of the log.
func firstLine(s string) string {
	if i := strings.IndexAny(s, "\r\n"); i >= 0 {
		s = s[:i]
	}
	return inLine(s)
}

// inLine escapes characters that end or disturb a line. Names and URLs may contain any character.
func inLine(s string) string { return claviger.Escape(s, "") }
