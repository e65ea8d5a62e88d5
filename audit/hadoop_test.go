package audit

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"claviger"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var (
	stamped      = regexp.MustCompile(`^(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3}) (.*)$`)
	aggregatedRE = regexp.MustCompile(`^OK\[op=(\w+), key=(.*), user=(\w+), accessCount=(\d+), interval=(\d+)ms\] $`)
	plainRE      = regexp.MustCompile(`^(OK|UNAUTHORIZED)\[op=(\w+)(?:, key=(.*?))?, user=(\w+)\] (.*)$`)
	errorRE      = regexp.MustCompile(`^ERROR\[user=(\w+)\] Method:'(\w+)' Exception:'(.*)'$`)
	unauthRE     = regexp.MustCompile(`^UNAUTHENTICATED RemoteHost:(\S+) Method:(\w+) URL:(\S+) ErrorMsg:'(.*)'$`)
)

// step is an event of the recorded KMS. A step without an event only ends windows.
type step struct {
	at    time.Time
	event *Event
}

// readLog returns the events that produced a recorded log. An access that was only counted happened at an unknown time
// within the window; readLog puts it at the beginning of the window.
func readLog(t *testing.T, file string) (steps []step, lines []string) {
	t.Helper()
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	lines = strings.Split(strings.TrimSuffix(string(data), "\n"), "\n")
	// The sample was joined from several parts, so sort it by time.
	slices.SortStableFunc(lines, func(a, b string) int { return strings.Compare(a[:23], b[:23]) })
	begun := make(map[string]*Event)
	var begunAt time.Time
	for _, l := range lines {
		m := stamped.FindStringSubmatch(l)
		at, err := time.ParseInLocation(timeLayout, m[1], time.Local)
		if err != nil {
			t.Fatal(err)
		}
		e := &Event{Time: at}
		text := m[2]
		if m := aggregatedRE.FindStringSubmatch(text); m != nil {
			e.Status, e.Op, e.Key, e.Caller = OK, Op(m[1]), m[2], caller(m[3])
			count, _ := strconv.Atoi(m[4])
			interval, _ := strconv.Atoi(m[5])
			id := m[1] + " " + m[2] + " " + m[3]
			if first := begun[id]; first != nil && interval > 1000 {
				for range count - 1 {
					steps = append(steps, step{begunAt, first})
				}
				steps = append(steps, step{at: at})
				continue
			}
			e.Time = at.Add(-time.Duration(interval) * time.Millisecond)
			begun[id], begunAt = e, e.Time
		} else if m := plainRE.FindStringSubmatch(text); m != nil {
			e.Status, e.Op, e.Key, e.Caller, e.Message = Status(m[1]), Op(m[2]), m[3], caller(m[4]), m[5]
		} else if m := errorRE.FindStringSubmatch(text); m != nil {
			e.Status, e.Caller, e.Method, e.Message = Error, caller(m[1]), m[2], m[3]
		} else if m := unauthRE.FindStringSubmatch(text); m != nil {
			e.Status, e.Caller.RemoteAddr, e.Method, e.URL, e.Message = Unauthenticated, m[1], m[2], m[3], m[4]
		} else {
			t.Fatalf("line of an unknown form: %s", l)
		}
		steps = append(steps, step{e.Time, e})
	}
	slices.SortStableFunc(steps, func(a, b step) int { return a.at.Compare(b.at) })
	return steps, lines
}

func caller(name string) claviger.Caller {
	return claviger.Caller{Principal: claviger.Principal{Name: name, Short: name}}
}

// TestAsRecorded logs the events of a real Java KMS, and compares the lines.
func TestAsRecorded(t *testing.T) {
	for _, file := range []string{"kms-audit-sample.log", "acl-kms-audit.log"} {
		t.Run(file, func(t *testing.T) {
			steps, want := readLog(t, "testdata/"+file)
			var out bytes.Buffer
			var now time.Time
			h := newHadoop(&out, 10*time.Second, func() time.Time { return now })
			for i, s := range steps {
				if i > 0 && s.at.Sub(now) > 12*time.Second { // the recorded KMS swept each second
					now = s.at.Add(-time.Second)
					h.sweep()
				}
				if now = s.at; s.event == nil {
					h.sweep()
				} else {
					h.Log(t.Context(), *s.event)
				}
			}
			got := strings.Split(strings.TrimSuffix(out.String(), "\n"), "\n")
			// Times and intervals may differ by some milliseconds: the Java KMS needed time to write a line, and ended
			// windows one after the other.
			got, want = round(got), round(want)
			if missing, extra := without(want, got), without(got, want); len(missing)+len(extra) > 0 {
				t.Errorf("missing:\n%s\nextra:\n%s", strings.Join(missing, "\n"), strings.Join(extra, "\n"))
			}
			if len(want) < 40 {
				t.Errorf("only %d lines", len(want))
			}
		})
	}
}

