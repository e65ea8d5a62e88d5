// Package pgtest runs a real PostgreSQL server for tests, on a free port of
// loopback: one for a test binary (Main and Database), or one of a test's own
// that it may stop, kill, hold up and start again (Start).
//
// It needs Debian's package postgresql, or PostgreSQL's programs in PATH. Where
// they are missing the test is skipped, or fails if CLAVIGER_REQUIRE_POSTGRES is
// 1; `make test` sets it and `make setup` installs the package.
//
// A server ends with its test binary, even if that is killed. PostgreSQL refuses
// to run as root: there it runs as user postgres, else nobody.
package pgtest
