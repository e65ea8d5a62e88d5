package metastore_test

import (
	"testing"
	"time"

	"claviger/metastore"
)

// TestIntentSame: an intent is another one if its key, operation, time or version differs.
func TestIntentSame(t *testing.T) {
	begun := time.Date(2026, 11, 30, 12, 0, 0, 0, time.UTC)
	of := func(change func(*metastore.Intent)) metastore.Intent {
		i := metastore.Intent{Key: "k", Op: "roll", Refs: []metastore.Ref{{ID: "k@1", Object: "o"}}, Begun: begun}
		change(&i)
		return i
	}
	i := of(func(*metastore.Intent) {})
	for name, c := range map[string]struct {
		j    metastore.Intent
		same bool
	}{
		"the same":            {of(func(j *metastore.Intent) { j.Begun = begun.In(time.FixedZone("", 3600)) }), true},
		"another payload":     {of(func(j *metastore.Intent) { j.Payload = []byte("{}") }), true},
		"another key":         {of(func(j *metastore.Intent) { j.Key = "l" }), false},
		"another operation":   {of(func(j *metastore.Intent) { j.Op = "delete" }), false},
		"a later time":        {of(func(j *metastore.Intent) { j.Begun = begun.Add(time.Millisecond) }), false},
		"another version":     {of(func(j *metastore.Intent) { j.Refs[0].ID = "k@2" }), false},
		"another object":      {of(func(j *metastore.Intent) { j.Refs[0].Object = "p" }), false},
		"no version":          {of(func(j *metastore.Intent) { j.Refs = nil }), false},
		"a later roll":        {of(func(j *metastore.Intent) { j.Begun, j.Refs = begun.Add(time.Hour), nil }), false},
		"the roll of another": {of(func(j *metastore.Intent) { j.Key, j.Refs = "l", nil }), false},
	} {
		if got := i.Same(c.j); got != c.same {
			t.Errorf("%s: %t", name, got)
		}
	}
}
