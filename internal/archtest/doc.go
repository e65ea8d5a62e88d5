// Package archtest tests the structure of the project: which package may import which,
// which packages may write HTTP statuses, and which dependencies there are and why.
// docs/ARCHITECTURE.md states the rules, and docs/architecture lists rooms and dependencies.
// A room is a package, by its path below the module.
package archtest
