// Package authz decides what a caller may do, by the rules of Hadoop's kms-acls.xml. A decision depends only on the
// Policy, the principal and the principal's groups. A Watcher reloads the Policy when the file changes. Each rule has
// the file and line that it comes from; `claviger acl explain` prints them.
package authz

// Op is an operation-level right: hadoop.kms.acl.<OP> and hadoop.kms.blacklist.<OP>.
type Op string

// The operation-level rights.
const (
	Create         Op = "CREATE"
	Delete         Op = "DELETE"
	Rollover       Op = "ROLLOVER"
	Get            Op = "GET"
	GetKeys        Op = "GET_KEYS"
	GetMetadata    Op = "GET_METADATA"
	SetKeyMaterial Op = "SET_KEY_MATERIAL"
	GenerateEEK    Op = "GENERATE_EEK"
	DecryptEEK     Op = "DECRYPT_EEK"
)

// Rights over deleted keys, as in a Key Trustee KMS: keytrustee.kms.acl.<OP>. Unlike Hadoop's rights, nobody has them
// if they are not set, and there is no blacklist for them.
const (
	Undelete Op = "UNDELETE"
	Purge    Op = "PURGE"
)

// KeyOp is a key-level right: key.acl.<name>.<OP>, default.key.acl.<OP>, whitelist.key.acl.<OP>.
type KeyOp string

// The key-level rights.
const (
	KeyAll         KeyOp = "ALL"
	KeyRead        KeyOp = "READ"
	KeyManagement  KeyOp = "MANAGEMENT"
	KeyGenerateEEK KeyOp = "GENERATE_EEK"
	KeyDecryptEEK  KeyOp = "DECRYPT_EEK"
)

// KeyMigrate is the right to migrate a key into the HSM, as in a Key Trustee KMS. It is independent of Hadoop's rights:
// ALL does not contain it; its rules do not close a key to other rights, and rules of other rights do not close a key
// to it. So granting it takes no right from other users. Nobody has it if it is not set.
const KeyMigrate KeyOp = "MIGRATE"
