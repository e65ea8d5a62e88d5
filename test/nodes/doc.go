// Package nodes tests several `claviger kms` processes on one real PostgreSQL and
// one HSM: what one of them does to a key, the others serve from then on, and any
// of them may be killed at any moment.
package nodes
