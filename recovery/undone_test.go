package recovery

import (
	"fmt"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"claviger"
	"claviger/metastore"
	"claviger/metastore/sqlite"
)

// TestUndoes checks the list of changes that a restore would undo: keys that were deleted, brought back, purged or made
// again since the backup, and changed metadata. A key that is newer than the current store is not in the list.
func TestUndoes(t *testing.T) {
	ctx := t.Context()
	var backup, current *sqlite.Store
	for _, s := range []**sqlite.Store{&backup, &current} {
		var err error
		if *s, err = sqlite.Open(ctx, filepath.Join(t.TempDir(), "store.db")); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = (*s).Close() })
	}
	check := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	object := 0
	insert := func(name string, attributes map[string]string, number int, stores ...*sqlite.Store) {
		t.Helper()
		object++
		v := metastore.Version{ID: fmt.Sprint(number), Object: fmt.Sprintf("%016x", object), Created: time.Now(),
			Check: []byte{1, 2, 3, 4, 5, 6, 7, 8}}
		for _, s := range stores {
			m := claviger.Metadata{Name: name, Cipher: claviger.DefaultCipher, BitLength: 128, Created: time.Now(),
				Attributes: attributes, Versions: number + 1}
			check(s.Insert(ctx, metastore.Key{Metadata: m, List: []metastore.Version{v}}))
		}
	}
	both := []*sqlite.Store{backup, current}
	for _, name := range []string{"same", "deleted", "destroyed", "back", "again", "purged"} {
		insert(name, nil, 0, both...)
	}
	insert("newer", nil, 0, backup)
	check(current.SoftDelete(ctx, "deleted"))
	_, err := current.Remove(ctx, "destroyed")
	check(err)
	check(current.Drop(ctx, "destroyed"))
	check(backup.SoftDelete(ctx, "back"))
	check(current.SoftDelete(ctx, "again"))
	insert("again", map[string]string{"key.acl.name": "closed"}, 1, current)
	for _, s := range both {
		check(s.SoftDelete(ctx, "purged"))
	}
	_, err = current.Discard(ctx, "purged", "0")
	check(err)

	u, err := undoes(ctx, backup, current)
	check(err)
	if want := []string{"again@0", "deleted@0", "destroyed@0", "purged@0"}; !slices.Equal(u.revived, want) {
		t.Errorf("revived: %q, want %q", u.revived, want)
	}
	if want := []string{"back@0"}; !slices.Equal(u.deleted, want) {
		t.Errorf("deleted: %q, want %q", u.deleted, want)
	}
	changed := []string{`again: attribute key.acl.name is "closed" now, and unset in the backup`}
	if !slices.Equal(u.changed, changed) {
		t.Errorf("changed: %q, want %q", u.changed, changed)
	}
	if u, err := undoes(ctx, current, current); err != nil || len(u.lines()) != 0 {
		t.Errorf("a store compared with itself undoes %q, %v", u.lines(), err)
	}
}
