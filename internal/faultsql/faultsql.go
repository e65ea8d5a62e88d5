// Package faultsql wraps a driver of database/sql for tests. Each call that reaches the driver can be made to fail,
// also a call that the driver itself does not fail on demand: a commit, or the next row of a result.
package faultsql

import (
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"iter"
	"sync"
)

// ErrInjected is the error of a call that was made to fail.
var ErrInjected = errors.New("injected fault")

// The kinds of calls.
const (
	Connect  = "connect"
	Prepare  = "prepare"
	Exec     = "exec"
	Query    = "query"
	Begin    = "begin"
	Commit   = "commit"
	Next     = "next"            // the next row of a result, or its end
	Scan     = "scan"            // the row gets values that Scan refuses, unless it scans into an interface
	Affected = "affected rows"   // Result.RowsAffected
	InsertID = "inserted row id" // Result.LastInsertId
	Close    = "close"           // of a connection, which is closed in spite of the error
)

// Fault is a call that was made to fail. The zero value means no fault.
type Fault struct {
	Number    int // of the call, from 1
	Call      string
	Statement string // the SQL statement, if the call has one
}

func (f Fault) String() string { return fmt.Sprintf("call %d (%s %s)", f.Number, f.Call, f.Statement) }

// Driver wraps another driver, which must implement the interfaces with a context. Without faults it only passes calls
// on.
type Driver struct {
	wrapped driver.Driver

	mu        sync.Mutex
	calls     int               // since the last start
	fail      int               // the number of the call that fails; 0: none
	hook      func(Fault) error // called before that call; its error is the result
	statement string            // the statement that fails once, see FailStatement
	fault     Fault             // the call that failed
	conns     int               // connections that are not closed
	open      int               // results and statements that are not closed
}

var _ driver.Driver = (*Driver)(nil)

// Register wraps the driver that database/sql knows as wrapped, and registers the wrapper as name.
func Register(name, wrapped string) *Driver {
	db, err := sql.Open(wrapped, "")
	if err != nil {
		panic(err) // the test imports no such driver
	}
	d := &Driver{wrapped: db.Driver()}
	_ = db.Close() // it has no connection
	sql.Register(name, d)
	return d
}

// EachFails calls do several times. In the first round the first call to the driver fails, in the second round the
// second call, and so on. In the last round no call fails, because do makes no more calls; the fault of that round is
// the zero value. EachFails yields the fault of each round and the error of do. No calls fail while the caller handles
// them.
func (d *Driver) EachFails(do func() error) iter.Seq2[Fault, error] {
	return d.EachFailsWith(ErrInjected, do)
}

// EachFailsWith is EachFails with an error that wraps cause instead of ErrInjected.
func (d *Driver) EachFailsWith(cause error, do func() error) iter.Seq2[Fault, error] {
	return d.each(func(f Fault) error { return fmt.Errorf("%w: %s", cause, f) }, do)
}

// BeforeEach is EachFails, but calls hook before the call, and the call does not fail.
func (d *Driver) BeforeEach(hook func(), do func() error) iter.Seq2[Fault, error] {
	return d.each(func(Fault) error { hook(); return nil }, do)
}

// FailStatement calls do, and makes the first call with that statement fail.
func (d *Driver) FailStatement(statement string, do func() error) error {
	d.mu.Lock()
	d.statement = statement
	d.mu.Unlock()
	defer func() {
		d.mu.Lock()
		d.statement = ""
		d.mu.Unlock()
	}()
	return do()
}

// each calls do in rounds. Before the n-th call of round n it calls before, whose error is the result of the call.
func (d *Driver) each(before func(Fault) error, do func() error) iter.Seq2[Fault, error] {
	return func(yield func(Fault, error) bool) {
		for n := 1; ; n++ {
			d.start(n, before)
			err := do()
			call := d.stop()
			if !yield(call, err) || call.Number == 0 {
				return
			}
		}
	}
}

func (d *Driver) start(fail int, hook func(Fault) error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.calls, d.fail, d.hook, d.fault = 0, fail, hook, Fault{}
}

func (d *Driver) stop() Fault {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.fail = 0
	return d.fault
}

// Unclosed returns the number of connections, and of results and prepared statements, that are not closed.
func (d *Driver) Unclosed() (connections, results int) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.conns, d.open
}

func (d *Driver) count(connections, results int) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.conns += connections
	d.open += results
}

// before counts a call, and returns its error if the call must fail.
func (d *Driver) before(call, statement string) error {
	d.mu.Lock()
	if statement != "" && statement == d.statement {
		d.statement = ""
		d.mu.Unlock()
		return fmt.Errorf("%w: %s %s", ErrInjected, call, statement)
	}
	if d.fail > 0 {
		d.calls++
	}
	if d.fail == 0 || d.calls != d.fail {
		d.mu.Unlock()
		return nil
	}
	fault, hook := Fault{Number: d.calls, Call: call, Statement: statement}, d.hook
	d.fault = fault
	d.mu.Unlock()
	return hook(fault) // without the lock, because it may call the driver
}
