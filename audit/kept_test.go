package audit

import (
	"bytes"
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"

	"claviger/durable"
)

// refusingStream is a stream that accepts some lines. Close returns the error close.
type refusingStream struct {
	takes func(line string) bool
	close error
}

func (p *refusingStream) Send(line []byte) error {
	if p.takes(string(line)) {
		return nil
	}
	return errors.New("this line is not accepted")
}

func (p *refusingStream) Err() error   { return nil }
func (p *refusingStream) Close() error { return p.close }
func (p *refusingStream) Name() string { return "refusingStream" }

// TestTakenByAStream: send returns true only if one stream accepts all lines.
func TestTakenByAStream(t *testing.T) {
	lines := []byte("a\nb\nc\n")
	for lacks, want := range map[string]bool{"": true, "a": false, "b": false, "c": false} {
		c := &Chain{cfg: ChainConfig{Streams: []Stream{
			&refusingStream{takes: func(line string) bool { return lacks == "" || line != lacks+"\n" }},
		}}}
		if got := c.send(lines, []int{2, 4, 6}); got != want {
			t.Errorf("without %q: %t, want %t", lacks, got, want)
		}
	}
}

// TestCloseReportsStreams: Close returns the error of a stream's Close.
func TestCloseReportsStreams(t *testing.T) {
	failed := errors.New("the peer has disconnected")
	c := chainAt(t, filepath.Join(t.TempDir(), "audit.json"), func(cfg *ChainConfig) {
		cfg.Streams = []Stream{&refusingStream{takes: func(string) bool { return true }, close: failed}}
	})
	if err := c.Close(); !errors.Is(err, failed) {
		t.Errorf("Close: %v", err)
	}
}

// halfDisk writes only half of the bytes while full is true, and truncates no file while stuck is true.
type halfDisk struct {
	durable.OS
	full, stuck atomic.Bool
}

func (d *halfDisk) OpenFile(name string, flag int, mode fs.FileMode) (durable.File, error) {
	f, err := d.OS.OpenFile(name, flag, mode)
	return &halfFile{f, d}, err
}

type halfFile struct {
	durable.File
	disk *halfDisk
}

func (f *halfFile) Write(b []byte) (int, error) {
	if !f.disk.full.Load() {
		return f.File.Write(b)
	}
	n, err := f.File.Write(b[:len(b)/2])
	return n, errors.Join(err, syscall.ENOSPC)
}

func (f *halfFile) Truncate(size int64) error {
	if f.disk.stuck.Load() {
		return syscall.EIO
	}
	return f.File.Truncate(size)
}

// TestHalfWritten: half a line is removed. If that fails, the next write begins a new line.
func TestHalfWritten(t *testing.T) {
	for stuck, want := range map[bool]string{false: "first\nlast\n", true: "first\nsec\nlast\n"} {
		dir, disk := t.TempDir(), &halfDisk{}
		unmount := durable.Mount(dir, disk)
		f, err := OpenFile(filepath.Join(dir, "audit.json"), Rotation{})
		if err != nil {
			t.Fatal(err)
		}
		write := func(text string) error { _, err := f.Write([]byte(text)); return err }
		if err := write("first\n"); err != nil {
			t.Fatal(err)
		}
		disk.full.Store(true)
		disk.stuck.Store(stuck)
		if err := write("second"); !errors.Is(err, syscall.ENOSPC) {
			t.Errorf("a full disk: %v", err)
		}
		disk.full.Store(false)
		if err := errors.Join(write("last\n"), f.Close()); err != nil {
			t.Error(err)
		}
		unmount()
		if got, err := os.ReadFile(f.Path()); string(got) != want || err != nil {
			t.Errorf("truncation fails %t: %q, %v, want %q", stuck, got, err, want)
		}
	}
}

// TestReopenAfterCreate: after a rotation that has made the new file, as logrotate's "create" does, Reopen opens the
// new file. If the file was not moved, Reopen keeps it open.
func TestReopenAfterCreate(t *testing.T) {
	path := filepath.Join(t.TempDir(), "kms-audit.log")
	f, err := OpenFile(path, Rotation{})
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	write := func(text string) {
		t.Helper()
		if _, err := f.Write([]byte(text)); err != nil {
			t.Fatal(err)
		}
	}
	write("a\n")
	same := f.f
	if err := f.Reopen(); err != nil || f.f != same {
		t.Errorf("a file that was not moved: %v, opened again %t", err, f.f != same)
	}
	if err := errors.Join(os.Rename(path, path+".1"), os.WriteFile(path, nil, 0o600), f.Reopen()); err != nil {
		t.Fatal(err)
	}
	write("b\n")
	for name, want := range map[string]string{path: "b\n", path + ".1": "a\n"} {
		if got, err := os.ReadFile(name); string(got) != want || err != nil {
			t.Errorf("%s: %q, %v, want %q", filepath.Base(name), got, err, want)
		}
	}
}

