// Command mutate breaks the code on purpose and checks that a test fails. A
// change that no test notices is a survivor: it needs a test, or a reason in
// scripts/mutate-survivors.txt.
//
// It makes two kinds of changes. Changes by rule (rules.go) are made all over a
// package: a condition is negated, a call is left out, an error is dropped.
// Named changes (named.go, scripts/mutations.txt) each undo one property that
// the project promises, and name the test that must fail.
//
// All changes by rule of a package are compiled into one test binary (scheme.go),
// each behind a condition that an environment variable makes true. The binary
// first runs each test once and records which changes the test reaches; then it
// tries each change with the tests that reach it, the fastest first (room.go).
// So a package with 200 changes takes a minute, and not an hour.
//
// The tree is never written to: changed files lie in a temporary folder, and the
// compiler takes them by -overlay. Results are kept in the cache folder, so an
// interrupted run can be continued.
//
// Two tools for Go were considered. go-gremlins/gremlins copies the module for
// each worker, leaves out no statements (a missing Sync is the change that
// matters most here), and names a survivor by its line number, so a list of
// reasons is wrong after the next edit. avito-tech/go-mutesting writes the
// changed file over the original.
package main
