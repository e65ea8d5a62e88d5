// Package trustee is what the Key Trustee Server and its clients share: OpenPGP identities, the
// ".keytrustee" folder that holds one, and the signed requests and answers between the two sides.
//
// The protocol is our own, see docs/trustee-protocol.md, because Cloudera's is not public. The
// names of the folder's files are Cloudera's.
package trustee
