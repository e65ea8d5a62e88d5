// Package trustee is the ground of the Key Trustee Server and of its clients:
// OpenPGP identities, the ".keytrustee" folder that holds one, and the signed
// requests and answers that the two sides exchange.
//
// The protocol is our own, see docs/trustee-protocol.md: Cloudera's is not
// public. The names of the folder's files are Cloudera's.
package trustee
