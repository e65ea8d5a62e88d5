package jceks

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"time"

	"claviger"
)

// metadata is the serialised form of Hadoop's KeyProvider.Metadata. The fields have this order, and are absent if they
// are null or 0. Hadoop fails on any other field.
type metadata struct {
	Cipher      string            `json:"cipher,omitempty"`
	BitLength   int               `json:"bitLength,omitempty"`
	Created     int64             `json:"created,omitempty"` // ms since 1970
	Description *string           `json:"description,omitempty"`
	Attributes  map[string]string `json:"attributes,omitempty"`
	// Versions is the next version's number. It may be larger than the number of versions: Hadoop skips missing
	// numbers, and Import skips some.
	Versions int `json:"versions,omitempty"`
}

// maxVersions bounds a version's number, so that it fits into a Java int.
const maxVersions = 1<<31 - 1

func parseMetadata(data []byte) (*metadata, error) {
	var m metadata
	if err := json.Unmarshal(data, &m); err != nil {
		return nil, fmt.Errorf("the metadata is not Hadoop's JSON: %w", err)
	}
	if m.Versions < 0 || m.Versions > maxVersions || m.BitLength < 0 {
		return nil, errors.New("the metadata contains an impossible number")
	}
	return &m, nil
}

func (m *metadata) marshal() ([]byte, error) {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	if err := e.Encode(m); err != nil {
		return nil, err
	}
	return bytes.TrimSuffix(b.Bytes(), []byte("\n")), nil
}

// public makes the metadata that a Reader returns. The caller owns it.
func (m *metadata) public(name string) *claviger.Metadata {
	out := &claviger.Metadata{
		Name: name, Cipher: m.Cipher, BitLength: m.BitLength, Attributes: map[string]string{},
		Created: time.UnixMilli(m.Created), Versions: m.Versions,
	}
	if m.Description != nil {
		d := *m.Description
		out.Description = &d
	}
	maps.Copy(out.Attributes, m.Attributes)
	return out
}

// newMetadata makes the stored form of m. It shares no memory with m.
func newMetadata(m claviger.Metadata, versions int) *metadata {
	out := &metadata{Cipher: m.Cipher, BitLength: m.BitLength, Created: m.Created.UnixMilli(),
		Attributes: maps.Clone(m.Attributes), Versions: versions}
	if m.Description != nil {
		d := *m.Description
		out.Description = &d
	}
	return out
}
