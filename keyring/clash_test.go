package keyring

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"testing"
	"time"

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
		s := newShadowRing(t, c.here, "present", c.spelt, false)
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
	conflict := newShadowRing(t, migrated, "present", "payroll", false)
	conflict.past.list[0].TakenOver, conflict.past.list[0].Rolled = false, 2
	conflict.origins.forget()
	if err := conflict.CheckNames(t.Context()); err != nil {
		t.Errorf("in conflict with its source: %v", err)
	}
	// Another key here has a name that the source finds as a spelling of its key.
	s := newShadowRing(t, migrated, "present", "Payroll", false)
	if _, err := s.primary.Provider.Create(t.Context(), provider.Spec{Name: "PAYROLL", Cipher: claviger.DefaultCipher,
		BitLength: 128}); err != nil {
		t.Fatal(err)
	}
	if err := s.CheckNames(t.Context()); err == nil || !strings.Contains(err.Error(), "PAYROLL: at the source") {
		t.Errorf("a key of another spelling: %v", err)
	}
	// If the source does not answer, it is not known whether names clash.
	s = newShadowRing(t, before, "silent", "payroll", false)
	if err := s.CheckNames(t.Context()); err == nil || !strings.Contains(err.Error(), "is not known") {
		t.Errorf("a silent source: %v", err)
	}
}

// TestSourceRemovedTooEarly: CheckMigrations names a source that is no longer configured although its migration is not
// finished.
func TestSourceRemovedTooEarly(t *testing.T) {
	for here, named := range map[string]bool{migrated: true, inJournal: true, ended: false} {
		s := newShadowRing(t, here, "gone", "payroll", false)
		if err := s.CheckMigrations(t.Context()); named != (err != nil) || named && !strings.Contains(err.Error(),
			"the migration from "+farURI+" is not finished") {
			t.Errorf("%s: %v", here, err)
		}
	}
	if err := newShadowRing(t, migrated, "present", "payroll", false).CheckMigrations(t.Context()); err != nil {
		t.Error(err)
	}
}

// backwards is a source that lists its keys in the reverse order.
type backwards struct{ *farKMS }

func (b backwards) Keys(ctx context.Context) ([]string, error) {
	names, err := b.farKMS.Keys(ctx)
	slices.Sort(names)
	slices.Reverse(names)
	return names, err
}

// TestNamesClashOnce: each key here that clashes is named once, in order, and is logged once. A key of another spelling
// counts only if the source answers to that spelling.
func TestNamesClashOnce(t *testing.T) {
	l, far := withSource(t, func(c *Config) {
		far, _ := c.Sources[0].Provider.(*farKMS)
		c.Sources[0].Provider = backwards{far}
	}, "b", "a", "A")
	for _, name := range []string{"b", "a", "A", "B"} {
		create(t, l.primary.Provider, name)
	}
	var logged strings.Builder
	l.log = slog.New(slog.NewTextHandler(&logged, nil))
	for range 2 {
		l.clashes.until = time.Time{}
		err := l.CheckNames(t.Context())
		if err == nil || !strings.Contains(err.Error(), "A, a, b: at the source") {
			t.Fatalf("clashes: %v", err)
		}
	}
	if n := strings.Count(logged.String(), "level=WARN"); n != 1 {
		t.Errorf("logged %d times: %s", n, logged.String())
	}
	logged.Reset()
	calls := 0
	far.setFail(func(context.Context) error {
		if calls++; calls > 1 { // the list of keys is answered
			return claviger.E("far.call", claviger.Unavailable, "", errInjected)
		}
		return nil
	})
	l.clashes.until = time.Time{}
	if err := l.CheckNames(t.Context()); err == nil || !strings.Contains(err.Error(), errInjected.Error()) {
		t.Errorf("a source that does not answer to another spelling: %v", err)
	}
	if logged.Len() > 0 {
		t.Errorf("no clash was found, and logged: %s", logged.String())
	}
}

// TestNamesClashNow: a key that was migrated after the last reading of the journal does not clash.
func TestNamesClashNow(t *testing.T) {
	s := newShadowRing(t, migrated, "present", "payroll", false)
	list := s.past.list
	s.past.list = nil
	s.origins.forget()
	if err := s.CheckNames(t.Context()); !errors.As(err, new(*clash)) {
		t.Fatalf("not in the journal: %v", err)
	}
	s.past.list = list
	s.clashes.until = time.Time{}
	if err := s.CheckNames(t.Context()); err != nil {
		t.Errorf("in the journal now: %v", err)
	}
}

// TestSourcesTakenOutTooEarly: the sources are named in order, each once.
func TestSourcesTakenOutTooEarly(t *testing.T) {
	s := newShadowRing(t, never, "gone", "payroll", false)
	var want []string
	for i := range 10 {
		uri := fmt.Sprintf("kms://http@host%d:9600/kms", i)
		want = append(want, uri)
		for _, key := range []string{"a", "b"} {
			s.past.list = append(s.past.list, Origin{Key: fmt.Sprint(key, i), Source: uri, TakenOver: true})
		}
	}
	s.origins.forget()
	if err := s.CheckMigrations(t.Context()); err == nil || !strings.Contains(err.Error(),
		"from "+strings.Join(want, ", ")+" is") {
		t.Error(err)
	}
}
