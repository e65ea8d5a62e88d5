package kmswire

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"math"
	"slices"
	"strconv"
	"time"

	"claviger"
	"claviger/secret"
)

// AppendCreate appends the body of POST /v1/keys.
func AppendCreate(b []byte, s Create) []byte {
	b = append(b, `{"name":`...)
	b = appendString(b, s.Name)
	b = append(b, `,"cipher":`...)
	b = appendString(b, s.Cipher)
	b = append(b, `,"length":`...)
	b = strconv.AppendInt(b, int64(s.Length), 10)
	if s.Material != nil {
		b = append(b, `,"material":`...)
		b = appendBytes(b, s.Material)
	}
	if s.Description != nil {
		b = append(b, `,"description":`...)
		b = appendString(b, *s.Description)
	}
	if len(s.Attributes) > 0 {
		b = append(b, `,"attributes":{`...)
		for i, k := range slices.Sorted(maps.Keys(s.Attributes)) {
			if i > 0 {
				b = append(b, ',')
			}
			b = appendString(b, k)
			b = append(b, ':')
			b = appendString(b, s.Attributes[k])
		}
		b = append(b, '}')
	}
	return append(b, '}')
}

// AppendRoll appends the body of POST /v1/key/{name}. If material is nil, the server
// makes it.
func AppendRoll(b []byte, material secret.Bytes) []byte {
	if material == nil {
		return append(b, "{}"...)
	}
	b = append(b, `{"material":`...)
	b = appendBytes(b, material)
	return append(b, '}')
}

// AppendOpen appends the body of a decrypt or a single re-encrypt.
func AppendOpen(b []byte, key string, e *claviger.EDEK) []byte {
	b = append(b, `{"name":`...)
	b = appendString(b, key)
	b = append(b, `,"iv":`...)
	b = appendBytes(b, e.IV)
	b = append(b, `,"material":`...)
	b = appendBytes(b, e.Material)
	return append(b, '}')
}

// AppendBatch appends the body of a batch re-encryption.
func AppendBatch(b []byte, key string, es []claviger.EDEK) []byte { return AppendEDEKs(b, key, es) }

// keyVersionJSON is a key version in an answer.
type keyVersionJSON struct {
	Name        *string `json:"name"`
	VersionName *string `json:"versionName"`
	Material    *string `json:"material"`
}

func (j *keyVersionJSON) version() (*claviger.KeyVersion, error) {
	if j.VersionName == nil {
		return nil, nil
	}
	v := &claviger.KeyVersion{Name: *j.VersionName}
	if j.Name != nil {
		v.Key = *j.Name
	}
	if j.Material != nil {
		m, err := decodeBase64(*j.Material)
		if err != nil {
			return nil, fmt.Errorf("material of key version %q: %w", v.Name, err)
		}
		v.Material, v.BitLength = m, len(m)*8
	}
	return v, nil
}

// errNull is the error for an answer of null. json.Unmarshal makes an empty value of
// null, so the client would take an unknown result for an empty one.
var errNull = errors.New("the answer is null")

// unmarshal is json.Unmarshal for an answer that must not be null.
func unmarshal(body []byte, to any) error {
	if err := json.Unmarshal(body, to); err != nil {
		return err
	}
	if string(bytes.TrimSpace(body)) == "null" {
		return errNull
	}
	return nil
}

// ReadKeyVersion decodes a key version. The answer {} means that it does not exist:
// the result is nil without an error. BitLength is set only if the answer has the
// material.
func ReadKeyVersion(body []byte) (*claviger.KeyVersion, error) {
	var j keyVersionJSON
	if err := unmarshal(body, &j); err != nil {
		return nil, err
	}
	return j.version()
}

// ReadKeyVersions decodes a list of key versions.
func ReadKeyVersions(body []byte) ([]claviger.KeyVersion, error) {
	var js []keyVersionJSON
	if err := unmarshal(body, &js); err != nil {
		return nil, err
	}
	vs := make([]claviger.KeyVersion, len(js))
	for i := range js {
		v, err := js[i].version()
		if err != nil {
			return nil, err
		}
		if v == nil {
			return nil, fmt.Errorf("entry %d of the list is not a key version", i)
		}
		vs[i] = *v
	}
	return vs, nil
}

