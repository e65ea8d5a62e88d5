package audit

import (
	"crypto/sha256"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"claviger"
)

// longEvent returns an event of a batch under n versions of a key. The names have the maximum length.
func longEvent(char string, n int) Event {
	name := strings.Repeat(char, 4096/len(char))
	e := event(name)
	e.Op, e.Version = ReencryptEEKBatch, name+"@17"
	e.Message, e.URL, e.Method, e.Provider = name+" does not exist", "http://h/"+strings.Repeat(name, 2), name, name
	e.Caller.Principal = claviger.Principal{Name: name, Short: "s" + name, Real: &claviger.Principal{Name: name}}
	e.Caller.RemoteAddr, e.Caller.RequestID = name, name
	for i := range n {
		e.From = append(e.From, fmt.Sprintf("%s@%d", name, i))
	}
	return e
}

// TestLongRecord: with any names that a client invents, a record is valid, fits in a datagram, and lists the members
// that were shortened.
func TestLongRecord(t *testing.T) {
	for _, char := range []string{"\x01", "\u2028", "\u0085", `"`, "a", "鍵", "\xff", "\x80"} {
		t.Run(fmt.Sprintf("%q", char), func(t *testing.T) {
			udp, err := net.ListenPacket("udp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = udp.Close() }()
			stream, err := OpenSyslog("syslog+udp://"+udp.LocalAddr().String(), nil)
			if err != nil {
				t.Fatal(err)
			}
			path := filepath.Join(t.TempDir(), "audit.json")
			c := chainAt(t, path, func(cfg *ChainConfig) { cfg.Streams = []Stream{stream} })
			e := longEvent(char, 100)
			before := slices.Clone(e.From)
			c.Log(t.Context(), e)
			c.Log(t.Context(), event("k"))
			closeChain(t, c)
			if !slices.Equal(before, e.From) {
				t.Error("the event itself was changed")
			}
			if r := verified(t, VerifyConfig{Heads: headOf(t, path)}, []string{path}); r.Records != 3 {
				t.Errorf("report %+v", r)
			}
			lines := readLines(t, path)
			if n := len(lines[1]); n > maxBody+300 {
				t.Errorf("the record has %d bytes", n)
			}
			r, err := ParseRecord([]byte(strings.TrimSuffix(lines[1], "\n")))
			if err != nil {
				t.Fatal(err)
			}
			note := fmt.Sprintf("...(%d bytes, SHA-256 %x)...", len(e.Version), sha256.Sum256([]byte(e.Version)))
			if !strings.Contains(r.Version, note) || !strings.HasSuffix(r.Version, "@17") {
				t.Errorf("version %q, want it to have %q", r.Version, note)
			}
			if want := []string{"key", "version", "user", "short", "realUser", "address", "request", "method", "url",
				"provider", "message", "from"}; !slices.Equal(r.Cut, want) {
				t.Errorf("cut %q, want %q", r.Cut, want)
			}
			if last := r.From[len(r.From)-1]; last != fmt.Sprintf("and %d more", 100-(len(r.From)-1)) ||
				len(r.From) < 3 {
				t.Errorf("%d versions, the last %q", len(r.From), last)
			}
			for i, line := range lines {
				if got := datagram(t, udp); got != strings.TrimSuffix(line, "\n") {
					t.Errorf("datagram %d is %.200q, want %.200q", i+1, got, line)
				}
			}
			if n := c.Replaced(); n != 0 {
				t.Errorf("%d records were replaced", n)
			}
		})
	}
}

// TestRecordOfEscapes: a record that is too long only because of JSON's escapes is shortened too.
func TestRecordOfEscapes(t *testing.T) {
	e := event(strings.Repeat("\x01", 4096))
	e.Version = e.Key + "@17"
	text := encodeEvent(&e, "node")
	if len(e.Key)+len(e.Version) > maxBody {
		t.Fatalf("the event itself has %d bytes", len(e.Key)+len(e.Version))
	}
	if len(text) > maxBody || !strings.Contains(string(text), fmt.Sprintf("...(%d bytes, SHA-256 ", len(e.Version))) {
		t.Errorf("a record of %d bytes: %.200s", len(text), text)
	}
}

// TestShortRecordIsWhole: a record within the limit is not shortened, and has no cut.
func TestShortRecordIsWhole(t *testing.T) {
	e := event(strings.Repeat("k", 4096))
	e.From = []string{e.Key + "@0", "a...(5 bytes, SHA-256 0)...b"}
	r := eventRecord(&e, "n")
	want := encodeBody(r)
	if got := encodeEvent(&e, "n"); string(got) != string(want) || strings.Contains(string(got), `"cut":`) {
		t.Errorf("%s", got)
	}
	for _, s := range []string{"", "a", strings.Repeat("é", 100), strings.Repeat("\x01", 50),
		strings.Repeat("\xbf", 50)} {
		if got := shortened(s, 300); got != s {
			t.Errorf("%q became %q", s, got)
		}
	}
}

// datagram reads a message, and returns its record.
func datagram(t *testing.T, conn net.PacketConn) string {
	t.Helper()
	b := make([]byte, 1<<20)
	_ = conn.SetReadDeadline(time.Now().Add(20 * time.Second))
	n, _, err := conn.ReadFrom(b)
	if err != nil {
		t.Fatal(err)
	}
	_, text, _ := strings.Cut(string(b[:n]), " audit - ")
	return text
}

// TestTooLongForADatagram: a record that is too long for a datagram is replaced by a LargeRecord with its number and
// hash, and later records are sent. In the file of a log, a LargeRecord is a finding.
func TestTooLongForADatagram(t *testing.T) {
	for uri, conn := range datagramServers(t) {
		s, err := OpenSyslog(uri, nil)
		if err != nil {
			t.Fatal(err)
		}
		e := longEvent("\x01", 64)
		r := eventRecord(&e, "kms1")
		b, sum := newSealer(nil).seal(nil, 7, digest{1}, encodeBody(r))
		c, _ := newSealer(nil).seal(nil, 8, sum, encodeEvent(&Event{Op: CreateKey, Key: "next"}, "kms1"))
		for _, line := range [][]byte{b, []byte(strings.Repeat("x", 1<<20) + "\n"), c} {
			if err := s.Send(line); err != nil {
				t.Fatal(err)
			}
		}
		got := datagram(t, conn)
		short, err := ParseRecord([]byte(got))
		if err != nil {
			t.Fatalf("%s: %v: %.300q", uri, err, got)
		}
		if short.Kind != LargeRecord || short.Seq != 7 || short.Hash != sum.String() ||
			short.Prev != (digest{1}).String() || short.Bytes != len(b)-1 ||
			short.Op != ReencryptEEKBatch || short.Node != "kms1" ||
			!slices.Equal(short.From, []string{"and 64 more"}) || len(got) > 8<<10 {
			t.Errorf("%s: %.900q", uri, got)
		}
		if got := datagram(t, conn); !strings.HasPrefix(got, `{"seq":0,"prev":"",`) ||
			!strings.Contains(got, `"kind":"large","bytes":1048576,`) {
			t.Errorf("%s: instead of a long line that is not a record: %.300q", uri, got)
		}
		if got := datagram(t, conn); got+"\n" != string(c) {
			t.Errorf("%s: then %.300q, want %q", uri, got, c)
		}
		if err := s.Err(); err != nil || s.Replaced() != 2 {
			t.Errorf("%s: %d replaced, %v", uri, s.Replaced(), err)
		}
		if err := s.Close(); err != nil {
			t.Error(err)
		}
		path := writeText(t, got+"\n"+string(c))
		verified(t, VerifyConfig{}, []string{path}, fmt.Sprintf("record 7, of %d bytes, was replaced", len(b)-1))
		// A long record in the file, as earlier versions wrote it, is not a finding.
		verified(t, VerifyConfig{}, []string{writeText(t, string(b)+string(c))})
	}
}

func writeText(t *testing.T, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "audit.json")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}
