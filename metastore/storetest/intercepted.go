package storetest

import (
	"context"
	"time"

	"claviger/metastore"
)

// Intercepted is a store for tests that count calls, or make calls fail. A method of Intercepted first calls Before
// with its name. If Before returns an error, the method returns this error and does not call the store; otherwise it
// calls the store's method. Methods that Intercepted does not define reach the store directly.
type Intercepted struct {
	metastore.Store
	Before func(ctx context.Context, method string) error
}

// Setting implements metastore.Settings.
func (s *Intercepted) Setting(ctx context.Context, name string) (string, bool, error) {
	if err := s.Before(ctx, "Setting"); err != nil {
		return "", false, err
	}
	return s.Store.Setting(ctx, name)
}

// SetSetting implements metastore.Settings.
func (s *Intercepted) SetSetting(ctx context.Context, name, value string) error {
	if err := s.Before(ctx, "SetSetting"); err != nil {
		return err
	}
	return s.Store.SetSetting(ctx, name, value)
}

// Names implements metastore.Keys.
func (s *Intercepted) Names(ctx context.Context) ([]string, error) {
	if err := s.Before(ctx, "Names"); err != nil {
		return nil, err
	}
	return s.Store.Names(ctx)
}

// Page implements metastore.Keys.
func (s *Intercepted) Page(ctx context.Context, from string, n int) (names []string, next string, err error) {
	if err := s.Before(ctx, "Page"); err != nil {
		return nil, "", err
	}
	return s.Store.Page(ctx, from, n)
}

// Get implements metastore.Keys.
func (s *Intercepted) Get(ctx context.Context, names ...string) ([]*metastore.Key, error) {
	if err := s.Before(ctx, "Get"); err != nil {
		return nil, err
	}
	return s.Store.Get(ctx, names...)
}

// NextNumber implements metastore.Numbers.
func (s *Intercepted) NextNumber(ctx context.Context, key string) (int, error) {
	if err := s.Before(ctx, "NextNumber"); err != nil {
		return 0, err
	}
	return s.Store.NextNumber(ctx, key)
}

// SkipNumbers implements metastore.Numbers.
func (s *Intercepted) SkipNumbers(ctx context.Context, key string, next int) error {
	if err := s.Before(ctx, "SkipNumbers"); err != nil {
		return err
	}
	return s.Store.SkipNumbers(ctx, key, next)
}

// Numbered implements metastore.Numbers.
func (s *Intercepted) Numbered(ctx context.Context, key string, n int) (bool, error) {
	if err := s.Before(ctx, "Numbered"); err != nil {
		return false, err
	}
	return s.Store.Numbered(ctx, key, n)
}

// LastUses implements metastore.LastUses.
func (s *Intercepted) LastUses(ctx context.Context, versions ...string) ([]time.Time, time.Time, error) {
	if err := s.Before(ctx, "LastUses"); err != nil {
		return nil, time.Time{}, err
	}
	return s.Store.LastUses(ctx, versions...)
}

// NeverUsed implements metastore.LastUses.
func (s *Intercepted) NeverUsed(ctx context.Context, version string) (bool, error) {
	if err := s.Before(ctx, "NeverUsed"); err != nil {
		return false, err
	}
	return s.Store.NeverUsed(ctx, version)
}

// RecordUses implements metastore.LastUses.
func (s *Intercepted) RecordUses(ctx context.Context, uses []metastore.LastUse) error {
	if err := s.Before(ctx, "RecordUses"); err != nil {
		return err
	}
	return s.Store.RecordUses(ctx, uses)
}

// Uses implements metastore.Usage.
func (s *Intercepted) Uses(ctx context.Context) ([]metastore.Use, error) {
	if err := s.Before(ctx, "Uses"); err != nil {
		return nil, err
	}
	return s.Store.Uses(ctx)
}

// Clocks implements metastore.Clock.
func (s *Intercepted) Clocks(ctx context.Context) (metastore.Clocks, error) {
	if err := s.Before(ctx, "Clocks"); err != nil {
		return metastore.Clocks{}, err
	}
	return s.Store.Clocks(ctx)
}

// Lock implements metastore.Locks.
func (s *Intercepted) Lock(ctx context.Context, name string) (func(), error) {
	if err := s.Before(ctx, "Lock"); err != nil {
		return nil, err
	}
	return s.Store.Lock(ctx, name)
}

// TryLock implements metastore.Locks.
func (s *Intercepted) TryLock(ctx context.Context, name string) (func(), bool, error) {
	if err := s.Before(ctx, "TryLock"); err != nil {
		return nil, false, err
	}
	return s.Store.TryLock(ctx, name)
}
