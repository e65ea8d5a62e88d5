package storetest

import (
	"context"
	"fmt"
	"iter"
	"testing"
	"time"

	"claviger"
	"claviger/metastore"
)

// Full is a store with everything that both stores have.
type Full interface {
	metastore.Store
	metastore.Delegations
	metastore.Movable
	metastore.Watched
}

// Fault is a call to the database that was made to fail.
type Fault struct {
	Call string // "" if no call failed
	// Values says that the call gave a row with values of wrong types.
	Values bool
}

// Operation is a call of a method of a store.
type Operation struct {
	Name string
	Do   func(ctx context.Context, s Full) error
}

// Operations returns calls of all methods. In this order, each call succeeds on a new store.
func Operations() []Operation {
	use := at(1)
	list := []Operation{
		{"Check", func(ctx context.Context, s Full) error { return s.Check(ctx) }},
		{"CheckWrites", func(ctx context.Context, s Full) error { return s.CheckWrites(ctx) }},
		{"SetSetting", func(ctx context.Context, s Full) error { return s.SetSetting(ctx, "name", "value") }},
		{"Setting", func(ctx context.Context, s Full) error { _, _, err := s.Setting(ctx, "name"); return err }},
		{"AddUse", func(ctx context.Context, s Full) error {
			return s.AddUse(ctx, []metastore.Use{{Source: "x", Version: "k@0", Op: "decrypt", Count: 1, Last: use},
				{Source: "x", Version: "k@1", Op: "decrypt", Count: 1, Last: use}})
		}},
		{"Uses", func(ctx context.Context, s Full) error { _, err := s.Uses(ctx); return err }},
		{"Put", func(ctx context.Context, s Full) error { return s.Put(ctx, "run", "item", []byte("{}")) }},
		{"Records", func(ctx context.Context, s Full) error { _, err := s.Records(ctx, "run"); return err }},
		{"Runs", func(ctx context.Context, s Full) error { _, err := s.Runs(ctx); return err }},
		{"Touch", func(ctx context.Context, s Full) error {
			return s.Touch(ctx, []metastore.LastUse{{Version: "k@0", Last: use}, {Version: "k@1", Last: use}})
		}},
		{"LastUses", func(ctx context.Context, s Full) error {
			_, _, err := s.LastUses(ctx, "k@0", "k@1")
			return err
		}},
		{"NeverUsed", func(ctx context.Context, s Full) error { _, err := s.NeverUsed(ctx, "k@0"); return err }},
		{"Clocks", func(ctx context.Context, s Full) error { _, err := s.Clocks(ctx); return err }},
	}
	list = append(list, keyOperations()...)
	list = append(list, shelfOperations()...)
	list = append(list, tokenOperations()...)
	return append(list,
		Operation{"ForgetUnused", func(ctx context.Context, s Full) error { return s.ForgetUnused(ctx) }},
		Operation{"Content", func(ctx context.Context, s Full) error { _, err := s.Content(ctx); return err }},
	)
}

func keyOperations() []Operation {
	begin := func(name, op string) func(context.Context, Full) error {
		return func(ctx context.Context, s Full) error {
			_, err := s.Begin(ctx, metastore.Intent{Key: name, Op: op, Refs: []metastore.Ref{{Object: "0b"}}})
			return err
		}
	}
	return []Operation{
		{"Begin", begin("k", "create")},
		{"Begin again", begin("k", "create")},
		{"Pending", func(ctx context.Context, s Full) error { _, err := s.Pending(ctx); return err }},
		{"Drop", func(ctx context.Context, s Full) error { return s.Drop(ctx, "k") }},
		{"Insert", func(ctx context.Context, s Full) error { return s.Insert(ctx, key("k", "3", "4")) }},
		{"Append", func(ctx context.Context, s Full) error { return s.Append(ctx, "k", version("5", 5)) }},
		{"Prepend", func(ctx context.Context, s Full) error { return s.Prepend(ctx, "k", version("1", 1)) }},
		{"Amend", func(ctx context.Context, s Full) error {
			return s.Amend(ctx, claviger.Metadata{Name: "k", Description: text("amended"), Created: at(0),
				Attributes: map[string]string{"a": "b"}})
		}},
		{"Names", func(ctx context.Context, s Full) error { _, err := s.Names(ctx); return err }},
		{"Get", func(ctx context.Context, s Full) error { _, err := s.Get(ctx, "k", "missing"); return err }},
		{"ByVersion", func(ctx context.Context, s Full) error { _, _, err := s.ByVersion(ctx, "k@4"); return err }},
		{"SkipNumbers", func(ctx context.Context, s Full) error { return s.SkipNumbers(ctx, "k", 10) }},
		{"NextNumber", func(ctx context.Context, s Full) error { _, err := s.NextNumber(ctx, "k"); return err }},
		{"Numbered", func(ctx context.Context, s Full) error { _, err := s.Numbered(ctx, "k", 4); return err }},
	}
}

