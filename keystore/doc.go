// Package keystore reads and writes the key files of a Java installation: JCEKS files with secret keys, in which
// Hadoop's JavaKeyStoreProvider keeps its encryption-zone keys, and JKS, JCEKS, PKCS#12 and PEM files with TLS
// certificates.
//
// JCEKS is our own code (jceks.go, pbe.go, javaread.go, javawrite.go), because no library reads its secret-key entries.
// Each entry is a serialised and encrypted Java object inside a second serialised Java object. The length, the depth
// and the work of reading are limited. As with Java's own jceks.key.serialFilter, only a few classes are allowed.
//
// The sources of the format are the JDK's com.sun.crypto.provider.JceKeyStore, KeyProtector,
// SealedObjectForKeyProtector and PBES1Core, chapter 6 of the Java Object Serialization Specification, and Hadoop's
// org.apache.hadoop.crypto.key.JavaKeyStoreProvider.
package keystore
