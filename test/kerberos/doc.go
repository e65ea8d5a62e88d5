// Package kerberos proves, with a real KDC and the real program, who gets in at
// a KMS of type kerberos and who does not: clients of the JDK, of Hadoop, of
// curl; and forged, old, replayed and misdirected tickets, each of which has to
// leave its line in the audit log, and an explanation in the program's own.
package kerberos
