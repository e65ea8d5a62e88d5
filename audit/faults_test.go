package audit

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"claviger"
)

// fullDisk limits the size of files for this process. A write beyond the limit fails as on a full disk. free removes
// the limit.
func fullDisk(t *testing.T, size uint64) (free func()) {
	t.Helper()
	var before syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_FSIZE, &before); err != nil {
		t.Fatal(err)
	}
	// Go's runtime ignores SIGXFSZ, so the write fails with EFBIG.
	if err := syscall.Setrlimit(syscall.RLIMIT_FSIZE, &syscall.Rlimit{Cur: size, Max: before.Max}); err != nil {
		t.Fatal(err)
	}
	free = func() {
		if err := syscall.Setrlimit(syscall.RLIMIT_FSIZE, &before); err != nil {
			t.Fatal(err)
		}
	}
	t.Cleanup(free)
	return free
}

// TestDiskFull: while the disk is full, operations that must be audited are refused. When there is room again, they
// work, and each queued record is written exactly once.
func TestDiskFull(t *testing.T) {
	dir := t.TempDir()
	path, lines := filepath.Join(dir, "audit.json"), filepath.Join(dir, "kms-audit.log")
	f, err := OpenFile(lines, Rotation{})
	if err != nil {
		t.Fatal(err)
	}
	c := chainAt(t, path, func(cfg *ChainConfig) { cfg.HeadEvery = time.Hour })
	h := NewHadoop(f, 0)
	tee := &Tee{Loggers: []Logger{h, c}, Must: Management}
	e := event("k")
	e.Op = RollNewVersion
	if err := tee.Begin(t.Context(), e); err != nil {
		t.Fatal(err)
	}
	st, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	free := fullDisk(t, uint64(st.Size())+100)
	for range 20 {
		tee.Log(t.Context(), event("k"))
	}
	err = tee.Begin(t.Context(), e)
	if !claviger.Is(err, claviger.Unavailable) || !errors.Is(err, syscall.EFBIG) ||
		!strings.Contains(err.Error(), "ROLL_NEW_VERSION is not done") {
		t.Errorf("with a full disk: %v", err)
	}
	if tee.Err() == nil {
		t.Error("Err is nil with a full disk")
	}
	e.Op = DecryptEEK
	if err := tee.Begin(t.Context(), e); err != nil {
		t.Errorf("an operation that need not be audited: %v", err)
	}
	free()
	e.Op = RollNewVersion
	if err := tee.Begin(t.Context(), e); err != nil || tee.Err() != nil {
		t.Errorf("with room again: %v, Err %v", err, tee.Err())
	}
	if err := tee.Close(); err != nil {
		t.Fatal(err)
	}
	if r := verified(t, VerifyConfig{Heads: headOf(t, path)}, []string{path}); r.Records < 1+1+20+1 || r.Records > 24 ||
		len(r.Notes) != 0 {
		t.Errorf("report %+v", r)
	}
	if n := len(readLines(t, lines)); n != 20 {
		t.Errorf("%d lines in Hadoop's format, want 20", n)
	}
}

// TestQueueIsBounded: while the disk is full, only MaxQueue records wait; the others are lost and counted, and changes
// are refused.
func TestQueueIsBounded(t *testing.T) {
	path := filepath.Join(t.TempDir(), "audit.json")
	c := chainAt(t, path, func(cfg *ChainConfig) { cfg.MaxQueue, cfg.HeadEvery = 10, time.Hour })
	st, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	free := fullDisk(t, uint64(st.Size()))
	if err := c.Begin(t.Context(), Event{Op: CreateKey}); err == nil {
		t.Fatal("written to a full disk")
	}
	for range 100 {
		c.Log(t.Context(), event("k"))
	}
	if err := c.Err(); err == nil || !strings.Contains(err.Error(), "and are lost") {
		t.Errorf("Err %v", err)
	}
	if err := c.Begin(t.Context(), Event{Op: CreateKey}); !claviger.Is(err, claviger.Unavailable) {
		t.Errorf("with a full queue: %v", err)
	}
	free()
	closeChain(t, c)
	r := verified(t, VerifyConfig{Heads: headOf(t, path)}, []string{path})
	if r.Records != 1+10+1 || len(r.Notes) != 1 || !strings.Contains(r.Notes[0].What, "92 events before this record") {
		t.Errorf("report %+v", r)
	}
}