// TestParseHeadRefuses a head without a node, a number or a valid hash.
func TestParseHeadRefuses(t *testing.T) {
	good := `{"node":"n","seq":1,"hash":"` + strings.Repeat("0", 64) + `"}`
	if h, err := ParseHead([]byte(good)); err != nil || h.Seq != 1 {
		t.Errorf("%+v, %v", h, err)
	}
	for _, text := range []string{
		"", "[]", good[:len(good)-3] + `"}`, strings.Replace(good, "000", "xyz", 1),
		strings.Replace(good, `"n"`, `""`, 1), strings.Replace(good, `:1`, `:0`, 1),
		strings.Replace(good, `:1`, `:1,"time":5`, 1),
		good + strings.Repeat(" ", maxHead),
	} {
		if h, err := ParseHead([]byte(text)); err == nil {
			t.Errorf("%.100q: %+v", text, h)
		}
	}
}

// stoppedLogger is a logger that cannot record operations.
type stoppedLogger struct {
	Logger
	err error
}

func (s stoppedLogger) Stopped() error { return s.err }

// TestTeeStopped: Stopped of a Tee returns the error of one of its loggers.
func TestTeeStopped(t *testing.T) {
	stopped := errors.New("the disk is full")
	if err := (&Tee{Loggers: []Logger{stoppedLogger{err: stopped}}}).Stopped(); !errors.Is(err, stopped) {
		t.Errorf("Stopped: %v", err)
	}
	if err := (&Tee{Loggers: []Logger{stoppedLogger{}}}).Stopped(); err != nil {
		t.Errorf("Stopped: %v", err)
	}
}

// TestOrderOfEqualFiles: files with the same first number keep the order in which they were given.
func TestOrderOfEqualFiles(t *testing.T) {
	dir := t.TempDir()
	var paths []string
	for _, name := range []string{"c", "a", "d", "b"} {
		paths = append(paths, filepath.Join(dir, name))
		if err := os.WriteFile(paths[len(paths)-1], nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if got, err := inOrder(paths); err != nil || !slices.Equal(got, paths) {
		t.Errorf("%q, %v, want %q", got, err, paths)
	}
}

// TestVeryLongLine: of a line much longer than the longest record, next returns the beginning. The next call returns
// the next line.
func TestVeryLongLine(t *testing.T) {
	for _, length := range []int{maxRecord + 2, 2 * (maxRecord + 1), 5 * maxRecord} {
		text := append(bytes.Repeat([]byte{'x'}, length), "\nnext\n"...)
		in := newLines(bytes.NewReader(text))
		line, whole, err := in.next()
		if whole || err != nil || !bytes.Equal(line, text[:200]) {
			t.Errorf("%d bytes: %d bytes, whole %t, %v", length, len(line), whole, err)
		}
		if line, whole, err = in.next(); !whole || err != nil || string(line) != "next" {
			t.Errorf("after %d bytes: %.20q, whole %t, %v", length, line, whole, err)
		}
	}
}

// recorder is a logger that records its calls and returns err.
type recorder struct {
	err   error
	calls []string
}

func (r *recorder) Log(context.Context, Event) { r.calls = append(r.calls, "Log") }

func (r *recorder) Err() error {
	r.calls = append(r.calls, "Err")
	return r.err
}

func (r *recorder) Close() error {
	r.calls = append(r.calls, "Close")
	return r.err
}

// reopening is a recorder with all methods that a logger may have.
type reopening struct{ recorder }

func (r *reopening) Reopen() error {
	r.calls = append(r.calls, "Reopen")
	return r.err
}

func (r *reopening) Begin(context.Context, Event) error {
	r.calls = append(r.calls, "Begin")
	return r.err
}

// TestTeeCallsAll: each operation of a Tee reaches all loggers that have the operation, and returns their errors. Only
// Begin stops at the first error.
func TestTeeCallsAll(t *testing.T) {
	plain, file, last := &recorder{err: errors.New("plain")}, &reopening{}, &reopening{}
	file.err, last.err = errors.New("file"), errors.New("last")
	tee := &Tee{Loggers: []Logger{plain, file, last}, Must: []Op{CreateKey}}
	for _, test := range []struct {
		name                    string
		do                      func() error
		want                    string
		onPlain, onFile, onLast string
	}{
		{"log", func() error { tee.Log(t.Context(), Event{}); return nil }, "", "Log", "Log", "Log"},
		{"error", tee.Err, "plain\nfile\nlast", "Err", "Err", "Err"},
		{"stopped", tee.Stopped, "plain\nfile\nlast", "Err", "Err", "Err"},
		{"reopen", tee.Reopen, "file\nlast", "", "Reopen", "Reopen"},
		{"begin", func() error { return tee.Begin(t.Context(), Event{Op: CreateKey}) }, "file", "", "Begin", ""},
		{"begin of a read", func() error { return tee.Begin(t.Context(), Event{Op: GetKeys}) }, "", "", "", ""},
		{"close", tee.Close, "plain\nfile\nlast", "Close", "Close", "Close"},
	} {
		plain.calls, file.calls, last.calls = nil, nil, nil
		got := ""
		if err := test.do(); err != nil {
			got = err.Error()
		}
		calls := []string{strings.Join(plain.calls, " "), strings.Join(file.calls, " "), strings.Join(last.calls, " ")}
		if got != test.want || !slices.Equal(calls, []string{test.onPlain, test.onFile, test.onLast}) {
			t.Errorf("%s: error %q, calls %q", test.name, got, calls)
		}
	}
}
