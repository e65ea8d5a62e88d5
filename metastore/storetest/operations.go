package storetest

import (
	"context"
	"fmt"
	"iter"
	"slices"
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

// Operations returns the calls of all groups below, which call all methods except Fill. In their order, the calls of a
// group succeed on a new store, and on a store on which the other groups have run.
func Operations() []Operation {
	return slices.Concat(RecordOperations(), KeyOperations(), DeletedKeyOperations(), TokenOperations())
}

// RecordOperations returns calls for settings, uses and the journal.
func RecordOperations() []Operation {
	use := at(1)
	return []Operation{
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
		{"RecordUses", func(ctx context.Context, s Full) error {
			return s.RecordUses(ctx, []metastore.LastUse{{Version: "k@0", Last: use}, {Version: "k@1", Last: use}})
		}},
		{"LastUses", func(ctx context.Context, s Full) error {
			_, _, err := s.LastUses(ctx, "k@0", "k@1")
			return err
		}},
		{"NeverUsed", func(ctx context.Context, s Full) error { _, err := s.NeverUsed(ctx, "k@0"); return err }},
		{"Clocks", func(ctx context.Context, s Full) error { _, err := s.Clocks(ctx); return err }},
		{"ForgetUnused", func(ctx context.Context, s Full) error { return s.ForgetUnused(ctx) }},
		{"Content", func(ctx context.Context, s Full) error { _, err := s.Content(ctx); return err }},
	}
}

// KeyOperations returns calls for keys, intents and numbers.
func KeyOperations() []Operation {
	begin := func(name, op string) func(context.Context, Full) error {
		return func(ctx context.Context, s Full) error {
			_, err := s.Begin(ctx, metastore.Intent{Key: name, Op: op, Refs: []metastore.Ref{{Object: "0b"}}})
			return err
		}
	}
	return append(stepOperations(), []Operation{
		{"Begin", begin("k", "create")},
		{"Begin again", begin("k", "create")},
		{"Pending", func(ctx context.Context, s Full) error { _, err := s.Pending(ctx); return err }},
		{"Drop", func(ctx context.Context, s Full) error { return s.Drop(ctx, "k") }},
		{"Insert", func(ctx context.Context, s Full) error { return s.Insert(ctx, key("k", "3", "4")) }},
		{"Append", func(ctx context.Context, s Full) error { return s.Append(ctx, "k", version("5", 5)) }},
		{"Prepend", func(ctx context.Context, s Full) error { return s.Prepend(ctx, "k", version("1", 1)) }},
		{"RemoveVersion", func(ctx context.Context, s Full) error {
			_, err := s.RemoveVersion(ctx, "k", "3")
			return err
		}},
		{"Drop the deletion", func(ctx context.Context, s Full) error { return s.Drop(ctx, "k") }},
		{"Amend", func(ctx context.Context, s Full) error {
			return s.Amend(ctx, claviger.Metadata{Name: "k", Description: text("amended"), Created: at(0),
				Attributes: map[string]string{"a": "b"}})
		}},
		{"Names", func(ctx context.Context, s Full) error { _, err := s.Names(ctx); return err }},
		{"Page", func(ctx context.Context, s Full) error { _, _, err := s.Page(ctx, "", 1); return err }},
		{"Get", func(ctx context.Context, s Full) error { _, err := s.Get(ctx, "k", "missing"); return err }},
		{"ByVersion", func(ctx context.Context, s Full) error { _, _, err := s.ByVersion(ctx, "k@4"); return err }},
		{"SkipNumbers", func(ctx context.Context, s Full) error { return s.SkipNumbers(ctx, "k", 10) }},
		{"NextNumber", func(ctx context.Context, s Full) error { _, err := s.NextNumber(ctx, "k"); return err }},
		{"Numbered", func(ctx context.Context, s Full) error { _, err := s.Numbered(ctx, "k", 4); return err }},
	}...)
}

// DeletedKeyOperations returns calls for deleted keys.
func DeletedKeyOperations() []Operation {
	softDelete := func(ctx context.Context, s Full) error { return s.SoftDelete(ctx, "d") }
	return []Operation{
		{"Insert to delete", func(ctx context.Context, s Full) error { return s.Insert(ctx, key("d", "33", "34")) }},
		{"SoftDelete", softDelete},
		{"DeletedKeys", func(ctx context.Context, s Full) error { _, err := s.DeletedKeys(ctx); return err }},
		{"DeletedKeys of a name", func(ctx context.Context, s Full) error {
			_, err := s.DeletedKeys(ctx, "d")
			return err
		}},
		{"Undelete", func(ctx context.Context, s Full) error { return s.Undelete(ctx, "d", "34") }},
		{"SoftDelete again", softDelete},
		{"Insert a second key", func(ctx context.Context, s Full) error { return s.Insert(ctx, key("d", "40")) }},
		{"Remove", func(ctx context.Context, s Full) error { _, err := s.Remove(ctx, "d"); return err }},
		{"Discard", func(ctx context.Context, s Full) error { _, err := s.Discard(ctx, "d", "34"); return err }},
	}
}

// TokenOperations returns calls for delegation tokens and their master keys.
func TokenOperations() []Operation {
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

// Faults runs do with one fault after the other, and yields what do returned. The last round has no fault.
type Faults func(do func() error) iter.Seq2[Fault, error]

// EachFails makes each call of an operation to the database fail, one after the other. The operation must return an
// error, and must change nothing. s must be a new store, to which faults applies. EachFails closes s; then each
// operation must fail.
func EachFails(t *testing.T, s Full, faults Faults, operations []Operation) {
	t.Helper()
	for _, o := range operations {
		eachCallFails(t, s, faults, o)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	for _, o := range operations {
		if err := o.Do(t.Context(), s); !claviger.Is(err, claviger.Closed) {
			t.Errorf("%s after Close: %v", o.Name, err)
		}
	}
}

// FillFails is EachFails for the method Fill. It fills the new store s with the content of the operations.
func FillFails(t *testing.T, from, s Full, faults Faults) {
	t.Helper()
	for _, o := range Operations() {
		must(t, o.Do(t.Context(), from))
	}
	content := contentOf(t, from)
	fill := Operation{"Fill", func(ctx context.Context, s Full) error { return s.Fill(ctx, content) }}
	eachCallFails(t, s, faults, fill)
	if diff := content.Differ(contentOf(t, s)); diff != nil {
		t.Errorf("Fill: %q differ", diff)
	}
	must(t, s.Close())
	if err := fill.Do(t.Context(), s); !claviger.Is(err, claviger.Closed) {
		t.Errorf("Fill after Close: %v", err)
	}
}

func eachCallFails(t *testing.T, s Full, faults Faults, o Operation) {
	t.Helper()
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

func contentOf(t *testing.T, s metastore.Movable) *metastore.Content {
	t.Helper()
	c, err := s.Content(t.Context())
	if err != nil {
		t.Fatal(fmt.Errorf("reading the content: %w", err))
	}
	return c
}
