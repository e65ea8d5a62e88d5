package audit

import (
	"bytes"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"claviger"
)

// sealed returns the lines of a chain of records after the hash prev, and the hash of the last record. Each record has
// its own seq.
func sealed(prev digest, records ...Record) (text string, last digest) {
	var b []byte
	for _, r := range records {
		if r.Node == "" {
			r.Node = "kms1"
		}
		if r.Kind == "" {
			r.Kind = EventRecord
		}
		b, prev = newSealer(nil).seal(b, r.Seq, prev, encodeBody(r))
	}
	return string(b), prev
}

// TestParseRecordRefuses: ParseRecord names what is wrong in a line.
func TestParseRecordRefuses(t *testing.T) {
	text, _ := sealed(digest{}, Record{Seq: 1})
	good := strings.TrimSuffix(text, "\n")
	if r, err := ParseRecord([]byte(good)); err != nil || r.Seq != 1 {
		t.Fatalf("%+v, %v", r, err)
	}
	zeros := strings.Repeat("0", 64)
	end := hashMember + zeros + `"}`
	change := func(from, to string) string {
		if strings.Count(good, from) != 1 {
			t.Fatalf("%q is not once in %s", from, good)
		}
		return strings.Replace(good, from, to, 1)
	}
	for name, test := range map[string]struct{ line, want string }{
		"empty":            {"", "does not end with a hash"},
		"only a hash":      {end, "does not end with a hash"},
		"no hash member":   {`{"seq":1,"prev":"` + zeros + `"}`, "does not end with a hash"},
		"no end":           {good[:len(good)-1] + " ", "does not end with a hash"},
		"hash in capitals": {strings.ToUpper(good[len(good)-66:]), "does not end with a hash"},
		"capitals":         {good[:len(good)-66] + strings.Repeat("A", 64) + `"}`, "is not a hash"},
		"no digits":        {good[:len(good)-66] + strings.Repeat("x", 64) + `"}`, "invalid byte"},
		"no JSON":          {"x" + end, "the line is not a record: invalid character"},
		"unknown member":   {change(`"node"`, `"more":1,"node"`), `unknown field "more"`},
		"two records":      {`{"seq":1,"prev":"` + zeros + `","kind":"event"}{"seq":2` + end, "more than one record"},
		"bad prev":         {change(zeros, "0"), "member prev:"},
		"no seq":           {change(`"seq":1`, `"seq":0`), "member seq is missing"},
		"seq is not first": {change(`"seq":1,"prev":"`+zeros+`"`, `"prev":"`+zeros+`","seq":1`),
			"begin with seq and prev"},
		"seq again":    {change(`"node"`, `"seq":2,"node"`), "begin with seq and prev"},
		"unknown kind": {change(`"event"`, `"party"`), `member kind is "party", which is not a kind of record`},
	} {
		if r, err := ParseRecord([]byte(test.line)); err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: %+v, %v, want %q", name, r, err, test.want)
		}
	}
}

// TestParseDigest: a digest is 64 lower-case hexadecimal digits.
func TestParseDigest(t *testing.T) {
	good := strings.Repeat("0a", 32)
	if d, err := parseDigest(good); err != nil || d.String() != good {
		t.Errorf("%s, %v", d, err)
	}
	for _, bad := range []string{"", "0a", good[1:], good + "0a", strings.ToUpper(good), strings.Repeat("0x", 32)} {
		if d, err := parseDigest(bad); err == nil {
			t.Errorf("%q: %s", bad, d)
		}
	}
}

