package kmswire

import "encoding/json"

// Values of the parameter trusteeOp. With the first two, clients of a Key Trustee KMS
// undelete and purge deleted keys. OpMigrate is our own: it takes a key over from the
// source of a migration.
const (
	OpUndelete = "undelete"
	OpPurge    = "purge"
	OpMigrate  = "migrate"

	// These two are our own, too: they undelete and purge the deleted key that has the
	// version of ParamVersion. They are separate values, so that a server that does not
	// know them refuses, instead of using another deleted key of the name.
	OpUndeleteVersion = "undeleteVersion"
	OpPurgeVersion    = "purgeVersion"
	ParamVersion      = "version"
	// With ParamAll=true, OpPurge purges all deleted keys of a name.
	ParamAll = "all"
)

// MigratedKey is the answer to OpMigrate.
type MigratedKey struct {
	Name     string   `json:"name"`
	Versions []string `json:"versions"` // full names of the versions that were made, oldest first
}

// DeletedKey is one entry of the list of deleted keys, which Hadoop's protocol does
// not have. Times are milliseconds since 1970.
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

// KeyDescription is a description of one key, which Hadoop's protocol does not have. Times are milliseconds since 1970;
// 0 means no time.
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
	UsesSince   int64                `json:"usesSince,omitempty"` // when the record of uses began; absent: no record
}

// VersionDescription is one version of a KeyDescription.
type VersionDescription struct {
	Name    string `json:"name"`
	Created int64  `json:"created,omitempty"`
	LastUse int64  `json:"lastUse,omitempty"`
	Label   string `json:"label,omitempty"` // CKA_LABEL
	ID      string `json:"id,omitempty"`    // CKA_ID, in hex
}

// AppendJSON appends a value with encoding/json. That cannot fail, because these types
// hold only strings, numbers and lists of these.
func AppendJSON[T DeletedKey | KeyDescription | MigratedKey](b []byte, v T) []byte {
	text, err := json.Marshal(v)
	if err != nil {
		panic(err)
	}
	return append(b, text...)
}
