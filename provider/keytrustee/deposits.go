package keytrustee

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"strings"
	"time"
	"unicode/utf8"

	"claviger"
	"claviger/secret"
	"claviger/trustee"
)

// Prefixes of labels.
const (
	keyPrefix     = trustee.LabelKey
	versionPrefix = trustee.LabelVersion
	deletedPrefix = trustee.LabelDeleted
)

// keyDoc is a key's document: the content of its deposit.
type keyDoc struct {
	Name        string            `json:"name"`
	Cipher      string            `json:"cipher"`
	Length      int               `json:"length"` // bits
	Description *string           `json:"description,omitempty"`
	Attributes  map[string]string `json:"attributes,omitempty"`
	Created     int64             `json:"created"` // milliseconds since 1970
	Versions    []versionRef      `json:"versions"`
	// Deleted is when the key was deleted, in milliseconds since 1970; 0 for a live key.
	Deleted int64 `json:"deleted,omitempty"`

	// uuid names the deposit from which the document was read.
	uuid string
}

// versionRef names the deposit of a version.
type versionRef struct {
	Name string `json:"name"` // full
	UUID string `json:"uuid"`
}

// versionDoc is the content of the deposit of a version.
type versionDoc struct {
	Version  string `json:"version"` // full name
	Material []byte `json:"material"`
}

func (d *keyDoc) metadata() claviger.Metadata {
	m := claviger.Metadata{Name: d.Name, Cipher: d.Cipher, BitLength: d.Length, Attributes: map[string]string{},
		Created: time.UnixMilli(d.Created), Versions: len(d.Versions)}
	if d.Description != nil {
		text := *d.Description
		m.Description = &text
	}
	for k, v := range d.Attributes {
		m.Attributes[k] = v
	}
	return m
}

func (d *keyDoc) find(version string) (versionRef, bool) {
	for _, v := range d.Versions {
		if v.Name == version {
			return v, true
		}
	}
	return versionRef{}, false
}

// checkName fails if a Key Trustee Server cannot store a key of that name. The label of a version is the longest label.
func checkName(name string) error {
	if limit := trustee.MaxLabel - len(versionPrefix) - len("@") - idLength; len(name) > limit {
		return fmt.Errorf("a key's name has at most %d bytes at a Key Trustee Server, not %d", limit, len(name))
	}
	if !utf8.ValidString(name) || strings.ContainsRune(name, 0) {
		return fmt.Errorf("a key's name must be UTF-8 without NUL")
	}
	return nil
}

// idLength is the length of a version's id: 128 random bits in hex.
const idLength = 32

// newID returns a random id of idLength digits.
func newID() string {
	var b [idLength / 2]byte
	_, _ = rand.Read(b[:]) // Read never fails
	return hex.EncodeToString(b[:])
}

// open decrypts a deposit's content and reads its JSON.
func (p *Provider) open(d *trustee.Deposit, into any) error {
	text, err := p.cfg.Identity.Open(d.Content, p.cfg.Now())
	if err != nil {
		return err
	}
	defer clear(text)
	dec := json.NewDecoder(bytes.NewReader(text))
	dec.DisallowUnknownFields()
	if err := dec.Decode(into); err != nil {
		// Leave out the decoder's error: it may quote the content.
		return fmt.Errorf("the content of deposit %q is not in the format of this version of claviger", d.Label)
	}
	return nil
}

// put deposits v as JSON, encrypted to the identity, and retires the deposit named by replaces ("" for none). Its
// errors have the kinds of trustee.Box.
func (p *Provider) put(ctx context.Context, label, description string, v any,
	replaces string) (uuid string, err error) {
	text, err := json.Marshal(v)
	if err != nil {
		return "", err
	}
	defer clear(text)
	sealed, err := p.cfg.Identity.Seal(text, p.cfg.Now())
	if err != nil {
		return "", err
	}
	if len(sealed) > trustee.MaxContent {
		return "", claviger.Errorf("keytrustee.put", claviger.Internal, "",
			"%q would have %d bytes, but a deposit has at most %d: a key cannot have so many versions or attributes; "+
				"make a new key", label, len(sealed), trustee.MaxContent)
	}
	return p.cfg.Box.Put(ctx, trustee.Deposit{Label: label, Description: description, Content: sealed}, replaces)
}

// doc reads the document with that label; nil if there is none.
func (p *Provider) doc(ctx context.Context, op, label, name string) (*keyDoc, error) {
	if len(label) > trustee.MaxLabel || !utf8.ValidString(label) {
		return nil, nil
	}
	d, err := p.cfg.Box.Find(ctx, label)
	if claviger.Is(err, claviger.KeyNotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, boxError(op, name, err)
	}
	k := &keyDoc{uuid: d.UUID}
	if err := p.open(&d, k); err != nil {
		return nil, claviger.E(op, claviger.Internal, name, err)
	}
	if k.Name != name || len(k.Versions) == 0 {
		return nil, claviger.Errorf(op, claviger.Internal, name, "deposit %q is of key %q, with %d versions", label,
			k.Name, len(k.Versions))
	}
	return k, nil
}

// key reads the document of a key; nil if there is none.
func (p *Provider) key(ctx context.Context, op, name string) (*keyDoc, error) {
	if name == "" {
		return nil, nil
	}
	return p.doc(ctx, op, keyPrefix+name, name)
}

// fetch returns a version with its material, from memory if possible.
func (p *Provider) fetch(ctx context.Context, op string, k *keyDoc, ref versionRef) (claviger.KeyVersion, error) {
	of := k.metadata()
	v := claviger.KeyVersion{Key: k.Name, Name: ref.Name, BitLength: k.Length, Of: &of}
	if v.Material = p.kept.material(ref.Name); v.Material != nil {
		return v, nil
	}
	d, err := p.cfg.Box.Get(ctx, ref.UUID)
	if claviger.Is(err, claviger.KeyNotFound) {
		return v, claviger.Errorf(op, claviger.Unavailable, ref.Name,
			"the Key Trustee Server lacks deposit %s of key %q: was the server restored from an older backup?",
			ref.UUID, k.Name)
	}
	if err != nil {
		return v, boxError(op, ref.Name, err)
	}
	var doc versionDoc
	if err := p.open(&d, &doc); err != nil {
		return v, claviger.E(op, claviger.Internal, ref.Name, err)
	}
	v.Material = secret.Bytes(doc.Material)
	if doc.Version != ref.Name || 8*len(doc.Material) != k.Length {
		v.Material.Wipe()
		return v, claviger.Errorf(op, claviger.Internal, ref.Name, "deposit %s holds %d bits of version %q", ref.UUID,
			8*len(doc.Material), doc.Version)
	}
	if err := p.kept.keep(ref.Name, v.Material); err != nil {
		return v, claviger.E(op, claviger.Internal, ref.Name, err)
	}
	p.seen.add(ref.Name, k.Created)
	return v, nil
}

// list calls f for each deposit whose label begins with prefix: for the deleted ones, or else for the live ones.
func (p *Provider) list(ctx context.Context, prefix string, deleted bool, f func(*trustee.Deposit)) error {
	after := ""
	for {
		page, err := p.cfg.Box.List(ctx, prefix, deleted, after, trustee.MaxPage)
		if err != nil || len(page) == 0 {
			return err
		}
		for i := range page {
			f(&page[i])
		}
		after = page[len(page)-1].Cursor()
	}
}