// ReadDEK decodes the answer to a decrypt.
func ReadDEK(body []byte) (secret.Bytes, error) {
	var material value
	err := newLexer(body).body("answer", func(field []byte) *value {
		if string(field) == "material" {
			return &material
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	s, ok, err := material.string()
	switch {
	case err != nil:
		return nil, err
	case !ok:
		return nil, errors.New("the answer holds no key material")
	}
	return decodeBase64(s)
}

// ReadEDEKs decodes a list of EDEKs.
func ReadEDEKs(body []byte) ([]claviger.EDEK, error) { return ReadBatch(body, math.MaxInt) }

// ReadEDEK decodes the answer to a single re-encrypt.
func ReadEDEK(body []byte) (claviger.EDEK, error) {
	b := &batchReader{lexer: newLexer(body), limit: 1}
	err := b.item()
	for _, err := range [...]error{err, b.wrong, b.notEEK} {
		if err != nil {
			return claviger.EDEK{}, err
		}
	}
	return b.edeks[0], nil
}

// metadataJSON is a key's metadata in an answer.
type metadataJSON struct {
	Name        *string           `json:"name"`
	Cipher      string            `json:"cipher"`
	Length      int               `json:"length"`
	Description *string           `json:"description"`
	Attributes  map[string]string `json:"attributes"`
	Created     int64             `json:"created"`
	Versions    int               `json:"versions"`
}

func (j *metadataJSON) metadata() *claviger.Metadata {
	if j == nil || j.Name == nil {
		return nil
	}
	m := &claviger.Metadata{Name: *j.Name, Cipher: j.Cipher, BitLength: j.Length, Description: j.Description,
		Attributes: j.Attributes, Created: time.UnixMilli(j.Created), Versions: j.Versions}
	if m.Attributes == nil {
		m.Attributes = map[string]string{}
	}
	return m
}

// ReadMetadata decodes a key's metadata. If the key does not exist, the result is nil
// without an error.
func ReadMetadata(body []byte) (*claviger.Metadata, error) {
	var j metadataJSON
	if err := json.Unmarshal(body, &j); err != nil {
		return nil, err
	}
	return j.metadata(), nil
}

// ReadMetadataList decodes one entry for each requested key; nil for a missing key.
func ReadMetadataList(body []byte) ([]*claviger.Metadata, error) {
	var js []*metadataJSON
	if err := unmarshal(body, &js); err != nil {
		return nil, err
	}
	ms := make([]*claviger.Metadata, len(js))
	for i, j := range js {
		ms[i] = j.metadata()
	}
	return ms, nil
}

// ReadNames decodes a list of key names. An answer of null, or a name of null, is an
// error: the client must not take it for a shorter list.
func ReadNames(body []byte) ([]string, error) {
	var list []*string
	if err := unmarshal(body, &list); err != nil {
		return nil, err
	}
	names := make([]string, len(list))
	for i, name := range list {
		if name == nil {
			return nil, fmt.Errorf("name %d of the list is null", i)
		}
		names[i] = *name
	}
	return names, nil
}

// ReadException decodes a RemoteException answer; nil if the body is another answer.
func ReadException(body []byte) *Exception {
	var j struct {
		RemoteException *struct {
			Message       *string `json:"message"`
			Exception     string  `json:"exception"`
			JavaClassName string  `json:"javaClassName"`
		}
	}
	if err := json.Unmarshal(body, &j); err != nil || j.RemoteException == nil {
		return nil //nolint:nilerr // nil means that it is another answer
	}
	r := j.RemoteException
	e := &Exception{Class: r.JavaClassName, NoMessage: r.Message == nil}
	if e.Class == "" {
		e.Class = r.Exception
	}
	if r.Message != nil {
		e.Message = *r.Message
	}
	return e
}
