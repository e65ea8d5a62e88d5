package keyring

import (
	"log/slog"
	"strings"
	"testing"

	"claviger"
	"claviger/provider"
)

// TestNamesClash: CheckNames names the keys here that have the name of a source's key but were not migrated from it.
func TestNamesClash(t *testing.T) {
	for _, c := range []struct {
		here, spelt string
		clashes     bool
	}{
		{never, "payroll", false},
		{migrated, "payroll", false},
		{migrated, "Payroll", false},
		{ended, "payroll", false},
		{purged, "payroll", false},
		{before, "payroll", true},
		{before, "Payroll", true},
	} {
		s := newShadowLab(t, c.here, "present", c.spelt, false)
		var logged strings.Builder
		s.log = slog.New(slog.NewTextHandler(&logged, nil))
		for range 2 { // the second time it is cached
			err := s.CheckNames(t.Context())
			if (err != nil) != c.clashes {
				t.Errorf("%s, %s: %v", c.here, c.spelt, err)
			}
			if err != nil && (!strings.Contains(err.Error(), "payroll: at the source "+farURI) ||
				strings.Count(logged.String(), "payroll") != 1) {
				t.Errorf("%s, %s: %v; logged %q", c.here, c.spelt, err, logged.String())
			}
		}
	}
	// A key in conflict, which its source has rolled since, was migrated too.
	conflict := newShadowLab(t, migrated, "present", "payroll", false)
	conflict.past.list[0].TakenOver, conflict.past.list[0].Rolled = false, 2
	conflict.origins.forget()
	if err := conflict.CheckNames(t.Context()); err != nil {
		t.Errorf("in conflict with its source: %v", err)
	}
	// Another key here has a name that the source finds as a spelling of its key.
	s := newShadowLab(t, migrated, "present", "Payroll", false)
	if _, err := s.primary.Provider.Create(t.Context(), provider.Spec{Name: "PAYROLL", Cipher: claviger.DefaultCipher,
		BitLength: 128}); err != nil {
		t.Fatal(err)
	}
	if err := s.CheckNames(t.Context()); err == nil || !strings.Contains(err.Error(), "PAYROLL: at the source") {
		t.Errorf("a key of another spelling: %v", err)
	}
	// If the source does not answer, it is not known whether names clash.
	s = newShadowLab(t, before, "silent", "payroll", false)
	if err := s.CheckNames(t.Context()); err == nil || !strings.Contains(err.Error(), "is not known") {
		t.Errorf("a silent source: %v", err)
	}
}

// TestSourceRemovedTooEarly: CheckMigrations names a source that is no longer configured although its migration is not
// finished.
func TestSourceRemovedTooEarly(t *testing.T) {
	for here, named := range map[string]bool{migrated: true, inJournal: true, ended: false} {
		s := newShadowLab(t, here, "gone", "payroll", false)
		if err := s.CheckMigrations(t.Context()); named != (err != nil) || named && !strings.Contains(err.Error(),
			"the migration from "+farURI+" is not finished") {
			t.Errorf("%s: %v", here, err)
		}
	}
	if err := newShadowLab(t, migrated, "present", "payroll", false).CheckMigrations(t.Context()); err != nil {
		t.Error(err)
	}
}
