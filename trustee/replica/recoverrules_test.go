package replica_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"claviger"
	"claviger/trustee"
	"claviger/trustee/replica"
	"claviger/trustee/server"
)

// recordStore is a store in memory for Recover. before is called with each call, and may make the call fail.
type recordStore struct {
	server.Store
	records []server.Record
	before  func(call string) error
}

func (s *recordStore) at(format string, args ...any) error {
	if s.before == nil {
		return nil
	}
	return s.before(fmt.Sprintf(format, args...))
}

func (s *recordStore) Export(_ context.Context, f func(server.Record) error) error {
	if err := s.at("export"); err != nil {
		return err
	}
	for _, r := range s.records {
		if err := f(r); err != nil {
			return err
		}
	}
	return nil
}

func (s *recordStore) AddOrg(_ context.Context, o server.Org) error {
	if err := s.at("add organization %s", o.Name); err != nil {
		return err
	}
	s.records = append(s.records, server.Record{Org: &o})
	return nil
}

func (s *recordStore) AddClient(_ context.Context, c server.Client, _ server.Once) (server.Client, error) {
	if err := s.at("add client %s", c.Fingerprint); err != nil {
		return c, err
	}
	s.records = append(s.records, server.Record{Client: &c})
	return c, nil
}

func (s *recordStore) Put(_ context.Context, row server.Row, replaces string, _ server.Once) error {
	how := ""
	if row.Sealed.Deleted != nil {
		how = " deleted"
	}
	if err := s.at("put%s %s%s", how, row.UUID, replaces); err != nil {
		return err
	}
	for _, r := range s.records {
		if d := r.Deposit; d != nil && d.Label == row.Label && d.Sealed.Deleted == nil && how == "" {
			return claviger.Errorf("test", claviger.KeyExists, "", "taken")
		}
	}
	s.records = append(s.records, server.Record{Deposit: &row})
	return nil
}

func (s *recordStore) Delete(_ context.Context, owner string, uuids []string, at time.Time, _ server.Once) error {
	if err := s.at("delete %s of %s", strings.Join(uuids, ", "), owner); err != nil {
		return err
	}
	for i, r := range s.records {
		for _, uuid := range uuids {
			if r.Deposit != nil && r.Deposit.UUID == uuid {
				row := *r.Deposit
				row.Sealed.Deleted = &at
				s.records[i].Deposit = &row
			}
		}
	}
	return nil
}

// deposit returns a live deposit with the uuid label#minute, which the owner O made at that minute.
func deposit(label string, minute int) server.Record {
	uuid := fmt.Sprintf("%s#%d", label, minute)
	text, err := json.Marshal(map[string]any{"uuid": uuid, "owner": "O", "label": label, "digest": "d",
		"created": time.Unix(0, 0).Add(time.Duration(minute) * time.Minute)})
	if err != nil {
		panic(err)
	}
	return server.Record{Deposit: &server.Row{UUID: uuid, Owner: "O", Org: "ORG", Label: label,
		Sealed: trustee.Sealed{Statement: text}}}
}

// deleted returns the record as a deleted deposit.
func deleted(r server.Record) server.Record {
	row, at := *r.Deposit, time.Unix(1, 0)
	row.Sealed.Deleted = &at
	return server.Record{Deposit: &row}
}

// recoverRule is a recovery of the records from into a store with the records into. Both have the deposit "common",
// made at minute 10.
type recoverRule struct {
	into, from []server.Record
	revive     []string
	refuses    string // a call that the store refuses
	kind       claviger.Kind
	want       string // see recovered
}

