// Package archtest holds tests of the project's own shape: who may import
// whom, which packages may speak HTTP statuses, which dependencies there are
// and why. docs/ARCHITECTURE.md states the rules; the tests here keep them true.
package archtest