// round cuts time stamps to seconds, and rounds intervals to seconds.
func round(lines []string) []string {
	interval := regexp.MustCompile(`interval=(\d+)ms`)
	var out []string
	for _, l := range lines {
		l = l[:19] + l[23:]
		out = append(out, interval.ReplaceAllStringFunc(l, func(s string) string {
			ms, _ := strconv.Atoi(interval.FindStringSubmatch(s)[1])
			return fmt.Sprintf("interval=%.0fs", float64(ms)/1000)
		}))
	}
	return out
}

// without returns the lines of a that are not in b. A line that a has more often than b is returned too.
func without(a, b []string) []string {
	unmatched := slices.Clone(b)
	var out []string
	for _, x := range a {
		if i := slices.Index(unmatched, x); i >= 0 {
			unmatched = slices.Delete(unmatched, i, i+1)
		} else {
			out = append(out, x)
		}
	}
	return out
}

// testLog is a log whose clock the test sets.
type testLog struct {
	*Hadoop
	out bytes.Buffer
	now time.Time
}

func newTestLog(window time.Duration) *testLog {
	l := &testLog{now: time.Date(2026, 11, 23, 14, 0, 0, 0, time.Local)}
	l.Hadoop = newHadoop(&l.out, window, func() time.Time { return l.now })
	return l
}

func (l *testLog) logOK(op Op, key, user string) {
	l.Log(context.Background(), Event{Status: OK, Op: op, Key: key, Caller: caller(user)})
}

func (l *testLog) logRefused(op Op, key, user string, keyRight bool) {
	l.Log(context.Background(), Event{Status: Unauthorized, Op: op, KeyRight: keyRight, Key: key, Caller: caller(user)})
}

// advance moves the clock, and sweeps each second as run does.
func (l *testLog) advance(d time.Duration) {
	for end := l.now.Add(d); l.now.Before(end); {
		l.now = l.now.Add(time.Second)
		l.sweep()
	}
}

// expect compares the lines since the last call, without their time stamps.
func (l *testLog) expect(t *testing.T, want ...string) {
	t.Helper()
	var got []string
	for line := range strings.Lines(l.out.String()) {
		got = append(got, strings.TrimSuffix(line[24:], "\n"))
	}
	l.out.Reset()
	if !slices.Equal(got, want) {
		t.Errorf("got\n  %s\nwant\n  %s", strings.Join(got, "\n  "), strings.Join(want, "\n  "))
	}
}

func okLine(op, key, user string, count, ms int) string {
	return fmt.Sprintf("OK[op=%s, key=%s, user=%s, accessCount=%d, interval=%dms] ", op, key, user, count, ms)
}

// TestAggregation: events of one user, key and operation are counted in one line a window, as in Hadoop.
func TestAggregation(t *testing.T) {
	l := newTestLog(10 * time.Second)
	l.logOK(DecryptEEK, "k", "u")
	l.expect(t, okLine("DECRYPT_EEK", "k", "u", 1, 0))
	l.logOK(DecryptEEK, "k", "u")
	l.logOK(DecryptEEK, "k", "u")
	l.logOK(DecryptEEK, "k", "other")
	l.logOK(DecryptEEK, "other", "u")
	l.logOK(GenerateEEK, "k", "u")
	l.expect(t, okLine("DECRYPT_EEK", "k", "other", 1, 0), okLine("DECRYPT_EEK", "other", "u", 1, 0),
		okLine("GENERATE_EEK", "k", "u", 1, 0))
	l.advance(9 * time.Second)
	l.expect(t)
	l.advance(time.Second) // the line of a window counts the first event again
	l.expect(t, okLine("DECRYPT_EEK", "k", "other", 1, 10000), okLine("DECRYPT_EEK", "k", "u", 3, 10000),
		okLine("DECRYPT_EEK", "other", "u", 1, 10000), okLine("GENERATE_EEK", "k", "u", 1, 10000))
	l.advance(5 * time.Second)
	l.logOK(DecryptEEK, "k", "u") // the next window: counted, not written
	l.expect(t)
	l.advance(5 * time.Second)
	l.expect(t, okLine("DECRYPT_EEK", "k", "u", 1, 20000))
	l.advance(10 * time.Second) // a window without events ends the entry
	l.expect(t)
	l.logOK(DecryptEEK, "k", "u")
	l.expect(t, okLine("DECRYPT_EEK", "k", "u", 1, 0))
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	l.expect(t, okLine("DECRYPT_EEK", "k", "u", 1, 0))
	if len(l.held) != 1 {
		t.Errorf("%d entries held, want 1, for the last event", len(l.held))
	}
}

