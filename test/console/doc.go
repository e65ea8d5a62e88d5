// Package console tests the web console of a KMS in a real Chromium: each page, signed in by Kerberos.
package console
