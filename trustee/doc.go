// Package trustee is shared by the Key Trustee Server and its clients: OpenPGP identities, the
// ".keytrustee" folder that holds an identity, and the signed requests and answers.
//
// The protocol is our own, see docs/trustee-protocol.md, because Cloudera's protocol is not public.
// The names of the files in the folder are Cloudera's.
package trustee
