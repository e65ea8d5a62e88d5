package storetest

import (
	"testing"

	"claviger/metastore"
)

// EpochStore is what the suite of epochs needs.
type EpochStore interface {
	metastore.Keys
	metastore.Shelf
	metastore.Epochs
}

// Epochs is the suite of metastore.Epochs. open is as that of Notices.
func Epochs(t *testing.T, open func(t *testing.T) (a, b EpochStore)) {
	a, b := open(t)
	ctx := t.Context()
	had := map[int64]string{0: "there is no such key"}
	fresh := func(after string) {
		t.Helper()
		epoch, err := a.Epoch(ctx, "k")
		must(t, err)
		if before, again := had[epoch]; again {
			t.Errorf("epoch %d after %s, as when %s", epoch, after, before)
		}
		had[epoch] = after
		for _, s := range []EpochStore{b, a} {
			same, err := s.Epoch(ctx, "k")
			must(t, err)
			if same != epoch {
				t.Errorf("epoch %d, then %d, without a change", epoch, same)
			}
		}
	}
	absent := func() {
		t.Helper()
		for _, name := range []string{"k", "", "\x00", "\xff"} {
			if epoch, err := a.Epoch(ctx, name); err != nil || epoch != 0 {
				t.Errorf("epoch %d of %q, which is not there (%v)", epoch, name, err)
			}
		}
	}
	absent()
	must(t, b.Insert(ctx, key("other", "cc")))
	must(t, b.Insert(ctx, key("k", "aa")))
	fresh("it was created")
	must(t, b.Append(ctx, "k", version("bb", 1)))
	fresh("it was rolled")
	must(t, b.Amend(ctx, key("k", "aa").Metadata))
	fresh("it was amended")
	must(t, b.Shelve(ctx, "k"))
	absent()
	must(t, b.Unshelve(ctx, "k", "aa"))
	fresh("it was undeleted")
	_, err := b.Remove(ctx, "k")
	must(t, err)
	absent()
	must(t, b.Insert(ctx, key("k", "dd")))
	fresh("it was made anew")
}
