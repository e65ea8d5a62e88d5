package pgtest

import (
	"fmt"
	"os"
	"sync"
	"testing"
)

// shared is the server of the test binary.
var shared struct {
	sync.Mutex
	inMain bool
	server *Server
	err    error
}

// Main runs the tests of a package that uses Database, and then stops the server that
// they share:
//
//	func TestMain(m *testing.M) { os.Exit(pgtest.Main(m.Run)) }
func Main(run func() int) int {
	shared.Lock()
	shared.inMain = true
	shared.Unlock()
	code := run()
	shared.Lock()
	defer shared.Unlock()
	if shared.server != nil {
		if err := shared.server.remove(); err != nil {
			fmt.Fprintln(os.Stderr, "pgtest:", err)
			return max(code, 1)
		}
	}
	return code
}

// Database makes an empty database on the server that the tests of this binary
// share, and returns its URI for the superuser. Main must run the tests.
func Database(t testing.TB) string {
	t.Helper()
	return Shared(t).Database(t)
}

// Shared returns the server that the tests of this binary share. Do not stop it.
func Shared(t testing.TB) *Server {
	t.Helper()
	bin := programs(t)
	shared.Lock()
	defer shared.Unlock()
	if !shared.inMain {
		t.Fatal("pgtest.Main must be called by this package's TestMain: nothing would end the server")
	}
	if shared.server == nil && shared.err == nil {
		shared.server, shared.err = newServer(bin, alone)
	}
	if shared.err != nil {
		t.Fatal(shared.err)
	}
	return shared.server
}
