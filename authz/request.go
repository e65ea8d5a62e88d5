package authz

import (
	"slices"
	"strings"

	"claviger/typo"
)

// Request is a request to the KMS, with the rights that it needs: one right of Any at operation level, and Key at key
// level.
type Request struct {
	Name string // Hadoop's name in the audit log
	Any  []Op   // empty: no operation-level right is needed
	Key  KeyOp  // "": no key-level right is needed
}

// requests has the requests to the KMS, by their names in the audit log. In Hadoop, the class KMS has the rights at
// operation level, and KeyAuthorizationKeyProvider has those at key level.
var requests = []Request{
	{"CREATE_KEY", []Op{Create}, KeyManagement},
	{"DELETE_KEY", []Op{Delete}, KeyManagement},
	{"ROLL_NEW_VERSION", []Op{Rollover}, KeyManagement},
	{"INVALIDATE_CACHE", []Op{Rollover, Delete}, KeyManagement},
	{"GET_KEYS", []Op{GetKeys}, ""},
	{"GET_KEYS_METADATA", []Op{GetMetadata}, KeyRead},
	{"GET_METADATA", []Op{GetMetadata}, KeyRead},
	{"GET_CURRENT_KEY", []Op{Get}, KeyRead},
	{"GET_KEY_VERSION", []Op{Get}, KeyRead},
	{"GET_KEY_VERSIONS", []Op{Get}, KeyRead},
	{"GENERATE_EEK", []Op{GenerateEEK}, KeyGenerateEEK},
	{"DECRYPT_EEK", []Op{DecryptEEK}, KeyDecryptEEK},
	{"REENCRYPT_EEK", []Op{GenerateEEK}, KeyGenerateEEK},
	{"REENCRYPT_EEK_BATCH", []Op{GenerateEEK}, KeyGenerateEEK},
	// Requests of this program, after the model of the Key Trustee KMS.
	{"UNDELETE_KEY", []Op{Undelete}, KeyManagement},
	{"PURGE_KEY", []Op{Purge}, KeyManagement},
	{"GET_DELETED_KEYS", []Op{Undelete, Purge}, ""},
	{"MIGRATE_KEY", nil, KeyMigrate},
	// Needed in addition to CREATE or ROLLOVER if a request contains material.
	{"SET_KEY_MATERIAL", []Op{SetKeyMaterial}, ""},
}

// aliases has requests by the rights that kms-acls.xml uses.
var aliases = map[string]string{
	"CREATE": "CREATE_KEY", "DELETE": "DELETE_KEY", "ROLLOVER": "ROLL_NEW_VERSION", "GET": "GET_KEY_VERSION",
	"UNDELETE": "UNDELETE_KEY", "PURGE": "PURGE_KEY", "MIGRATE": "MIGRATE_KEY",
}

// FindRequest finds a request by its name in the audit log, or by the right that it needs. Case does not matter, and
// '-' is the same as '_'. If there is no such request, nearest is the name that was probably meant, or "".
func FindRequest(name string) (r Request, nearest string, ok bool) {
	word := strings.ReplaceAll(strings.ToUpper(name), "-", "_")
	if full, ok := aliases[word]; ok {
		word = full
	}
	if i := slices.IndexFunc(requests, func(r Request) bool { return r.Name == word }); i >= 0 {
		return requests[i], "", true
	}
	nearest, _ = typo.Nearest(word, append(RequestNames(), "CREATE", "DELETE", "ROLLOVER", "GET", "UNDELETE", "PURGE",
		"MIGRATE"))
	return Request{}, nearest, false
}

// RequestNames returns the names that FindRequest finds, without aliases.
func RequestNames() []string {
	out := make([]string, len(requests))
	for i, r := range requests {
		out[i] = r.Name
	}
	return out
}