// TestRefusalEndsWindow: a refusal by an operation's rule writes the count so far and ends the window.
func TestRefusalEndsWindow(t *testing.T) {
	l := newTestLog(10 * time.Second)
	const refused = "UNAUTHORIZED[op=DECRYPT_EEK, key=k, user=u] "
	l.logOK(DecryptEEK, "k", "u")
	l.logOK(DecryptEEK, "k", "u")
	l.logOK(DecryptEEK, "k", "other")
	l.expect(t, okLine("DECRYPT_EEK", "k", "u", 1, 0), okLine("DECRYPT_EEK", "k", "other", 1, 0))
	l.advance(2 * time.Second)
	l.logRefused(DecryptEEK, "k", "u", true) // a key-level right ends no window
	l.expect(t, refused)
	l.logRefused(DecryptEEK, "k", "u", false)
	l.expect(t, okLine("DECRYPT_EEK", "k", "u", 2, 2000), refused)
	l.logRefused(DecryptEEK, "k", "u", false) // the window has no events
	l.expect(t, refused)
	l.logOK(DecryptEEK, "k", "u")
	l.expect(t, okLine("DECRYPT_EEK", "k", "u", 1, 0))
}

// TestNotAggregated: the events that have a line each.
func TestNotAggregated(t *testing.T) {
	l := newTestLog(10 * time.Second)
	for range 2 {
		l.logOK(GetMetadata, "k", "u")
		l.logOK(GetKeyVersion, "", "u") // an event without a key is not aggregated
		l.Log(t.Context(), Event{Status: OK, Op: GetKeys, Caller: caller("u@REALM")})
		l.Log(t.Context(), Event{Status: OK, Op: ReencryptEEKBatch, Key: "k", Caller: caller("u"),
			Message: "reencrypted 3 keys"})
		l.Log(t.Context(), Event{Status: Error, Op: DecryptEEK, Key: "k", Caller: caller("u"), Method: "POST",
			URL: "http://h/x", Message: "first\nsecond"})
		l.Log(t.Context(), Event{Status: Error, Method: "GET", Message: "m"})
		l.Log(t.Context(), Event{Status: OK})
		// Hadoop writes no line for this event.
		l.Log(t.Context(), Event{Status: OK, Op: RenewDelegationToken, Caller: caller("u"), Token: 1})
	}
	for range 2 {
		_ = l.Err()
	}
	want := []string{
		"OK[op=GET_METADATA, key=k, user=u] ", "OK[op=GET_KEY_VERSION, user=u] ", "OK[op=GET_KEYS, user=u@REALM] ",
		"OK[op=REENCRYPT_EEK_BATCH, key=k, user=u] reencrypted 3 keys", "ERROR[user=u] Method:'POST' Exception:'first'",
		"ERROR Method:'GET' Exception:'m'", "OK ",
	}
	l.expect(t, append(want, want...)...)

	off := newTestLog(0) // no aggregation
	off.logOK(DecryptEEK, "k", "u")
	off.logOK(DecryptEEK, "k", "u")
	off.expect(t, okLine("DECRYPT_EEK", "k", "u", 1, 0), okLine("DECRYPT_EEK", "k", "u", 1, 0))
	if err := off.Close(); err != nil || off.out.Len() > 0 {
		t.Errorf("Close: %v, wrote %q", err, off.out.String())
	}
}