// TestFileRemoved: if the log is removed, a new file begins, and Verify reports that earlier records are missing.
func TestFileRemoved(t *testing.T) {
	path := filepath.Join(t.TempDir(), "audit.json")
	c := chainAt(t, path, nil)
	if err := c.Begin(t.Context(), Event{Op: CreateKey}); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	c.cfg.File.mu.Lock()
	c.cfg.File.checked = time.Time{} // a second has passed
	c.cfg.File.mu.Unlock()
	if err := c.Begin(t.Context(), Event{Op: CreateKey}); err != nil {
		t.Fatal(err)
	}
	closeChain(t, c)
	if n := len(readLines(t, path)); n != 2 {
		t.Errorf("%d lines, want a begin record and an attempt", n)
	}
	if r := verified(t, VerifyConfig{Heads: headOf(t, path)}, []string{path}); len(r.Notes) != 1 ||
		!strings.Contains(r.Notes[0].What, "continues here after record 2") {
		t.Errorf("notes %v", r.Notes)
	}
}

// TestKeep: of the rotated files only the newest Keep are kept.
func TestKeep(t *testing.T) {
	path := filepath.Join(t.TempDir(), "kms-audit.log")
	f, err := OpenFile(path, Rotation{Size: 5, Keep: 2})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	now := time.Now()
	for i := range 5 {
		if _, err := fmt.Fprintf(f, "line %d\n", i); err != nil {
			t.Fatal(err)
		}
		now = now.Add(2 * time.Second)
		if newFile, err := f.RotateIfNeeded(now); err != nil || !newFile {
			t.Fatalf("a new file: %t, %v", newFile, err)
		}
	}
	names, err := f.rotated()
	if err != nil || len(names) != 2 || readLines(t, names[0])[0] != "line 3\n" ||
		readLines(t, names[1])[0] != "line 4\n" {
		t.Errorf("kept %v, %v", names, err)
	}
	daily, err := OpenFile(path+"-daily", Rotation{Every: time.Hour})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = daily.Close() }()
	_, _ = io.WriteString(daily, "x\n")
	for after, want := range map[time.Duration]bool{time.Minute: false, 2 * time.Hour: true} {
		if newFile, err := daily.RotateIfNeeded(time.Now().Add(after)); err != nil || (newFile != want && want) {
			t.Errorf("after %v: a new file: %t, %v", after, newFile, err)
		}
	}
}

// TestSyslog: each message arrives with its length, and sending continues when the server is up again. While the
// server is down, StreamErr returns an error, but no operation is refused.
func TestSyslog(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := l.Addr().String()
	s, err := OpenSyslog("syslog+tcp://"+addr, nil)
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "audit.json")
	c := chainAt(t, path, func(cfg *ChainConfig) {
		cfg.Streams, cfg.HeadEvery, cfg.Log = []Stream{s}, 20*time.Millisecond, slog.New(slog.DiscardHandler)
	})
	conn, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	before := sockets(t)
	in := bufio.NewReader(conn)
	if got := frame(t, conn, in); !strings.HasPrefix(got, "<110>1 2") ||
		!strings.Contains(got, " claviger "+strconv.Itoa(os.Getpid())+` audit - {"seq":1,`) {
		t.Errorf("message %q", got)
	}
	_ = conn.Close()
	_ = l.Close()
	waitFor(t, func() bool { // the first write after the peer has closed may succeed
		c.Log(context.Background(), event("k"))
		return c.StreamErr() != nil
	})
	if err := c.Begin(t.Context(), Event{Op: CreateKey}); err != nil || c.Err() != nil {
		t.Errorf("while syslog is down: %v", err)
	}
	if l, err = net.Listen("tcp", addr); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	if conn, err = l.Accept(); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	if got := frame(t, conn, bufio.NewReader(conn)); !strings.Contains(got, `"kind":"event"`) {
		t.Errorf("message %q", got)
	}
	if n := sockets(t); n != before {
		t.Errorf("%d sockets are open, %d before the connection was lost", n, before)
	}
	go func() { _, _ = io.Copy(io.Discard, conn) }()
	waitFor(t, func() bool { return c.StreamErr() == nil })
	closeChain(t, c)
	verified(t, VerifyConfig{Heads: headOf(t, path)}, []string{path})
}

// failingHeads is a place that fails to store a head.
type failingHeads struct{}

func (failingHeads) Name() string                                         { return "a place" }
func (failingHeads) Load(context.Context) (head Head, ok bool, err error) { return Head{}, false, nil }
func (failingHeads) Save(context.Context, Head) error                     { return errors.New("it is down") }