// keyRules have a document of the key k, made at minute 12, and its versions. The deposit deleted/k/1 records that the
// key was deleted.
func keyRules() map[string]recoverRule {
	doc, v1, v2 := deposit("key/k", 12), deposit("version/k@1", 11), deposit("version/k@2", 13)
	oldDoc, old1, old2 := deposit("key/k", 5), deposit("version/k@1", 5), deposit("version/k@2", 5)
	newer, end := deposit("key/k", 14), deposit("deleted/k/1", 12)
	early := deposit("deleted/k/1", 9)
	return map[string]recoverRule{
		"a new key": {from: records(doc, v1),
			want: `put version/k@1#11, put key/k#12, added key "k" | 2 lacked, 2 added`},
		"a new key with a document older than its version": {from: records(doc, v2),
			want: `put version/k@2#13, put key/k#12, added key "k" | 2 lacked, 2 added`},
		"a key that the store has deleted": {from: records(oldDoc, old1, old2),
			want: `left REVIVED key "k" (of its versions the store lacks "k@1", "k@2") | 3 lacked, 0 added`},
		"a key that the store has deleted, named": {from: records(oldDoc, old1), revive: []string{"k"},
			want: `put version/k@1#5, put key/k#5, added key "k" | 2 lacked, 2 added`},
		"a new version of a key that the store has deleted": {from: records(oldDoc, v1),
			want: `left REVIVED key "k" (of its versions the store lacks "k@1"): the s | 2 lacked, 0 added`},
		"a key whose deletion the other store lacks": {into: records(end), from: records(doc, v1),
			want: `left REVIVED key "k" (of its versions the store lacks "k@1"): the s | 2 lacked, 0 added`},
		"a key whose deletion both stores have": {into: records(early), from: records(early, doc, v1),
			want: `put version/k@1#11, put key/k#12, added key "k" | 2 lacked, 2 added`},
		"another key of that name": {into: records(newer), from: records(doc, v1),
			want: `put deleted version/k@1#11, aside k@1, left key "k": the store has another state of it, ` +
				"or another key of  | 2 lacked, 0 added"},
		"a replaced document": {into: records(newer), from: records(oldDoc, v1),
			want: "put deleted version/k@1#11, aside k@1 | 1 lacked, 0 added"},
		"a deleted version of a live key": {into: records(doc), from: records(doc, old1),
			want: `left REVIVED version "k@1": the store has deleted it; --revive "k"  | 1 lacked, 0 added`},
		"a deleted version of a live key, named": {into: records(doc), from: records(doc, old1), revive: []string{"k"},
			want: "put deleted version/k@1#5, aside k@1 | 1 lacked, 0 added"},
		"a version without a document": {from: records(v1),
			want: "put deleted version/k@1#11, aside k@1 | 1 lacked, 0 added"},
		"a version with a deleted document": {from: records(v1, deleted(doc)),
			want: `put deleted version/k@1#11, put deleted key/k#12, added deposit "key/k", aside k@1 | 2 ` +
				"lacked, 1 added"},
		"a key that was deleted there": {into: records(doc), from: records(end),
			want: `left deleted key "k": the store has a key of that name, which stays | 1 lacked, 0 added`},
		"a key that was made and deleted there": {from: records(end, v1),
			want: `put version/k@1#11, put deleted/k/1#12, added deleted key "k" | 2 lacked, 2 added`},
		"a deleted version": {from: records(deleted(v1)),
			want: `put deleted version/k@1#11, added deposit "version/k@1" | 1 lacked, 1 added`},
		"a version that was set aside": {into: records(deleted(v1), doc), from: records(v1, doc),
			want: "aside k@1 | 1 lacked, 0 added"},
		"a version that was deleted there": {into: records(v1, doc), from: records(deleted(v1), doc),
			want: `left deposit "version/k@1": the store holds it in another state (de | 1 lacked, 0 added`},
		"a name that was taken meanwhile": {from: records(doc, v1, v2), refuses: "put key/k#12",
			kind: claviger.KeyExists,
			want: "put version/k@1#11, put version/k@2#13, delete version/k@1#11, version/k@2#13 of O, " +
				`aside k@1, aside k@2, left deposit "key/k": the store has another of that name by now | ` +
				"3 lacked, 0 added"},
		"a name that was taken meanwhile, without versions": {from: records(doc), refuses: "put key/k#12",
			kind: claviger.KeyExists,
			want: `left deposit "key/k": the store has another of that name by now | 1 lacked, 0 added`},
		"a version that was taken meanwhile": {from: records(doc, v1), refuses: "put version/k@1#11",
			kind: claviger.KeyExists,
			want: `put key/k#12, added key "k", left deposit "version/k@1": the store has another of that ` +
				"name by n | 2 lacked, 1 added"},
		"a key whose document the store has deleted": {into: records(deleted(newer)), from: records(doc, v1),
			want: `put version/k@1#11, put key/k#12, added key "k" | 2 lacked, 2 added`},
		"a key of which the store holds a version": {into: records(v2), from: records(doc, v1),
			want: `put version/k@1#11, put key/k#12, added key "k" | 2 lacked, 2 added`},
		"several keys": {from: records(deposit("key/b", 15), deposit("key/a", 20), deposit("version/a@1", 14),
			deposit("key/d", 5), deposit("key/c", 5)),
			want: `put version/a@1#14, put key/b#15, put key/a#20, added key "b", added key "a", left ` +
				`REVIVED key "c": the store has deleted it, and it would be in , left REVIVED key "d": ` +
				"the store has deleted it, and it would be in  | 5 lacked, 3 added"},
	}
}

