package census_test

import (
	"testing"

	"claviger/internal/imagetest"
)

// FuzzCount: no image makes the census panic or count more EDEKs than its records can hold. With several goroutines the
// result is the same.
func FuzzCount(f *testing.F) {
	for _, c := range traps {
		tree := new(imagetest.Tree)
		c.make(tree)
		image, _ := tree.Bytes()
		f.Add(image)
	}
	f.Fuzz(func(t *testing.T, image []byte) {
		one, err := countBytes(image, 1)
		three, err3 := countBytes(image, 3)
		if (err == nil) != (err3 == nil) {
			t.Fatalf("%v, with more goroutines %v", err, err3)
		}
		if err != nil {
			return
		}
		r := one.Report()
		if r.Complete && summary(r) != summary(three.Report()) {
			t.Errorf("%s\nwith more goroutines\n%s", summary(r), summary(three.Report()))
		}
		for _, v := range r.Versions {
			if v.Live+v.SnapshotOnly+v.Unreachable > uint64(len(image)) {
				t.Errorf("%d bytes, and %+v", len(image), v)
			}
			if err := one.List(t.Context(), v.Version, func(string) error { return nil }); err != nil {
				t.Error(err)
			}
		}
	})
}
