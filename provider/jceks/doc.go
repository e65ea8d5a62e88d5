// Package jceks is a provider over Hadoop's own keystore files: what
// org.apache.hadoop.crypto.key.JavaKeyStoreProvider keeps behind
// jceks://file@/path. It reads and writes them, so that a site can come from
// such a store and go back to it.
//
// Two things are Hadoop's and stay so. A version's id is a running number (k@0,
// k@1, ...). And a key is two kinds of entries: its metadata under its name, as
// JSON in a serialised Java object, and each version under the version's name.
// The keystore lower-cases its aliases, which is why Hadoop refuses upper-case
// key names. A key may have a name that a version of another could have (k@1): Hadoop's
// roll of key k writes over it; here versions of k skip its number, so that neither is in
// the way of the other. Hadoop's list of names leaves out each key with an '@' in its name;
// Keys does not.
//
// Entries are decrypted when they are first asked for (60 to 80 ms each) and
// stay decrypted in memory, cipher included, for as long as the file holds them;
// the file's size limit (keystore.MaxJCEKS) bounds that. Each call compares the
// file's identity with the one that was read, so that a change by another
// process is seen by the next call. Writers of this program, in however many
// processes, take turns by a lock on a side file; Hadoop's do not know it.
package jceks
