package storetest

import (
	"testing"

	"claviger/metastore"
)

// EpochStore has the methods that the suite of epochs calls.
type EpochStore interface {
	metastore.Keys
	metastore.Intents
	metastore.DeletedKeys
	metastore.Epochs
}

// Epochs is the suite of metastore.Epochs. open makes an empty store and returns it as two nodes open it.
func Epochs(t *testing.T, open func(t *testing.T) (a, b EpochStore)) {
	a, b := open(t)
	ctx := t.Context()
	// seen holds each epoch that was returned, with the change before it.
	seen := map[int64]string{0: "the key did not exist"}
	wantNew := func(after string) {
		t.Helper()
		epoch, err := a.Epoch(ctx, "k")
		must(t, err)
		if before, again := seen[epoch]; again {
			t.Errorf("epoch %d after %s; it was already %[1]d after %[3]s", epoch, after, before)
		}
		seen[epoch] = after
		for _, s := range []EpochStore{b, a} {
			same, err := s.Epoch(ctx, "k")
			must(t, err)
			if same != epoch {
				t.Errorf("epoch %d, then %d, without a change between them", epoch, same)
			}
		}
	}
	wantNone := func() {
		t.Helper()
		for _, name := range []string{"k", "", "\x00", "\xff"} {
			if epoch, err := a.Epoch(ctx, name); err != nil || epoch != 0 {
				t.Errorf("epoch %d of %q, which does not exist (%v)", epoch, name, err)
			}
		}
	}
	wantNone()
	must(t, b.Insert(ctx, key("other", "cc")))
	must(t, b.Insert(ctx, key("k", "aa")))
	wantNew("the key was created")
	must(t, b.Append(ctx, "k", version("bb", 1)))
	wantNew("the key was rolled")
	must(t, b.Amend(ctx, key("k", "aa").Metadata))
	wantNew("the key was amended")
	_, err := b.RemoveVersion(ctx, "k", "aa")
	must(t, err)
	wantNew("a version was removed")
	must(t, b.Drop(ctx, "k"))
	must(t, b.SoftDelete(ctx, "k"))
	wantNone()
	must(t, b.Undelete(ctx, "k", "bb"))
	wantNew("the key was undeleted")
	_, err = b.Remove(ctx, "k")
	must(t, err)
	wantNone()
	must(t, b.Insert(ctx, key("k", "dd")))
	wantNew("the key was created again")
}