// otherRules have no keys.
func otherRules() map[string]recoverRule {
	x, newer, old, gone := deposit("x", 12), deposit("x", 13), deposit("x", 5), deleted(deposit("x", 13))
	org := server.Record{Org: &server.Org{Name: "X"}}
	client := server.Record{Client: &server.Client{Fingerprint: "C"}}
	return map[string]recoverRule{
		"nothing": {want: " | 0 lacked, 0 added"},
		"deposits that are deleted in both": {from: records(deleted(deposit("key/k", 5)), deleted(old)),
			want: " | 0 lacked, 0 added"},
		"a deleted deposit": {from: records(gone),
			want: `put deleted x#13, added deposit "x" | 1 lacked, 1 added`},
		"a deposit": {from: records(x, deposit("a", 13)),
			want: `put x#12, put a#13, added deposit "x", added deposit "a" | 2 lacked, 2 added`},
		"a deposit that the store has deleted": {from: records(old),
			want: `left REVIVED deposit "x": the store has deleted it, and it would be | 1 lacked, 0 added`},
		"a deposit whose label is taken": {into: records(newer), from: records(x),
			want: `left deposit "x": the store has another of that name by now | 1 lacked, 0 added`},
		"a deposit whose label was taken meanwhile": {from: records(x), refuses: "put x#12", kind: claviger.KeyExists,
			want: `left deposit "x": the store has another of that name by now | 1 lacked, 0 added`},
		"a deposit that was replaced": {into: records(newer), from: records(old),
			want: " | 0 lacked, 0 added"},
		"a deposit in another state": {into: records(gone), from: records(newer),
			want: `left deposit "x": the store holds it in another state (deleted or n | 1 lacked, 0 added`},
		"an organization and a client": {from: records(org, client),
			want: `add organization X, add client C, added organization "X", added client C | 2 lacked, 2 ` +
				"added"},
		"an organization in another state": {into: records(org),
			from: records(server.Record{Org: &server.Org{Name: "X", Auth: "a"}}),
			want: `left organization "X": the store holds it in another state (deleted | 1 lacked, 0 added`},
		"an organization whose name is taken": {from: records(org), refuses: "add organization X",
			kind: claviger.KeyExists,
			want: `left organization "X": the store has another of that name by now | 1 lacked, 0 added`},
		"a client that is refused": {from: records(client), refuses: "add client C", kind: claviger.Denied,
			want: "left client C: refused | 1 lacked, 0 added"},
		"an invalid client": {from: records(client), refuses: "add client C", kind: claviger.Invalid,
			want: "left client C: refused | 1 lacked, 0 added"},
		"a deposit older than the newest in both": {into: records(deposit("y", 7)),
			from: records(deposit("y", 7), deposit("x", 8)),
			want: `left REVIVED deposit "x": the store has deleted it, and it would be | 1 lacked, 0 added`},
		"a name of which nothing is lacking": {into: records(newer), from: records(newer, deposit("y", 12)),
			revive: []string{"y", "x"},
			want:   `put y#12, added deposit "y", idle x | 1 lacked, 1 added`},
	}
}

func records(list ...server.Record) []server.Record { return list }

// recovered returns the changes of the store and the result of a recovery in a line. A word before each text names its
// list: added (Names), aside (Aside), left (NotAdded), idle (NotLacked).
func recovered(changes []string, r *replica.Recovered) string {
	line := slices.Clone(changes)
	for i, list := range [][]string{r.Names, r.Aside, r.NotAdded, r.NotLacked} {
		for _, text := range list {
			line = append(line, fmt.Sprintf("%s %.62s", []string{"added", "aside", "left", "idle"}[i], text))
		}
	}
	all := func(l *replica.Loss) string {
		if n := l.Orgs + l.Clients + l.Deposits; n != len(l.Names) {
			return fmt.Sprintf("%d, but %d named", n, len(l.Names))
		}
		return fmt.Sprint(len(l.Names))
	}
	return fmt.Sprintf("%s | %s lacked, %s added", strings.Join(line, ", "), all(&r.Lacked), all(&r.Added))
}

