package metastore_test

import (
	"context"
	"testing"

	"claviger/metastore"
)

// settings are those of a store.
type settings map[string]string

func (s settings) Setting(_ context.Context, name string) (string, bool, error) {
	v, ok := s[name]
	return v, ok, nil
}

func (s settings) SetSetting(_ context.Context, name, value string) error {
	s[name] = value
	return nil
}

// TestAliasAsJava: a key is found by the spellings that its source answers to, and by no other,
// also where the alias is from before names were folded as Java folds them.
func TestAliasAsJava(t *testing.T) {
	s := settings{"alias.οδοσ": "ΟΔΟΣ", "alias.isis": "isis", "alias.i": "\u0130"}
	if err := metastore.SetAlias(t.Context(), s, "Finance"); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{
		"finance": "Finance", "FINANCE": "Finance", "ΟΔΟΣ": "ΟΔΟΣ", "Isis": "isis", "\u0130sis": "", "\u0130SIS": "",
		"\u0130": "\u0130", "other": "",
	} {
		if here, ok, err := metastore.Alias(t.Context(), s, name); err != nil || here != want || ok != (want != "") {
			t.Errorf("alias of %+q: %+q, %t, %v; want %+q", name, here, ok, err, want)
		}
	}
}
