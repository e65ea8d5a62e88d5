package sqlite_test

import (
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"claviger"
	"claviger/metastore"
	"claviger/metastore/sqlite"
)

// TestClockBehind checks that a clock that is behind the newest time in the store counts as wrong, and that a key which
// is deleted then counts as deleted at that time.
func TestClockBehind(t *testing.T) {
	const month = 30 * 24 * time.Hour
	to := time.Now().Add(month).Truncate(time.Millisecond)
	writes := map[string]func(s *sqlite.Store) error{
		"a use": func(s *sqlite.Store) error {
			return s.RecordUses(t.Context(), []metastore.LastUse{{Version: "other@0", Last: to}})
		},
		"a use of a source": func(s *sqlite.Store) error {
			use := metastore.Use{Source: "kms://x", Version: "other@0", Op: "decrypt", Count: 1, Last: to}
			return s.AddUse(t.Context(), []metastore.Use{use})
		},
	}
	for what, write := range writes {
		s, err := sqlite.Open(t.Context(), filepath.Join(t.TempDir(), "meta.db"))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = s.Close() })
		k := metastore.Key{Metadata: claviger.Metadata{Name: "k", Cipher: claviger.DefaultCipher, BitLength: 128,
			Created: time.UnixMilli(1)},
			List: []metastore.Version{{ID: "0", Object: "00", Created: time.UnixMilli(1), Check: []byte{1}}}}
		if err := s.Insert(t.Context(), k); err != nil {
			t.Fatal(err)
		}
		if err := write(s); err != nil {
			t.Fatal(err)
		}
		c, err := s.Clocks(t.Context())
		if err != nil || (c.Ahead+month).Abs() > 10*time.Second || c.Check() == nil || !c.Store.Equal(to) {
			t.Errorf("%s: %+v, %v: %v", what, c, err, c.Check())
		}
		if err := s.SoftDelete(t.Context(), "k"); err != nil {
			t.Fatal(err)
		}
		if list, err := s.DeletedKeys(t.Context()); err != nil || len(list) != 1 || !list[0].Since.Equal(to) {
			t.Errorf("%s: deleted %+v, want %v (%v)", what, list, to, err)
		}
		// If the clock is right now, it was ahead before. ResetFutureTimes then corrects the times that it wrote.
		since := strconv.FormatInt(to.UnixMilli(), 10)
		if err := s.SetSetting(t.Context(), metastore.SettingLastUsesSince, since); err != nil {
			t.Fatal(err)
		}
		if n, err := s.ResetFutureTimes(t.Context()); err != nil || n != 3 {
			t.Errorf("%s: set %d times, %v; want the use, the deletion and the start of the record", what, n, err)
		}
		if c, err := s.Clocks(t.Context()); err != nil || c.Check() != nil {
			t.Errorf("%s: %v, %v", what, err, c.Check())
		}
		near := func(at time.Time) bool { return time.Since(at).Abs() < 10*time.Second }
		list, err := s.DeletedKeys(t.Context())
		_, began, lastErr := s.LastUses(t.Context(), "other@0")
		if err != nil || lastErr != nil || !near(list[0].Since) || !near(began) {
			t.Errorf("%s: deleted %+v, record since %v (%v, %v)", what, list, began, err, lastErr)
		}
	}
}
