// Package faults provokes every fault of docs/faults with the real program. A golden file has the message that
// a user sees. The test checks that a page shows the message.
package faults
