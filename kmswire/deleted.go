package kmswire

import "encoding/json"

// The values of trusteeOp, by which a Key Trustee KMS's clients bring back deleted
// keys, and end them. The third is ours: it has a key taken over from the source of
// a migration.
const (
	OpUndelete = "undelete"
	OpPurge    = "purge"
	OpMigrate  = "migrate"

	// These two are ours as well: undelete and purge of the deleted key that has the
	// version of ParamVersion. They are values of their own, so that a server that does
	// not know them refuses, and does not take another key of the name.
	OpUndeleteVersion = "undeleteVersion"
	OpPurgeVersion    = "purgeVersion"
	ParamVersion      = "version"
	// ParamAll, true, has OpPurge end all deleted keys of a name where there are several.
	ParamAll = "all"
)

// MigratedKey answers OpMigrate.
type MigratedKey struct {
	Name     string   `json:"name"`
	Versions []string `json:"versions"` // full names of those made, oldest first
}

// DeletedKey is one entry of the list of deleted keys, which is no part of Hadoop's
// protocol. Times are milliseconds since 1970.
type DeletedKey struct {
	Name        string            `json:"name"`
	Cipher      string            `json:"cipher"`
	Length      int               `json:"length"`
	Description *string           `json:"description"`
	Attributes  map[string]string `json:"attributes"`
	Created     int64             `json:"created"`
	Versions    []string          `json:"versions"` // full names, oldest first
	Deleted     int64             `json:"deleted"`
	LastUse     int64             `json:"lastUse,omitempty"` // absent: no use is recorded
}

// KeyDescription is all that a KMS of ours tells of one key; it is no part of
// Hadoop's protocol. Times are milliseconds since 1970, 0 where there is none.
type KeyDescription struct {
	Name        string               `json:"name"`
	Provider    string               `json:"provider"` // URI
	Cipher      string               `json:"cipher"`
	Length      int                  `json:"length"`
	Description *string              `json:"description"`
	Attributes  map[string]string    `json:"attributes"`
	Created     int64                `json:"created"`
	Deleted     int64                `json:"deleted,omitempty"`
	Versions    []VersionDescription `json:"versions"`            // oldest first
	UsesSince   int64                `json:"usesSince,omitempty"` // when the record of uses began; absent: none is kept
}

// VersionDescription is one version of a KeyDescription.
type VersionDescription struct {
	Name    string `json:"name"`
	Created int64  `json:"created,omitempty"`
	LastUse int64  `json:"lastUse,omitempty"`
	Label   string `json:"label,omitempty"` // CKA_LABEL
	ID      string `json:"id,omitempty"`    // CKA_ID, in hex
}

// AppendJSON appends what encoding/json makes of a value of this package, which holds
// strings, numbers and lists of them alone, so that it cannot fail.
func AppendJSON[T DeletedKey | KeyDescription | MigratedKey](b []byte, v T) []byte {
	text, err := json.Marshal(v)
	if err != nil {
		panic(err)
	}
	return append(b, text...)
}
