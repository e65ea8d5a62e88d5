// Package keyring is the key management service itself: who may do what
// (authz), which version, which provider, what is remembered for how long,
// which source is asked for a version that is not ours, and what goes into the
// audit log.
package keyring
