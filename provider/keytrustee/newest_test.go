package keytrustee

import (
	"context"
	"errors"
	"strconv"
	"testing"
	"time"

	"claviger"
	"claviger/trustee"
)

// TestOrderOfChanges checks that the change of a key that began last is remembered, whatever the order of the
// acknowledgements and the clock. Of many keys, the 16 with the latest changes are remembered.
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
	if m.last.Version != "19@1" || len(m.last.Before) != maxOthers || m.last.Before[maxOthers-1].Version != "4@1" {
		t.Errorf("%+v", m.last)
	}
	again := &memory{folder: m.folder}
	if n := again.begin(); n != m.n+1 {
		t.Errorf("after a restart a change has number %d, want %d", n, m.n+1)
	}
}

// listBox is a Box that implements List only, for live deposits.
type listBox struct {
	trustee.Box
	list map[string]trustee.Deposit // by label
	// during, if not nil, is called by the next List.
	during func() error
}

func (b *listBox) List(_ context.Context, prefix string, _ bool, after string, _ int) ([]trustee.Deposit, error) {
	if during := b.during; during != nil {
		b.during = nil
		if err := during(); err != nil {
			return nil, err
		}
	}
	if d, ok := b.list[prefix]; ok && after == "" {
		return []trustee.Deposit{d}, nil
	}
	return nil, nil
}

// TestLossIsNotForgotten checks that a loss that Check found stays recorded if a change of another key finds no loss,
// and if the Key Trustee Server does not answer the next check.
func TestLossIsNotForgotten(t *testing.T) {
	now := time.Now()
	box := &listBox{list: map[string]trustee.Deposit{
		"key/whole": {UUID: "w", Label: "key/whole", Created: now},
		"key/lost":  {UUID: "older", Label: "key/lost", Created: now.Add(-24 * time.Hour)},
	}}
	whole := newest{N: 2, Key: "whole", Label: "key/whole", UUID: "w", At: now}
	whole.Before = []newest{{N: 1, Key: "lost", Label: "key/lost", UUID: "l", At: now}}
	p := New(Config{Box: box, memory: &memory{folder: &trustee.Folder{Path: t.TempDir()}, last: whole, read: true}})
	defer p.Close()
	wantLoss := func(when string, err error) {
		t.Helper()
		if err == nil || claviger.Is(err, claviger.Unavailable) || p.cfg.memory.loss == nil {
			t.Errorf("%s: %v, recorded: %v", when, err, p.cfg.memory.loss)
		}
	}
	var found error
	box.during = func() error { found = p.checkRegularly(t.Context()); return nil }
	_ = p.checkChange(t.Context(), "test", "whole") // may succeed or fail: it runs at the same time as the check
	wantLoss("while a key is changed", found)
	if err := p.checkChange(t.Context(), "test", "whole"); !claviger.Is(err, claviger.Unavailable) {
		t.Errorf("the next change: %v", err)
	}
	p.cfg.memory.checked = time.Time{}
	box.during = func() error { return claviger.E("test", claviger.Unavailable, "", errors.New("no route to host")) }
	wantLoss("without an answer", p.checkRegularly(t.Context()))
	box.list["key/lost"] = trustee.Deposit{UUID: "l", Label: "key/lost", Created: now}
	p.cfg.memory.checked = time.Time{}
	if err := errors.Join(p.checkRegularly(t.Context()), p.checkChange(t.Context(), "test", "whole")); err != nil {
		t.Errorf("after a newer backup was restored: %v", err)
	}
}