// TestNoLineIsForged: no text of an event begins a new line or contains a control character.
func TestNoLineIsForged(t *testing.T) {
	l := newTestLog(10 * time.Second)
	const forged = "x\n2026-11-23 14:00:00,000 OK[op=DELETE_KEY, key=k, user=root] "
	evil := claviger.Caller{Principal: claviger.Principal{Name: forged}, RemoteAddr: forged}
	for _, s := range []Status{OK, Unauthorized, Unauthenticated, Error} {
		for _, op := range []Op{DecryptEEK, GetMetadata} {
			l.Log(t.Context(), Event{Status: s, Op: op, Key: forged + "\r\u2028\x00\x1b[2J\u0085\u202e", Caller: evil,
				Message: forged, Method: forged, URL: forged})
		}
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	n := 0
	for line := range strings.Lines(l.out.String()) {
		n++
		if !stamped.MatchString(strings.TrimSuffix(line, "\n")) || strings.HasPrefix(line[24:], "OK[op=DELETE_KEY") {
			t.Errorf("a forged or torn line: %q", line)
		}
		if strings.ContainsAny(strings.TrimSuffix(line, "\n"), "\r\x00\x1b\n\u2028\u0085\u202e") {
			t.Errorf("a control character in %q", line)
		}
	}
	if n != 9 { // 8 events, and the end of the window of the aggregated event
		t.Errorf("%d lines", n)
	}
}

// TestHeldIsLimited: at most maxHeld windows are counted at a time; other events have a line each.
func TestHeldIsLimited(t *testing.T) {
	l := newTestLog(10 * time.Second)
	for i := range maxHeld + 100 {
		l.logOK(DecryptEEK, fmt.Sprint("invented ", i), "u")
	}
	if len(l.held) != maxHeld {
		t.Errorf("%d entries held", len(l.held))
	}
	if n := strings.Count(l.out.String(), "\n"); n != maxHeld+100 {
		t.Errorf("%d lines", n)
	}
	l.advance(20 * time.Second)
	if len(l.held) != 0 {
		t.Errorf("%d entries held after two windows", len(l.held))
	}
}

// faulty is a buffer whose writes fail while broken is set.
type faulty struct {
	bytes.Buffer
	broken error
	closed bool
}

func (f *faulty) Write(p []byte) (int, error) {
	if f.broken != nil {
		return 0, f.broken
	}
	return f.Buffer.Write(p)
}

func (f *faulty) Close() error { f.closed = true; return nil }

// TestErr: Err returns the error of the last write, and errClosed after an event that came after Close.
func TestErr(t *testing.T) {
	w := &faulty{}
	h := newHadoop(w, time.Second, time.Now)
	log := func() { h.Log(t.Context(), Event{Status: OK, Op: GetKeys, Caller: caller("u")}) }
	if log(); h.Err() != nil {
		t.Errorf("Err %v", h.Err())
	}
	w.broken = errors.New("no space left on device")
	if log(); !errors.Is(h.Err(), w.broken) {
		t.Errorf("Err %v", h.Err())
	}
	w.broken = nil
	if log(); h.Err() != nil {
		t.Errorf("Err %v after a good write", h.Err())
	}
	if err := h.Close(); err != nil || !w.closed {
		t.Errorf("Close %v, closed %v", err, w.closed)
	}
	n := w.Len()
	if log(); w.Len() != n || !errors.Is(h.Err(), errClosed) {
		t.Errorf("written after Close, or Err is %v", h.Err())
	}
	if err := h.Close(); err != nil {
		t.Errorf("a second Close: %v", err)
	}
}

// TestPendingLines: lines that could not be written are written by the next sweep, by Begin or by Close. While they
// wait, Begin and Close fail. After Close, Begin fails.
func TestPendingLines(t *testing.T) {
	broken := errors.New("no space left on device")
	for name, write := range map[string]func(h *Hadoop) error{
		"sweep": func(h *Hadoop) error { h.sweep(); return nil },
		"begin": func(h *Hadoop) error { return h.Begin(t.Context(), Event{Op: CreateKey}) },
		"close": func(h *Hadoop) error { return h.Close() },
	} {
		w := &faulty{}
		h := newHadoop(w, 0, time.Now)
		if err := h.Begin(t.Context(), Event{Op: CreateKey}); err != nil {
			t.Errorf("%s: Begin: %v", name, err)
		}
		w.broken = broken
		h.Log(t.Context(), Event{Status: OK, Op: GetKeys, Caller: caller("u")})
		if err := h.Begin(t.Context(), Event{Op: CreateKey}); !errors.Is(err, broken) {
			t.Errorf("%s: Begin: %v", name, err)
		}
		w.broken = nil
		if err := write(h); err != nil || strings.Count(w.String(), "GET_KEYS") != 1 {
			t.Errorf("%s: %v, written %q", name, err, w)
		}
		if err := h.Err(); name != "close" && err != nil {
			t.Errorf("%s: Err: %v", name, err)
		}
		if err := errors.Join(h.Reopen(), h.Close()); err != nil {
			t.Errorf("%s: Close: %v", name, err)
		}
		for range 2 {
			if err := h.Begin(t.Context(), Event{Op: CreateKey}); !errors.Is(err, errClosed) {
				t.Errorf("%s: Begin after Close: %v", name, err)
			}
		}
	}
	h := newHadoop(&faulty{broken: broken}, 0, time.Now)
	h.Log(t.Context(), Event{Status: OK, Op: GetKeys, Caller: caller("u")})
	if err := h.Close(); !errors.Is(err, broken) {
		t.Errorf("Close with a pending line: %v", err)
	}
}

// TestRun uses the real clock, the goroutine of NewHadoop, and many writers.
func TestRun(t *testing.T) {
	w := &faulty{}
	h := NewHadoop(w, 50*time.Millisecond)
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			for range 500 {
				h.Log(t.Context(), Event{Status: OK, Op: DecryptEEK, Key: "k", Caller: caller(fmt.Sprint("u", i%2))})
			}
		})
	}
	wg.Wait()
	end := time.Now().Add(20 * time.Second)
	for held := 1; held > 0; time.Sleep(5 * time.Millisecond) { // until each window is over
		if time.Now().After(end) {
			t.Fatal("windows do not end")
		}
		h.mu.Lock()
		held = len(h.held)
		h.mu.Unlock()
	}
	if err := h.Close(); err != nil {
		t.Fatal(err)
	}
	total := 0
	for line := range strings.Lines(w.String()) {
		m := aggregatedRE.FindStringSubmatch(strings.TrimSuffix(line[24:], "\n"))
		if m == nil {
			t.Fatalf("line %q", line)
		}
		if m[5] == "0" { // the first line of an entry; a later line counts its event again
			continue
		}
		n, _ := strconv.Atoi(m[4])
		total += n
	}
	if total != 8*500 {
		t.Errorf("%d accesses in the lines, want %d:\n%s", total, 8*500, w)
	}
}

