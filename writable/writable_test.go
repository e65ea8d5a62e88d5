package writable_test

import (
	"encoding/hex"
	"math"
	"os"
	"testing"

	"claviger/writable"
)

// TestLong compares with the bytes that WritableUtils.writeVLong of Hadoop 3.4.2 writes.
func TestLong(t *testing.T) {
	for n, want := range map[int64]string{
		0: "00", 1: "01", 127: "7f", -1: "ff", -112: "90",
		128: "8f80", 255: "8fff", 256: "8e0100", -113: "8770", -256: "87ff", -257: "860100",
		math.MaxInt32: "8c7fffffff", math.MinInt32: "847fffffff", math.MaxInt64: "887fffffffffffffff",
		math.MinInt64: "807fffffffffffffff",
		1700000000000: "8a018bcfe56800",
	} {
		got := writable.AppendLong(nil, n)
		if hex.EncodeToString(got) != want {
			t.Errorf("%d is %x, should be %s", n, got, want)
		}
		r := &writable.Reader{Rest: got}
		if back := r.Long(); back != n || r.Failed || len(r.Rest) > 0 {
			t.Errorf("%x is read as %d", got, back)
		}
	}
}

// TestReaderFails: a Reader fails at bytes that are cut off or out of range, and then reads only zero values.
func TestReaderFails(t *testing.T) {
	for name, c := range map[string]struct {
		hex  string
		read func(*writable.Reader)
	}{
		"long cut off":         {"8e01", func(r *writable.Reader) { r.Long() }},
		"no bytes":             {"", func(r *writable.Reader) { r.Long() }},
		"text cut off":         {"0461", func(r *writable.Reader) { r.Text() }},
		"negative text length": {"ff61", func(r *writable.Reader) { r.Text() }},
		"int too large":        {"8b0100000000", func(r *writable.Reader) { r.Int() }},
	} {
		b, err := hex.DecodeString(c.hex)
		if err != nil {
			t.Fatal(err)
		}
		r := &writable.Reader{Rest: b}
		if c.read(r); !r.Failed {
			t.Errorf("%s: %s was read", name, c.hex)
		}
		if got := r.Text(); got != "" {
			t.Errorf("%s: a failed reader reads %q", name, got)
		}
	}
}

// FuzzReader: what a Reader reads is the same after it was written and read again.
func FuzzReader(f *testing.F) {
	if seeds, err := os.ReadDir("testdata/fuzz/FuzzReader"); err != nil || len(seeds) == 0 {
		f.Fatalf("no seeds: %v", err)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		r := &writable.Reader{Rest: b}
		n, s := r.Long(), r.Text()
		if r.Failed {
			return
		}
		again := &writable.Reader{Rest: writable.AppendText(writable.AppendLong(nil, n), s)}
		if n2, s2 := again.Long(), again.Text(); n2 != n || s2 != s || again.Failed || len(again.Rest) > 0 {
			t.Errorf("%d and %q become %d and %q", n, s, n2, s2)
		}
	})
}
