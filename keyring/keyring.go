// Package keyring is the key management service: it checks the rules (authz), finds the version and its provider,
// caches, searches the sources for versions that the primary does not have, and writes the audit log.
//
// # Steps of one decrypt
//
//  1. The operation-level rules are checked (DECRYPT_EEK). A refusal is UNAUTHORIZED[op=DECRYPT_EEK] in the audit log
//     and kind Denied.
//  2. The EDEK's version is looked up, in the cache of versions or else at the primary. It must belong to the key
//     that the request names (kind WrongKey). Like Hadoop, the Ring checks this before the key's rules, for versions
//     of the primary; so a user without rights can find out which versions exist.
//  3. The key-level rules are checked, under the ACL name in the metadata that came with the version in the same
//     reading: DECRYPT_EEK, then ALL. Kind KeyDenied.
//  4. Package eek makes the counter blocks, the primary encrypts them in one call (an HSM provider gathers calls that
//     come at the same time into one C_Encrypt), eek xors. A primary that is itself a KMS opens the EDEK on behalf of
//     the caller.
//  5. OK[op=DECRYPT_EEK] goes into the audit log.
//
// No step of a decrypt waits for a lock that a management operation holds.
//
// A version that the primary does not know may be at a source. Its name contains the name of its key, which must be the
// key that the request names. Before any call to a source, the rules of our key of that name are checked. Before a
// source opens anything, the rules under the source's ACL name of the key are checked too. Then the sources are tried
// in order, on behalf of the caller, each behind a timeout and a circuit breaker. If a source says "no such version",
// the next source is tried. If a source refuses, or does not answer, no other source is tried: the next source may have
// the same key without the rules of this one, or another key of the same name. The source that has served a version is
// recorded, also across restarts, and is then tried first. So a dead source blocks only the versions that it has, or
// may have.
//
// # Steps of one batch
//
// A NameNode sends 1,000 EDEKs for re-encryption, usually of one old version. The operation-level rules are checked
// once (GENERATE_EEK; a NameNode is not allowed to decrypt, and sees no DEK here). Each distinct version must belong to
// the key; the key-level rules are checked once. EDEKs under the current version are returned unchanged. The others
// cost one EncryptBlocks call for each old version and one for the current version over all of them. If a source has
// the old version, the source opens the EDEKs for this server's own user; the DEKs are kept until they are wrapped, and
// then wiped. If one EDEK is bad, the whole batch fails.
//
// # Caches
//
// The caches are those of Hadoop's CachingKeyProvider: versions and metadata for CacheTimeout after the last access, a
// key's current version for CurrentCacheTimeout after it was read. An absent key or version is not cached. Creating,
// rolling, invalidating or deleting a key through this Ring drops it from the caches at once, and also drops readings
// of it in progress, so the next request sees the change. Another node sees the change when Hadoop's client sends it
// _invalidatecache, or after the timeout.
//
// If nodes share a store (Config.Shared), its notices make each node drop the key at once (HandleNotice). A notice may
// be late or lost. So each operation that needs a key's current version (Generate, Reencrypt, Current) first reads the
// key's epoch from the store; requests that come at the same time share one reading. After a roll has returned at one
// node, no node serves the old version. A decrypt reads no epoch: a version does not change.
package keyring
