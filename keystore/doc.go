// Package keystore reads and writes the key files of a Java installation: JCEKS files with secret keys, in which
// Hadoop's JavaKeyStoreProvider keeps its encryption-zone keys, and JKS, JCEKS, PKCS#12 and PEM files with TLS
// certificates.
// JCEKS is our own code (jceks.go, pbe.go, javaread.go, javawrite.go), because no library reads its secret-key
// entries. Each entry is a serialised and encrypted Java object inside a second serialised Java object. Length,
// depth and work of a read are limited. As with Java's own jceks.key.serialFilter, only a few classes are allowed.
//
// Sources of the format: the JDK's com.sun.crypto.provider.JceKeyStore,
// KeyProtector, SealedObjectForKeyProtector and PBES1Core; the Java Object
// Serialization Specification, chapter 6; Hadoop's
// org.apache.hadoop.crypto.key.JavaKeyStoreProvider.
package keystore