// TestRecoverRules: Recover decides for the deposits of each key together.
func TestRecoverRules(t *testing.T) {
	for _, rules := range []map[string]recoverRule{keyRules(), otherRules()} {
		for name, c := range rules {
			var changes []string
			into := &recordStore{records: append(records(deposit("common", 10)), c.into...)}
			from := &recordStore{records: append(records(deposit("common", 10)), c.from...)}
			into.before = func(call string) error {
				if call == c.refuses {
					return claviger.Errorf("test", c.kind, "", "refused")
				}
				if call != "export" {
					changes = append(changes, call)
				}
				return nil
			}
			r, err := replica.Recover(t.Context(), into, from, replica.RecoverOptions{Revive: c.revive})
			if err != nil {
				t.Errorf("%s: %v", name, err)
			} else if got := recovered(changes, r); got != c.want {
				t.Errorf("%s: %s, want %s", name, got, c.want)
			}
		}
	}
}

// recoverAll is a recovery with all calls of the store: the store refuses the document of the key.
func recoverAll(t *testing.T, o replica.RecoverOptions, before func(call string) error) (*replica.Recovered, error) {
	t.Helper()
	at := func(call string) error {
		if err := before(call); err != nil {
			return err
		}
		if strings.HasPrefix(call, "put key/k") {
			return claviger.Errorf("test", claviger.KeyExists, "", "taken")
		}
		return nil
	}
	from := &recordStore{before: before, records: records(server.Record{Org: &server.Org{Name: "X"}},
		server.Record{Client: &server.Client{Fingerprint: "C"}}, deposit("key/k", 12), deposit("version/k@1", 11),
		deposit("x", 13))}
	return replica.Recover(t.Context(), &recordStore{before: at}, from, o)
}

// TestRecoverFails: Recover ends with the error of a store.
func TestRecoverFails(t *testing.T) {
	var calls []string
	_, err := recoverAll(t, replica.RecoverOptions{}, func(call string) error {
		calls = append(calls, call)
		return nil
	})
	if err != nil || len(calls) != 8 {
		t.Fatalf("%q, %v", calls, err)
	}
	for n := range calls {
		i := -1
		_, err := recoverAll(t, replica.RecoverOptions{}, func(string) error {
			if i++; i == n {
				return claviger.E("test", claviger.Unavailable, "", errInjected)
			}
			return nil
		})
		if !errors.Is(err, errInjected) || i != n {
			t.Errorf("%s fails: %v after call %d", calls[n], err, i)
		}
	}
}

// TestRecoverDry: a dry run counts what the store lacks, and changes nothing.
func TestRecoverDry(t *testing.T) {
	r, err := recoverAll(t, replica.RecoverOptions{Dry: true}, func(call string) error {
		if call != "export" {
			t.Error(call)
		}
		return nil
	})
	if err != nil || r.Lacked.Orgs != 1 || r.Lacked.Clients != 1 || r.Lacked.Deposits != 3 || !r.Added.None() {
		t.Errorf("%+v, %v", r, err)
	}
}

// TestRecoverUnreadable: Recover does not guess when a deposit was made.
func TestRecoverUnreadable(t *testing.T) {
	bad := deposit("x", 1)
	bad.Deposit.Sealed.Statement = []byte("{")
	for name, lists := range map[string][2][]server.Record{"in the store": {records(bad)},
		"in the other store": {nil, records(bad)}} {
		_, err := replica.Recover(t.Context(), &recordStore{records: lists[0]}, &recordStore{records: lists[1]},
			replica.RecoverOptions{})
		if !claviger.Is(err, claviger.Invalid) || !strings.Contains(err.Error(), "the statement of a deposit") {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestRecoverMisspelt: a name that the other store does not hold changes nothing.
func TestRecoverMisspelt(t *testing.T) {
	_, err := recoverAll(t, replica.RecoverOptions{Revive: []string{"k", "xx"}}, func(call string) error {
		if call != "export" {
			t.Error(call)
		}
		return nil
	})
	if !claviger.Is(err, claviger.KeyNotFound) || !strings.Contains(err.Error(), "--revive xx") {
		t.Error(err)
	}
}

// TestRecoverIsSorted: the result names deposits in the order of their names.
func TestRecoverIsSorted(t *testing.T) {
	into := &recordStore{records: records(deposit("common", 10))}
	from := &recordStore{records: records(deposit("common", 10))}
	for _, name := range []string{"h", "g", "f", "e", "d", "c", "b", "a"} { // the store has deleted them
		from.records = append(from.records, deposit(name, 5))
	}
	r, err := replica.Recover(t.Context(), into, from, replica.RecoverOptions{})
	if err != nil || len(r.NotAdded) != 8 || !slices.IsSorted(r.NotAdded) {
		t.Errorf("%q, %v", r.NotAdded, err)
	}
}
