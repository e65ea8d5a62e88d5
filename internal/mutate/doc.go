// Command mutate breaks the code on purpose and looks whether a test fails. A
// change that no test notices is a survivor: it needs a test, or a reason in
// scripts/mutate-survivors.txt.
//
// It makes two kinds of changes. Changes by rule (rules.go) are made all over a
// package: a condition is negated, a call is left out, an error is dropped.
// Named changes (named.go, scripts/mutations.txt) each undo one property that
// the project promises, and name the test that must fail.
//
// The tree is never written to: the changed file lies in a temporary folder,
// and the compiler takes it by -overlay. Results are kept in the cache folder, so
// a run that was interrupted goes on where it ended.
//
// Two tools for Go were considered. go-gremlins/gremlins copies the module for
// each worker, leaves out no statements (a missing Sync is the change that
// matters most here), and names a survivor by its line number, so a list of
// reasons is wrong after the next edit. avito-tech/go-mutesting writes the
// changed file over the original.
package main
