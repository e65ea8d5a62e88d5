// Package keyring is the key management service: it asks the rules (authz), finds the version and its provider,
// caches, looks for a version that is not ours at the sources, and writes the audit log.
//
// # The way of one decrypt
//
//  1. The operation-level rules are asked (DECRYPT_EEK). A refusal is UNAUTHORIZED[op=DECRYPT_EEK] in the audit log
//     and kind Denied.
//  2. The EDEK's version is looked up, in the cache of versions or else at the primary. It must belong to the key
//     that the request names (kind WrongKey). Hadoop checks this before the key's rules, so a stranger can find out
//     which versions exist; so it is here, for versions of the primary.
//  3. The key-level rules are asked, under the ACL name in the metadata that came with the version in the same
//     reading: DECRYPT_EEK, then ALL. Kind KeyDenied.
//  4. Package eek makes the counter blocks, the primary encrypts them in one call (an HSM provider gathers calls that
//     come at the same time into one C_Encrypt), eek xors. A primary that is itself a KMS opens the EDEK on behalf of
//     the caller.
//  5. OK[op=DECRYPT_EEK] goes into the audit log.
//
// Nothing on this way waits for a lock that a management operation holds.
//
// A version that the primary does not know may be at a source. Its name says its key, which must be the key that the
// request names. The rules of our key of that name are asked before any source is, and those under the ACL name that
// the source gives the key before it opens anything. Then the sources are asked in order, on behalf of the caller,
// each behind a timeout and a circuit breaker. Where a source says "no such version", the next source is asked. A
// source that refuses, or does not answer, ends the walk: the next source may hold the same key without the rules of
// this one, or another key of the same name. The source that has served a version is remembered, across restarts too,
// and is then asked first. So a dead source blocks only the versions that it holds, or may hold.
//
// # The way of one batch
//
// A NameNode sends 1,000 EDEKs for re-encryption, usually of one old version. The operation-level rules are asked
// once (GENERATE_EEK; a NameNode is not allowed to decrypt, and sees no DEK here). Each distinct version must belong
// to the key; the key-level rules are asked once. EDEKs under the current version go back untouched. The rest costs
// one EncryptBlocks call for each old version and one for the current version over all of them. Where a source holds
// the old version, the source opens the EDEKs for this service in its own name; the DEKs are held until they are
// wrapped, and wiped. One bad EDEK fails the batch, and nothing of it is returned.
//
// # What is remembered
//
// The caches are those of Hadoop's CachingKeyProvider: versions and metadata for CacheTimeout after the last access,
// a key's current version for CurrentCacheTimeout after it was read. An absent key or version is not remembered. To
// create, roll, invalidate or delete a key through this Ring drops it from the caches at once, and readings of it
// that are under way; so the next request sees the change. A node elsewhere sees the change when Hadoop's client
// sends it _invalidatecache, or after the timeout.
//
// Where nodes share a store (Config.Shared), its notices make each node drop the key at once (Heed). A notice may be
// late or lost. So each operation that needs a key's current version (Generate, Reencrypt, Current) first reads the
// key's epoch from the store; requests that come at the same time share one reading. After a roll has returned at one
// node, no node serves the old version. A decrypt reads no epoch: a version does not change.
package keyring
