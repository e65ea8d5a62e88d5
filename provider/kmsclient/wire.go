package kmsclient

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"time"

	"claviger"
	"claviger/provider"
	"claviger/secret"
)

// base64JSON is bytes in a JSON string: written in the URL-safe alphabet without
// padding, read in either alphabet, padded or not. null is nil, "" is not. It is
// decoded in place of becoming a string first, which could not be wiped.
type base64JSON []byte

// materialJSON is b, and never nil: the field must be there.
func materialJSON(b []byte) base64JSON {
	if b == nil {
		return base64JSON{}
	}
	return b
}

// MarshalJSON writes the string.
func (b base64JSON) MarshalJSON() ([]byte, error) {
	if b == nil {
		return []byte("null"), nil
	}
	out := make([]byte, 2+base64.RawURLEncoding.EncodedLen(len(b)))
	base64.RawURLEncoding.Encode(out[1:], b)
	out[0], out[len(out)-1] = '"', '"'
	return out, nil
}

// UnmarshalJSON reads the string.
func (b *base64JSON) UnmarshalJSON(in []byte) error {
	if string(in) == "null" {
		*b = nil
		return nil
	}
	if len(in) < 2 || in[0] != '"' {
		return errors.New("not a base64 string")
	}
	text := in[1 : len(in)-1]
	if bytes.IndexByte(text, '\\') >= 0 { // such as "\/"; no KMS is known to write so
		var s string
		if err := json.Unmarshal(in, &s); err != nil {
			return err
		}
		text = []byte(s)
	}
	text = bytes.TrimRight(text, "=")
	alphabet := base64.RawURLEncoding
	if bytes.ContainsAny(text, "+/") {
		alphabet = base64.RawStdEncoding
	}
	out := make([]byte, alphabet.DecodedLen(len(text)))
	n, err := alphabet.Decode(out, text)
	if err != nil {
		clear(out)
		return errors.New("not a base64 string") // without the text: it may be a DEK
	}
	*b = out[:n]
	return nil
}

type createJSON struct {
	Name        string            `json:"name"`
	Cipher      string            `json:"cipher"`
	Length      int               `json:"length"`
	Material    base64JSON        `json:"material,omitzero"`
	Description *string           `json:"description,omitempty"`
	Attributes  map[string]string `json:"attributes,omitempty"`
}

type rollJSON struct {
	Material base64JSON `json:"material,omitzero"`
}

type decryptJSON struct {
	Name     string     `json:"name"`
	IV       base64JSON `json:"iv"`
	Material base64JSON `json:"material"`
}

// versionJSON is Hadoop's KeyVersion; {} is none.
type versionJSON struct {
	Name        string     `json:"name"`
	VersionName string     `json:"versionName"`
	Material    base64JSON `json:"material"`
}

// version checks that it is a version of key. bits is its length where the
// material does not tell.
func (v versionJSON) version(op, key string, bits int) (provider.KeyVersion, error) {
	if k, ok := claviger.KeyOfVersion(v.VersionName); !ok || k != key {
		return provider.KeyVersion{}, claviger.Errorf(op, claviger.Internal, key, "the KMS answered with version %q, which is of another key", v.VersionName)
	}
	if v.Material != nil {
		bits = 8 * len(v.Material)
	}
	return provider.KeyVersion{Key: key, Name: v.VersionName, BitLength: bits, Material: secret.Bytes(v.Material)}, nil
}

type eekJSON struct {
	VersionName string       `json:"versionName"`
	IV          base64JSON   `json:"iv"`
	Encrypted   *versionJSON `json:"encryptedKeyVersion"`
}

// metadataJSON is Hadoop's Metadata; {} is none.
type metadataJSON struct {
	Name        string            `json:"name"`
	Cipher      string            `json:"cipher"`
	Length      int               `json:"length"`
	Description *string           `json:"description"`
	Attributes  map[string]string `json:"attributes"`
	Created     int64             `json:"created"` // epoch milliseconds
	Versions    int               `json:"versions"`
}

func (m metadataJSON) metadata() *claviger.Metadata {
	if m.Name == "" {
		return nil
	}
	if m.Attributes == nil {
		m.Attributes = map[string]string{}
	}
	return &claviger.Metadata{
		Name: m.Name, Cipher: m.Cipher, BitLength: m.Length, Description: m.Description,
		Attributes: m.Attributes, Created: time.UnixMilli(m.Created), Versions: m.Versions,
	}
}

func encode(op, key string, v any) ([]byte, error) {
	b, err := json.Marshal(v)
	if err != nil {
		return nil, claviger.E(op, claviger.Internal, key, err)
	}
	return b, nil
}

func decode[T any](op, key string, body []byte) (T, error) {
	var v T
	if err := json.Unmarshal(body, &v); err != nil {
		return v, claviger.Errorf(op, claviger.Internal, key, "the KMS's answer cannot be read: %w", err)
	}
	return v, nil
}
