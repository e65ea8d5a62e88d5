// Package nodes tests several `claviger kms` processes with one real PostgreSQL and one HSM. After a change of a
// key at one node, the other nodes serve the changed key. Any node may be killed at any moment.
package nodes
