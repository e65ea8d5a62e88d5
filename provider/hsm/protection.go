package hsm

import (
	"context"
	"encoding/hex"

	"claviger"
	"claviger/metastore"
	"claviger/pkcs11"
)

// VersionProtection has the attributes that the token reports for a version's key.
type VersionProtection struct {
	Version string `json:"version"`
	Key     string `json:"key"`
	ID      string `json:"id"` // CKA_ID in hex; "" if the store does not have the version
	// Record is InUse, Deleted, or "" if the store does not have the version: it was purged.
	Record Mark `json:"record"`
	// OnToken has one element for each key with that id and label. It is empty if the token shows none, and usually
	// has one element.
	OnToken []pkcs11.Protection `json:"onToken"`
}

// Protection asks the token how it protects the keys of versions.
func (p *Provider) Protection(ctx context.Context, versions []string) ([]VersionProtection, error) {
	if err := p.ready("hsm.Protection", ""); err != nil {
		return nil, err
	}
	list := make([]VersionProtection, len(versions))
	known := map[string]map[string]VersionProtection{} // by key and version
	for i, name := range versions {
		key, _ := claviger.KeyOfVersion(name)
		if known[key] == nil {
			of, err := p.recorded(ctx, key)
			if err != nil {
				return nil, err
			}
			known[key] = of
		}
		v, ok := known[key][name]
		if !ok {
			list[i] = VersionProtection{Version: name, Key: key, OnToken: []pkcs11.Protection{}}
			continue
		}
		id, err := hex.DecodeString(v.ID)
		if err != nil {
			return nil, claviger.Errorf("hsm.Protection", claviger.Internal, key, "the metastore has the CKA_ID %q of "+
				"%s: %w", v.ID, name, err)
		}
		found, err := p.tok.Protection(ctx, id, name)
		if err != nil {
			return nil, err
		}
		v.OnToken = append(v.OnToken, found...)
		list[i] = v
	}
	return list, nil
}

// recorded returns the versions of a key that the store has, also those of deleted keys of the name. If a key and a
// deleted key have a version of the same name, recorded returns the version of the key that is not deleted.
func (p *Provider) recorded(ctx context.Context, name string) (map[string]VersionProtection, error) {
	of := map[string]VersionProtection{}
	add := func(k *metastore.Key, mark Mark) {
		for _, v := range k.List {
			version := claviger.VersionName(k.Name, v.ID)
			of[version] = VersionProtection{Version: version, Key: k.Name, ID: v.Object, Record: mark,
				OnToken: []pkcs11.Protection{}}
		}
	}
	deleted, err := p.store.DeletedKeys(ctx, name)
	if err != nil {
		return nil, err
	}
	for _, k := range deleted {
		add(&k.Key, Deleted)
	}
	k, err := p.key(ctx, name)
	if err == nil && k != nil {
		add(k, InUse)
	}
	return of, err
}