func shelfOperations() []Operation {
	shelve := func(ctx context.Context, s Full) error { return s.Shelve(ctx, "k") }
	return []Operation{
		{"Shelve", shelve},
		{"Shelved", func(ctx context.Context, s Full) error { _, err := s.Shelved(ctx); return err }},
		{"Shelved of a name", func(ctx context.Context, s Full) error { _, err := s.Shelved(ctx, "k"); return err }},
		{"Unshelve", func(ctx context.Context, s Full) error { return s.Unshelve(ctx, "k", "4") }},
		{"Shelve again", shelve},
		{"Insert a second key", func(ctx context.Context, s Full) error { return s.Insert(ctx, key("k", "20")) }},
		{"Remove", func(ctx context.Context, s Full) error { _, err := s.Remove(ctx, "k"); return err }},
		{"Discard", func(ctx context.Context, s Full) error { _, err := s.Discard(ctx, "k", "4"); return err }},
	}
}

func tokenOperations() []Operation {
	return []Operation{
		{"NextSequences", func(ctx context.Context, s Full) error { _, err := s.NextSequences(ctx, 3); return err }},
		{"NextKeyID", func(ctx context.Context, s Full) error { _, err := s.NextKeyID(ctx); return err }},
		{"PutMasterKey", func(ctx context.Context, s Full) error {
			return s.PutMasterKey(ctx, metastore.MasterKey{ID: 1, Expires: inDays(1), Key: []byte("key")})
		}},
		{"MasterKeys", func(ctx context.Context, s Full) error { _, err := s.MasterKeys(ctx); return err }},
		{"RemoveMasterKey", func(ctx context.Context, s Full) error { return s.RemoveMasterKey(ctx, 1) }},
		{"PutDelegation", func(ctx context.Context, s Full) error { return s.PutDelegation(ctx, token(1, inDays(1))) }},
		{"RenewDelegation", func(ctx context.Context, s Full) error {
			_, err := s.RenewDelegation(ctx, 1, inDays(2))
			return err
		}},
		{"Delegation", func(ctx context.Context, s Full) error { _, _, err := s.Delegation(ctx, 1); return err }},
		{"CountDelegations", func(ctx context.Context, s Full) error {
			_, err := s.CountDelegations(ctx)
			return err
		}},
		{"Identifiers", func(ctx context.Context, s Full) error { return s.Identifiers(ctx, func([]byte) {}) }},
		{"RemoveDelegation", func(ctx context.Context, s Full) error {
			_, err := s.RemoveDelegation(ctx, 1)
			return err
		}},
		{"RemoveExpired", func(ctx context.Context, s Full) error {
			_, err := s.RemoveExpired(ctx, time.Now())
			return err
		}},
	}
}

// EachFails lets each call that an operation makes to the database fail. The operation must return an error, and must
// change nothing. faults runs do with one fault after the other, and yields what do returned; the last round has no
// fault. s and fresh must be new stores, to which faults applies. more are calls of methods that only this store has.
// EachFails closes s.
func EachFails(t *testing.T, s, fresh Full, faults func(do func() error) iter.Seq2[Fault, error], more ...Operation) {
	t.Helper()
	all := append(Operations(), more...)
	try := func(s Full, o Operation) {
		before := contentOf(t, s)
		rounds := 0
		for fault, err := range faults(func() error { return o.Do(t.Context(), s) }) {
			rounds++
			if fault.Call == "" {
				if err != nil {
					t.Fatalf("%s without a fault: %v", o.Name, err)
				}
				break
			}
			if err == nil && !(fault.Values && o.Name == "Content") { // Content copies values of all types
				t.Fatalf("%s succeeds in spite of a fault in %s", o.Name, fault.Call)
			}
			if diff := before.Differ(contentOf(t, s)); diff != nil {
				t.Fatalf("%s with a fault in %s has changed %q", o.Name, fault.Call, diff)
			}
		}
		if rounds < 2 {
			t.Errorf("%s made no call that can fail", o.Name)
		}
	}
	for _, o := range all {
		try(s, o)
	}
	content := contentOf(t, s)
	fill := Operation{"Fill", func(ctx context.Context, s Full) error { return s.Fill(ctx, content) }}
	try(fresh, fill)
	if diff := content.Differ(contentOf(t, fresh)); diff != nil {
		t.Errorf("Fill: %q differ", diff)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	for _, o := range append(all, fill) {
		if err := o.Do(t.Context(), s); !claviger.Is(err, claviger.Closed) {
			t.Errorf("%s after Close: %v", o.Name, err)
		}
	}
}

func contentOf(t *testing.T, s metastore.Movable) *metastore.Content {
	t.Helper()
	c, err := s.Content(t.Context())
	if err != nil {
		t.Fatal(fmt.Errorf("reading the content: %w", err))
	}
	return c
}
