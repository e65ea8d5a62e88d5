// Package pgtest runs a real PostgreSQL server for tests, on a free port of loopback:
// one for all tests of a binary (Main and Database), or one for a single test, which
// may stop, kill, pause and restart it (Start).
//
// It needs Debian's package postgresql, or PostgreSQL's programs in PATH. If they are
// missing, the test is skipped, or fails if CLAVIGER_REQUIRE_POSTGRES is 1. `make test`
// sets that, and `make setup` installs the package.
//
// A server ends with its test binary, even if the binary is killed. PostgreSQL refuses
// to run as root; for root it runs as user postgres, or else as nobody.
package pgtest
