// Package kerberos tests, with a real KDC and the real program, which clients can log in at a KMS of type
// kerberos: clients of the JDK, of Hadoop, and curl. The server must refuse forged, old, replayed and misdirected
// tickets, write a line for each into the audit log, and log an explanation.
package kerberos
