// Package archtest tests the structure of the project: which package may import which,
// which packages may write HTTP statuses, and which dependencies there are and why.
// docs/ARCHITECTURE.md states the rules.
package archtest