// TestHeadIsNotStored: if a head cannot be stored, records are still written, and no operation is refused.
func TestHeadIsNotStored(t *testing.T) {
	path := filepath.Join(t.TempDir(), "audit.json")
	c := chainAt(t, path, func(cfg *ChainConfig) {
		cfg.Heads, cfg.HeadEvery = append(cfg.Heads, failingHeads{}), time.Millisecond
		cfg.Log = slog.New(slog.DiscardHandler)
	})
	tee := &Tee{Loggers: []Logger{c}, Must: Management}
	if err := tee.Begin(t.Context(), Event{Op: CreateKey}); err != nil {
		t.Error(err)
	}
	waitFor(t, func() bool { return c.Degraded() != nil })
	if err := c.Degraded(); !strings.Contains(err.Error(), "cannot be stored in a place: it is down") ||
		c.Err() == nil {
		t.Errorf("%v, %v", err, c.Err())
	}
	if err := tee.Stopped(); err != nil {
		t.Errorf("Stopped: %v", err)
	}
	_ = c.Close() // returns the same error
	verified(t, VerifyConfig{Heads: headOf(t, path)}, []string{path})
}

// TestStartOnAFullDisk: the server starts on a full disk, and only operations that must be recorded first are refused.
// When there is room, all records are written.
func TestStartOnAFullDisk(t *testing.T) {
	path := filepath.Join(t.TempDir(), "audit.json")
	closeChain(t, chainAt(t, path, nil))
	free := fullDisk(t, 1)
	c := chainAt(t, path, func(cfg *ChainConfig) { cfg.Log = slog.New(slog.DiscardHandler) })
	if err := c.Begin(t.Context(), Event{Op: CreateKey}); !errors.Is(err, syscall.EFBIG) {
		t.Errorf("with a full disk: %v", err)
	}
	c.Log(t.Context(), event("k"))
	waitFor(t, func() bool { return c.Stopped() != nil })
	if err := c.Degraded(); err != nil {
		t.Errorf("%v", err)
	}
	free()
	if err := c.Begin(t.Context(), Event{Op: CreateKey}); err != nil {
		t.Errorf("with room: %v", err)
	}
	if err := c.Stopped(); err != nil {
		t.Error(err)
	}
	closeChain(t, c)
	verified(t, VerifyConfig{Heads: headOf(t, path)}, []string{path})
}

// frame reads a message with its length before it.
func frame(t *testing.T, conn net.Conn, in *bufio.Reader) string {
	t.Helper()
	_ = conn.SetReadDeadline(time.Now().Add(20 * time.Second))
	length, err := in.ReadString(' ')
	if err != nil {
		t.Fatal(err)
	}
	n, err := strconv.Atoi(strings.TrimSuffix(length, " "))
	if err != nil || n > maxRecord {
		t.Fatalf("length %q", length)
	}
	b := make([]byte, n)
	if _, err := io.ReadFull(in, b); err != nil {
		t.Fatal(err)
	}
	_ = conn.SetReadDeadline(time.Time{})
	return string(b)
}

func waitFor(t *testing.T, condition func() bool) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); !condition(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("the condition is false after 20 s")
		}
	}
}

// datagramServers returns sockets that receive datagrams, by the URIs of their streams.
func datagramServers(t *testing.T) map[string]net.PacketConn {
	t.Helper()
	sock := filepath.Join(t.TempDir(), "log")
	udp, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = udp.Close() })
	unix, err := net.ListenPacket("unixgram", sock)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Close() })
	return map[string]net.PacketConn{"syslog+udp://" + udp.LocalAddr().String(): udp, "syslog+unix://" + sock: unix}
}

// TestSyslogDatagrams: a record is sent as one syslog datagram. Wrong addresses are refused.
func TestSyslogDatagrams(t *testing.T) {
	for uri, conn := range datagramServers(t) {
		s, err := OpenSyslog(uri, nil)
		if err != nil {
			t.Fatal(err)
		}
		if err := s.Send([]byte("{}\n")); err != nil {
			t.Error(err)
		}
		b := make([]byte, 1000)
		_ = conn.SetReadDeadline(time.Now().Add(20 * time.Second))
		n, _, err := conn.ReadFrom(b)
		if err != nil || !strings.HasSuffix(string(b[:n]), " audit - {}") {
			t.Errorf("%s: %q, %v", uri, b[:n], err)
		}
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	}
	for _, bad := range []string{"", "syslog", "syslog+unix://host/dev/log", "syslog+tcp://host", "syslog+udp://:514",
		"syslog+sctp://h:1", "syslog+tls://h:1/x", "\x00"} {
		if s, err := OpenSyslog(bad, nil); err == nil || !strings.Contains(err.Error(), "it must be") {
			t.Errorf("%q: %v, %v", bad, s, err)
		}
	}
}