// TestCredentialsAreMasked: no text of an event has a credential, neither in a record nor in Hadoop's line. The event
// itself is not changed.
func TestCredentialsAreMasked(t *testing.T) {
	cookie := "hadoop.auth=u=alice&p=alice@R&t=kerberos&e=1795000000000&s=" + strings.Repeat("c2lnbmF0dXJl", 4) + "="
	text := "before " + cookie
	e := Event{
		Status: Error, Op: Op(text), Key: text, Message: text, Method: text, URL: text, Version: text,
		From: []string{"k@0", text, "k@1", text},
		Caller: claviger.Caller{Principal: claviger.Principal{Name: text, Short: "s" + text,
			Real: &claviger.Principal{Name: text, Short: text}}},
	}
	before := fmt.Sprintf("%+v %+v", e, *e.Caller.Real)
	m := e.masked()
	if all := fmt.Sprintf("%+v %+v", m, *m.Caller.Real); strings.Contains(all, "c2ln") || m.From[1] != m.From[3] ||
		m.From[1] != m.Key || m.From[0] != "k@0" || m.From[2] != "k@1" || m.Caller.Real.Name != m.Key {
		t.Errorf("masked: %s", all)
	}
	record := encodeEvent(&e, "n")
	var line bytes.Buffer
	newHadoop(&line, 0, time.Now).Log(t.Context(), e)
	for _, got := range []string{string(record), line.String()} {
		if strings.Contains(got, "c2ln") || !strings.Contains(got, "before") {
			t.Errorf("written: %s", got)
		}
	}
	if after := fmt.Sprintf("%+v %+v", e, *e.Caller.Real); after != before {
		t.Errorf("the event is now %s", after)
	}
	plain := event("k")
	plain.From = []string{"k@0"}
	if m := plain.masked(); !reflect.DeepEqual(m, plain) {
		t.Errorf("an event without credentials: %+v, want %+v", m, plain)
	}
}

// TestShortenFrom: names of versions are shortened, or counted in a last entry. An entry that only looks like such a
// number is a name.
func TestShortenFrom(t *testing.T) {
	long := strings.Repeat("k", 400)
	for name, test := range map[string]struct {
		from    []string
		counted bool
		want    []string
		cut     bool
	}{
		"short":                   {[]string{"k@0"}, false, []string{"k@0"}, false},
		"name like a number":      {[]string{"k@0", "and 5 more"}, false, []string{"k@0", "and 5 more"}, false},
		"long name":               {[]string{long}, false, []string{shortened(long, 200)}, true},
		"too many":                {[]string{"a", long, "b"}, false, []string{"a", "and 2 more"}, true},
		"number":                  {[]string{"k@0", "and 5 more"}, true, []string{"k@0", "and 5 more"}, true},
		"number, and too many":    {[]string{"a", long, "b", "and 5 more"}, true, []string{"a", "and 7 more"}, true},
		"counted, but no names":   {nil, true, nil, true},
		"name that begins so":     {[]string{"a", "and 5 moreover"}, true, []string{"a", "and 5 moreover"}, true},
		"name with another digit": {[]string{"a", "and 05 more"}, true, []string{"a", "and 05 more"}, true},
	} {
		limit := 210
		if strings.Contains(name, "too many") {
			limit = 100
		}
		r := Record{From: slices.Clone(test.from)}
		if test.counted {
			r.Cut = []string{"from"}
		}
		if r.shorten(200, limit); !slices.Equal(r.From, test.want) || slices.Contains(r.Cut, "from") != test.cut {
			t.Errorf("%s: %q, cut %q, want %q", name, r.From, r.Cut, test.want)
		}
	}
}

// TestShortenedUsesTheLimit: a shortened text has as many bytes in JSON as the limit allows, and no more.
func TestShortenedUsesTheLimit(t *testing.T) {
	const limit = 300
	for _, char := range []string{"a", "é", `"`, "\x01", "\ufffd", "\xff", "\u202e", "\U000e0001"} {
		size := escapedLen(char)
		for _, n := range []int{limit/size + 1, limit, 5000} {
			s := strings.Repeat(char, n)
			if escapedLen(s) <= limit {
				continue
			}
			got := shortened(s, limit)
			// All characters except digits have the same size; the end may have part of a character less.
			if used := escapedLen(got); used > limit || used <= limit-size {
				t.Errorf("%d times %q: %d bytes: %q", n, char, used, got)
			}
		}
	}
	for text, want := range map[string]int{"a": 1, "é": 2, `"\`: 4, "\x01": 6, "\ufffd": 3, "\xff": 6, "\u202e": 6,
		"\U000e0001": 12, "a\xffé": 9} {
		if got := escapedLen(text); got != want {
			t.Errorf("%q: %d, want %d", text, got, want)
		}
	}
}
