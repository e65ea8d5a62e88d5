package server

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"claviger"
	"claviger/keyhsm"
	"claviger/trustee"
)

// wrappedStore is a store with wrapped deposits, and a Key HSM that opens those of some keys.
type wrappedStore struct {
	Store
	heads   map[string]string // the key id of each deposit, by uuid
	deleted string            // the uuid of a deposit that Get does not find
	fault   error             // of Wrapped
	lost    error             // of Get
	closed  map[string]error  // of Unwrap, by key id

	opened  []string
	content []byte // the last that Unwrap returned
}

// headOf returns the head of an envelope under an HSM key.
func headOf(id string) []byte {
	return append([]byte{'C', 'K', 'H', 'S', 'M', 1, 1, byte(len(id))}, id...)
}

func (s *wrappedStore) Wrapped(_ context.Context, bytes int, f func(uuid string, head []byte)) error {
	for uuid, id := range s.heads {
		head := headOf(id)
		f(uuid, head[:min(len(head), bytes)])
	}
	return s.fault
}

func (s *wrappedStore) Get(_ context.Context, uuid string) (Row, error) {
	if uuid == s.deleted {
		return Row{}, claviger.E("test", claviger.KeyNotFound, uuid, nil)
	}
	return Row{UUID: uuid, Sealed: trustee.Sealed{Content: headOf(s.heads[uuid])}}, s.lost
}

func (s *wrappedStore) Wrap(context.Context, string, []byte) ([]byte, error) { return nil, nil }

func (s *wrappedStore) Unwrap(_ context.Context, uuid string, wrapped []byte) ([]byte, error) {
	s.opened = append(s.opened, uuid)
	s.content = []byte("secret")
	id, err := hex.DecodeString(keyhsm.KeyIDOfHead(wrapped))
	if err != nil {
		return nil, err
	}
	return s.content, s.closed[string(id)]
}

func hexOf(id string) string { return hex.EncodeToString([]byte(id)) }

var errWrapped = errors.New("injected fault")

// TestWrappedCount counts deposits by key. A store that cannot list wrapped deposits has none.
func TestWrappedCount(t *testing.T) {
	s := &wrappedStore{heads: map[string]string{"u1": "a", "u2": "a", "u3": "b"}}
	counts, err := NewWrapped(s, nil).Count(t.Context())
	if err != nil || len(counts) != 2 || counts[hexOf("a")] != 2 || counts[hexOf("b")] != 1 {
		t.Errorf("%v, %v", counts, err)
	}
	s.fault = errWrapped
	if _, err := NewWrapped(s, nil).Count(t.Context()); !errors.Is(err, errWrapped) {
		t.Errorf("a store that fails: %v", err)
	}
	if counts, err := NewWrapped(&checkedStore{}, nil).Count(t.Context()); err != nil || len(counts) != 0 {
		t.Errorf("a store without wrapped deposits: %v, %v", counts, err)
	}
}

// TestUnopened: one deposit of each key is opened, and each key that the Key HSM does not open is an error. The
// content is wiped.
func TestUnopened(t *testing.T) {
	heads := map[string]string{"u1": "a", "u2": "a", "u3": "b", "u4": "c"}
	for what, tt := range map[string]struct {
		store *wrappedStore
		want  []string
	}{
		"all are opened": {&wrappedStore{}, nil},
		"a key that the Key HSM lacks": {&wrappedStore{closed: map[string]error{"b": errWrapped}},
			[]string{"1 deposits are wrapped by key " + hexOf("b") + ", which this Key HSM does not open"}},
		"a deposit that is deleted meanwhile": {&wrappedStore{deleted: "u4"}, nil},
		"a store that fails":                  {&wrappedStore{fault: errWrapped}, []string{errWrapped.Error()}},
		"a store without deposits": {&wrappedStore{lost: errWrapped}, []string{"2 deposits are wrapped by key " +
			hexOf("a"), "1 deposits are wrapped by key " + hexOf("b"), "1 deposits are wrapped by key " + hexOf("c")}},
	} {
		tt.store.heads = heads
		got := NewWrapped(tt.store, tt.store).Unopened(t.Context())
		if len(got) != len(tt.want) {
			t.Errorf("%s: %v", what, got)
			continue
		}
		for i, err := range got {
			if !strings.Contains(err.Error(), tt.want[i]) || !errors.Is(err, errWrapped) {
				t.Errorf("%s: %v, want %q", what, err, tt.want[i])
			}
		}
		if slices.ContainsFunc(tt.store.content, func(b byte) bool { return b != 0 }) {
			t.Errorf("%s: the content %q was not wiped", what, tt.store.content)
		}
		if n := len(tt.store.opened); tt.want == nil && tt.store.deleted == "" && n != 3 ||
			tt.store.deleted != "" && n != 2 || tt.store.lost != nil && n != 0 {
			t.Errorf("%s: the Key HSM was asked for %s", what, tt.store.opened)
		}
	}
	got := NewWrapped(&wrappedStore{heads: heads}, nil).Unopened(t.Context())
	if len(got) != 3 || !strings.Contains(got[0].Error(), "2 deposits") || !strings.Contains(got[0].Error(),
		"started without --keyhsm") {
		t.Errorf("without a Key HSM: %v", got)
	}
}

// TestWrappedCheck: Check returns the same result for a minute. A Key HSM that does not answer is not an error.
func TestWrappedCheck(t *testing.T) {
	s := &wrappedStore{heads: map[string]string{"u1": "a", "u3": "b"}, closed: map[string]error{"a": errWrapped,
		"b": claviger.E("test", claviger.Unavailable, "", fmt.Errorf("no answer"))}}
	w := NewWrapped(s, s)
	for range 2 {
		if err := w.Check(t.Context()); !errors.Is(err, errWrapped) || claviger.Is(err, claviger.Unavailable) ||
			len(s.opened) != 2 {
			t.Errorf("%v after %s", err, s.opened)
		}
		s.closed = nil // Check does not see it yet
	}
	w.checked = w.checked.Add(-wrappedFor)
	for range 2 {
		if err := w.Check(t.Context()); err != nil || len(s.opened) != 4 {
			t.Errorf("a minute later: %v after %s", err, s.opened)
		}
		s.closed = map[string]error{"a": errWrapped}
	}
}

// TestMayServe: a server does not start without a Key HSM if there are wrapped deposits, unless the operator wants it.
func TestMayServe(t *testing.T) {
	some := map[string]string{"u1": "a", "u2": "a", "u3": "b"}
	keeper := &wrappedStore{}
	for what, tt := range map[string]struct {
		store   *wrappedStore
		keeper  Keeper
		without bool
		want    string
	}{
		"no wrapped deposits":     {&wrappedStore{}, nil, false, ""},
		"wrapped deposits":        {&wrappedStore{heads: some}, nil, false, "3 deposits are wrapped by a Key HSM"},
		"a Key HSM":               {&wrappedStore{heads: some}, keeper, false, ""},
		"the operator's decision": {&wrappedStore{heads: some}, nil, true, ""},
		"a store that fails":      {&wrappedStore{heads: some, fault: errWrapped}, nil, false, errWrapped.Error()},
	} {
		err := NewWrapped(tt.store, tt.keeper).MayServe(t.Context(), tt.without)
		if (err == nil) != (tt.want == "") || err != nil && !strings.HasPrefix(err.Error(), tt.want) {
			t.Errorf("%s: %v, want %q", what, err, tt.want)
		}
	}
}
