package authz

import (
	"slices"
	"strings"

	"claviger/typo"
)

// Request is one of the KMS's requests, and the rights that it needs: any one of
// Any at operation level, and Key at key level.
type Request struct {
	Name string // Hadoop's name of it in the audit log
	Any  []Op   // none: no operation-level rule is asked
	Key  KeyOp  // "" where the rules of no key are asked
}

// requests are the KMS's, each under the name that the audit log gives it.
// Hadoop's class KMS has the rights at operation level, its
// KeyAuthorizationKeyProvider those at key level.
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
	// Ours, after the Key Trustee KMS.
	{"UNDELETE_KEY", []Op{Undelete}, KeyManagement},
	{"PURGE_KEY", []Op{Purge}, KeyManagement},
	{"GET_DELETED_KEYS", []Op{Undelete, Purge}, ""},
	{"MIGRATE_KEY", nil, KeyMigrate},
	// Asked for beside CREATE or ROLLOVER where a request brings material.
	{"SET_KEY_MATERIAL", []Op{SetKeyMaterial}, ""},
}

// aliases are the rights, by which kms-acls.xml calls the requests.
var aliases = map[string]string{
	"CREATE": "CREATE_KEY", "DELETE": "DELETE_KEY", "ROLLOVER": "ROLL_NEW_VERSION", "GET": "GET_KEY_VERSION",
	"UNDELETE": "UNDELETE_KEY", "PURGE": "PURGE_KEY", "MIGRATE": "MIGRATE_KEY",
}

// FindRequest finds a request by its name in the audit log, or by the right that
// it needs; capitals and '-' for '_' do not matter. Where there is none, near is
// the name that was probably meant, or "".
func FindRequest(name string) (r Request, near string, ok bool) {
	word := strings.ReplaceAll(strings.ToUpper(name), "-", "_")
	if full, ok := aliases[word]; ok {
		word = full
	}
	if i := slices.IndexFunc(requests, func(r Request) bool { return r.Name == word }); i >= 0 {
		return requests[i], "", true
	}
	near, _ = typo.Nearest(word, append(RequestNames(), "CREATE", "DELETE", "ROLLOVER", "GET", "UNDELETE", "PURGE",
		"MIGRATE"))
	return Request{}, near, false
}

// RequestNames lists what FindRequest finds, without aliases.
func RequestNames() []string {
	out := make([]string, len(requests))
	for i, r := range requests {
		out[i] = r.Name
	}
	return out
}
