// Package faults provokes every fault that docs/faults.md tells of, with the
// real program, and holds the message that a user sees in a golden file. The
// page shows those messages, and this test that it does.
package faults
