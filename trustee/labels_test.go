package trustee

import "testing"

// TestKeyOfLabel: the kind and the key of each label of a deposit.
func TestKeyOfLabel(t *testing.T) {
	for label, want := range map[string][2]string{
		"key/zone1":         {LabelKey, "zone1"},
		"key/a/b":           {LabelKey, "a/b"},
		"key/":              {},
		"version/zone1@0":   {LabelVersion, "zone1"},
		"version/zone1":     {},
		"version/":          {},
		"deleted/zone1/id":  {LabelDeleted, "zone1"},
		"deleted/a/b/id":    {LabelDeleted, "a/b"},
		"deleted/zone1":     {},
		"deleted//id":       {},
		"another/zone1@0/x": {},
		"":                  {},
	} {
		if kind, key := KeyOfLabel(label); [2]string{kind, key} != want {
			t.Errorf("%q: %q, %q; want %q", label, kind, key, want)
		}
	}
}
