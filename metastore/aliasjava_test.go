package metastore_test

import (
	"context"
	"testing"

	"claviger/metastore"
)

// settings implements metastore.Settings.
type settings map[string]string

func (s settings) Setting(_ context.Context, name string) (string, bool, error) {
	v, ok := s[name]
	return v, ok, nil
}

func (s settings) SetSetting(_ context.Context, name, value string) error {
	s[name] = value
	return nil
}

// TestAliasAsJava checks that Alias finds a key only by the spellings that its source accepts. Some of the aliases are
// from an older release, which did not fold names like Java.
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
