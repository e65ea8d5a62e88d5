// Package keystore reads and writes the key files that a Java installation
// leaves behind: JCEKS with secret keys in it, as Hadoop's JavaKeyStoreProvider
// keeps its encryption-zone keys, and the JKS, JCEKS, PKCS#12 and PEM files that
// hold TLS certificates.
//
// JCEKS is our own code (store.go, pbe.go, javaread.go, javawrite.go), because
// no library reads its secret-key entries: each is a Java object, serialised,
// encrypted, put into a second Java object and serialised again. What is read is
// bounded in length, depth and work, and limited to the few classes that a
// keystore may hold, as Java's own jceks.key.serialFilter does.
//
// Sources of the format: the JDK's com.sun.crypto.provider.JceKeyStore,
// KeyProtector, SealedObjectForKeyProtector and PBES1Core; the Java Object
// Serialization Specification, chapter 6; Hadoop's
// org.apache.hadoop.crypto.key.JavaKeyStoreProvider.
package keystore
