package sqlite

import (
	"context"
	"errors"
	"iter"
	"strings"
	"testing"

	"claviger/internal/faultsql"
	"claviger/metastore/storetest"
	"claviger/sqlitedb"
)

var faults = faultsql.Register("sqlite with faults", "sqlite")

// injectFaults makes the stores that this test opens use the driver with faults.
func injectFaults(t *testing.T) {
	t.Helper()
	before := sqlitedb.Driver
	sqlitedb.Driver = "sqlite with faults"
	t.Cleanup(func() { sqlitedb.Driver = before })
}

// TestEachCallFails makes each call of a method to SQLite fail, one after the other. The method must return an error,
// change nothing, and close its results and statements.
func TestEachCallFails(t *testing.T) {
	injectFaults(t)
	storetest.EachFails(t, newStoreOnly(t), eachFault(t), append(storetest.Operations(), resetFutureTimes))
	storetest.FillFails(t, newStoreOnly(t), newStoreOnly(t), eachFault(t))
}

func newStoreOnly(t *testing.T) *Store {
	t.Helper()
	s, _ := newStore(t)
	return s
}

// eachFault returns the faults of a test. After each round the same number of results must be open.
func eachFault(t *testing.T) storetest.Faults {
	return func(do func() error) iter.Seq2[storetest.Fault, error] {
		_, open := faults.Unclosed()
		return func(yield func(storetest.Fault, error) bool) {
			for fault, err := range faults.EachFails(do) {
				if _, n := faults.Unclosed(); n != open {
					t.Fatalf("%s leaves %d results or statements open", fault, n-open)
				}
				var f storetest.Fault
				if fault.Number > 0 {
					f = storetest.Fault{Call: fault.String(), Values: fault.Call == faultsql.Scan}
				}
				if f.Call != "" && !f.Values && !errors.Is(err, faultsql.ErrInjected) ||
					f.Values && err != nil && !isScanError(err) {
					t.Fatalf("%s: the error is %v", fault, err)
				}
				if !yield(f, err) {
					return
				}
			}
		}
	}
}

// isScanError reports whether Scan has refused a row, or Fill has read a wrong setting in a new store.
func isScanError(err error) bool {
	return strings.Contains(err.Error(), "Scan error") || strings.HasSuffix(err.Error(), "is not empty")
}

// resetFutureTimes calls the method that only this store has.
var resetFutureTimes = storetest.Operation{Name: "ResetFutureTimes",
	Do: func(ctx context.Context, s storetest.Full) error {
		_, err := s.(*Store).ResetFutureTimes(ctx)
		return err
	}}
