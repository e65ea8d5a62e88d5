package keytrustee

import (
	"strconv"
	"testing"
	"time"

	"claviger/trustee"
)

// TestOrderOfChanges: of one key's changes the one that was begun last is remembered,
// whichever was acknowledged last and whatever the clock said; of 16 keys, those that were
// begun last.
func TestOrderOfChanges(t *testing.T) {
	m := &memory{folder: &trustee.Folder{Path: t.TempDir()}}
	now := time.Date(2026, 11, 29, 3, 0, 0, 0, time.UTC)
	put := func(n uint64, key, version string, at time.Time) {
		t.Helper()
		if _, err := m.remember(newest{N: n, Key: key, Version: version, At: at}); err != nil {
			t.Fatal(err)
		}
	}
	first, second := m.begin(), m.begin()
	put(second, "k", "k@2", now.Add(-time.Minute))
	put(first, "k", "k@1", now)
	if m.last.Version != "k@2" || len(m.last.Before) != 0 {
		t.Errorf("%+v", m.last)
	}
	slow := m.begin()
	for i := range 20 {
		name := strconv.Itoa(i)
		put(m.begin(), name, name+"@1", now.Add(-time.Duration(i)*time.Second))
	}
	put(slow, "slow", "slow@1", now)
	if m.last.Version != "19@1" || len(m.last.Before) != others || m.last.Before[others-1].Version != "4@1" {
		t.Errorf("%+v", m.last)
	}
	again := &memory{folder: m.folder}
	if n := again.begin(); n != m.n+1 {
		t.Errorf("after a restart a change has number %d, want %d", n, m.n+1)
	}
}