// TestFile: a log continues an existing file, and after Reopen writes to a new file at its path.
func TestFile(t *testing.T) {
	dir := t.TempDir()
	path := dir + "/kms-audit.log"
	if err := os.WriteFile(path, []byte("earlier\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := OpenFile(path, Rotation{})
	if err != nil {
		t.Fatal(err)
	}
	h := newHadoop(f, 0, time.Now)
	log := func(key string) { h.Log(t.Context(), Event{Status: OK, Op: DeleteKey, Key: key, Caller: caller("u")}) }
	log("one")
	if err := os.Rename(path, path+".1"); err != nil {
		t.Fatal(err)
	}
	log("two")
	if err := f.Reopen(); err != nil {
		t.Fatal(err)
	}
	log("three")
	if err := os.Rename(dir, dir+".away"); err != nil {
		t.Fatal(err)
	}
	if err := f.Reopen(); err == nil || !strings.Contains(err.Error(), path) {
		t.Errorf("Reopen without a folder: %v", err)
	}
	log("four") // written to the old file
	if h.Err() != nil {
		t.Errorf("Err %v", h.Err())
	}
	if err := h.Close(); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string][]string{"kms-audit.log.1": {"earlier", "one", "two"},
		"kms-audit.log": {"three", "four"}} {
		data, err := os.ReadFile(dir + ".away/" + name)
		if err != nil {
			t.Fatal(err)
		}
		lines := strings.Split(strings.TrimSuffix(string(data), "\n"), "\n")
		if !slices.EqualFunc(lines, want, func(line, word string) bool { return strings.Contains(line, word) }) {
			t.Errorf("%s: %q, want %q", name, lines, want)
		}
	}
	if _, err := OpenFile(dir+"/none/kms-audit.log", Rotation{}); err == nil ||
		!strings.Contains(err.Error(), "make its folder") {
		t.Errorf("OpenFile: %v", err)
	}
	log("late")
	if h.Err() == nil {
		t.Error("Err is nil after Close")
	}
}

// TestTornLine: after a write that a full disk has truncated, the next write begins a new line.
func TestTornLine(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	f := &File{f: w, torn: true}
	if _, err := f.Write([]byte("next\n")); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	if got, err := io.ReadAll(r); err != nil || string(got) != "\nnext\n" {
		t.Errorf("%q, %v", got, err)
	}
}
