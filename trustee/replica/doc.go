// Package replica makes a Key Trustee Server one of two that hold the same: the active server,
// which takes changes, and the passive server, which answers reads.
//
// The passive server commits a change first, then the active server commits it, and then the
// client gets its answer. The guard that a store asks before each commit is the one place where
// this order is kept. docs/trustee.md describes the operation of two servers, and
// docs/adr/0002-trustee-replication.md says why PostgreSQL's replication does not replace this
// package.
package replica
