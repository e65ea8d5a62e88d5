// Package authz decides what a caller may do, by the rules of Hadoop's
// kms-acls.xml. What a Policy answers is a pure function of it, a principal and
// his groups; a Watcher keeps the Policy that is in force. A rule keeps the file and
// line that it comes from; `claviger acl explain` prints them.
package authz

// Op is an operation-level right: hadoop.kms.acl.<OP> and
// hadoop.kms.blacklist.<OP>.
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

// Rights over deleted keys, as a Key Trustee KMS has them: keytrustee.kms.acl.<OP>.
// Unlike Hadoop's, they are nobody's where they are not set, and have no blacklist.
const (
	Undelete Op = "UNDELETE"
	Purge    Op = "PURGE"
)

// KeyOp is a key-level right: key.acl.<name>.<OP>, default.key.acl.<OP>,
// whitelist.key.acl.<OP>.
type KeyOp string

// The key-level rights.
const (
	KeyAll         KeyOp = "ALL"
	KeyRead        KeyOp = "READ"
	KeyManagement  KeyOp = "MANAGEMENT"
	KeyGenerateEEK KeyOp = "GENERATE_EEK"
	KeyDecryptEEK  KeyOp = "DECRYPT_EEK"
)

// KeyMigrate is the right of a Key Trustee KMS to have a key taken over into the
// HSM. It stands beside Hadoop's: ALL does not contain it, and its rules neither
// close a key to the other rights nor are closed by theirs, so that granting it
// takes nothing from those who read. It is nobody's where it is not set.
const KeyMigrate KeyOp = "MIGRATE"
