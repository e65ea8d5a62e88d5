// Package keyring is the key management service itself: who may do what
// (authz), which version, which provider, what is remembered for how long,
// which source is asked for a version that is not ours, and what goes into the
// audit log.
//
// # The way of one decrypt
//
//  1. The operation-level rules are asked (DECRYPT_EEK). A no is
//     UNAUTHORIZED[op=DECRYPT_EEK] in the audit log and kind Denied.
//  2. The EDEK's version is looked up, in the cache of versions and else at the
//     primary. It must belong to the key that the request names (kind WrongKey).
//     Hadoop asks this before the key's rules, so a stranger can find out which
//     versions there are; so it is here, for versions of the primary.
//  3. The key-level rules are asked, under the ACL name in the metadata that came
//     with the version, of one reading: DECRYPT_EEK, then ALL. Kind KeyDenied.
//  4. Package eek makes the counter blocks, the primary encrypts them in one
//     call (an HSM provider gathers what comes together into one C_Encrypt), eek
//     xors. A primary that is itself a KMS is asked as the caller.
//  5. OK[op=DECRYPT_EEK] goes into the audit log.
//
// Nothing on this way waits for a lock that a management operation holds.
//
// A version that the primary does not know, where there are sources: its key is
// told by its name, and must be the one that the request names. The rules of our key
// of that name are asked before any source is, and those under the ACL name that the
// source gives the key before it opens anything. Then the sources are asked in order, in the
// caller's name, each behind a timeout and a circuit breaker. A source that says
// "no such version" hands on to the next one. A source that refuses, or does
// not answer, ends the walk: the next source may hold the same key without the
// rules of this one, or another key of the same name. Once a source has served
// a version that is remembered, across restarts too, and it is asked at once: a
// dead source is in the way only of what it holds itself, or may hold.
//
// # The way of one batch
//
// A NameNode sends 1,000 EDEKs for re-encryption, as a rule of one old version.
// The operation-level rules are asked once (GENERATE_EEK; a NameNode is not
// allowed to decrypt, and sees no DEK here). Each distinct version is checked
// to belong to the key, then the key-level rules are asked once. EDEKs under the
// current version go back untouched. The rest costs one EncryptBlocks call for
// each old version and one for the current version over all of them. Where a
// source holds the old version its DEKs are asked of the source in this
// service's own name, held only until they are wrapped, and wiped. One bad EDEK
// fails the batch, and nothing of it is returned.
//
// # What is remembered
//
// As in Hadoop's CachingKeyProvider: versions and metadata for CacheTimeout after
// the last access, a key's current version for CurrentCacheTimeout after it was
// asked for; what is absent is not remembered. Creating, rolling, invalidating or
// deleting a key through this Ring forgets it at once, and what was being asked
// for meanwhile; so the next request sees the change. A node elsewhere sees it
// when Hadoop's client has told it (_invalidatecache on every host) or the
// timeout is over.
//
// Where nodes share a store (Config.Shared) its notices make each of them forget
// at once (Heed). A notice may be late or lost, so whatever needs a key's current
// version (Generate, Reencrypt, Current) first asks the store for the key's epoch,
// one small question for all who ask at a time: after a roll has returned at one
// node, no node serves the old version. Decrypts ask nothing: a version does not
// change.
package keyring
