// Package drills plays pages for operators on servers under load: rotate a PIN, a certificate and the secret of
// cookies, add and remove a node, restore the HSM from its copy. The log of a test (go test -v) tells each step.
// docs/drills.md names the tests of other drills.
package drills
