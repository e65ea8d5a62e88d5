// Package replica makes a Key Trustee Server one of two servers with equal records: the active server,
// which accepts changes, and the passive server, which answers reads.
//
// The passive server commits a change first, then the active server commits it, and then the client
// gets its answer. Only the guard, which a store calls before each commit, ensures this order.
// docs/trustee.md describes the operation of two servers, and docs/adr/0002-trustee-replication.md says
// why PostgreSQL's replication does not replace this package.
package replica
