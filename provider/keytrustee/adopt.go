package keytrustee

import (
	"context"
	"slices"
	"strings"
	"time"

	"claviger"
	"claviger/trustee"
)

// Aside is a version that the Key Trustee Server holds as a deleted deposit and that no document
// names: claviger trustee recover kept it, or a change was broken off.
type Aside struct {
	Version string    `json:"version"`
	Made    time.Time `json:"made"`

	uuid string
}

// Aside returns these versions, by name.
func (p *Provider) Aside(ctx context.Context) ([]Aside, error) {
	const op = "keytrustee.Aside"
	if err := p.ready(ctx, op, ""); err != nil {
		return nil, err
	}
	list, err := p.setAside(ctx, op, versionPrefix)
	if err != nil {
		return nil, err
	}
	named := map[string]map[string]bool{}
	for _, a := range list {
		name, _ := claviger.KeyOfVersion(a.Version)
		if named[name] == nil {
			if named[name], err = p.others(ctx, op, &keyDoc{Name: name}); err != nil {
				return nil, err
			}
		}
	}
	return slices.DeleteFunc(list, func(a Aside) bool {
		name, _ := claviger.KeyOfVersion(a.Version)
		return named[name][a.uuid]
	}), nil
}

// setAside lists deleted deposits of versions. The box has checked their signatures.
func (p *Provider) setAside(ctx context.Context, op, prefix string) ([]Aside, error) {
	var list []Aside
	err := p.list(ctx, prefix, true, func(d *trustee.Deposit) {
		if kind, _ := trustee.KeyOfLabel(d.Label); kind == versionPrefix {
			list = append(list, Aside{strings.TrimPrefix(d.Label, versionPrefix), d.Created, d.UUID})
		}
	})
	if err != nil {
		return nil, failed(op, "", err)
	}
	return list, nil
}

// Adopt merges a version of Aside into the key of its name, before the current version. It may be
// repeated after it was broken off. Kinds VersionNotFound if there is no such version, KeyNotFound
// if there is no such key, Invalid if the version's length is not the key's.
func (p *Provider) Adopt(ctx context.Context, version string) error {
	const op = "keytrustee.Adopt"
	if err := p.ready(ctx, op, version); err != nil {
		return err
	}
	name, ok := claviger.KeyOfVersion(version)
	if !ok || holdable(name) != nil {
		return claviger.E(op, claviger.VersionNotFound, version, nil)
	}
	// changeable is not called: a server that lacks what it acknowledged may lack this version.
	if err := p.cfg.place.check(p.cfg.Now()); err != nil {
		return claviger.E(op, claviger.Unavailable, version, err)
	}
	list, err := p.setAside(ctx, op, versionPrefix+version)
	if err != nil {
		return err
	}
	list = slices.DeleteFunc(list, func(a Aside) bool { return a.Version != version })
	docs, err := p.deletedDocs(ctx, op, name)
	if err != nil {
		return err
	}
	if len(list) == 0 || len(having(docs, version)) > 0 {
		return claviger.Errorf(op, claviger.VersionNotFound, version,
			"the Key Trustee Server keeps no such version aside: it was adopted, belongs to a deleted key, or was "+
				"not recovered")
	}
	ref := versionRef{version, list[0].uuid}
	// The document names the version before the version is live, so that clean does not remove it.
	err = p.replace(ctx, op, name, nil, func(k *keyDoc) (string, error) {
		if v, there := k.find(version); there {
			if v != ref {
				return "", claviger.Errorf(op, claviger.Invalid, version, "key %q has a version of that name in "+
					"deposit %s", name, v.UUID)
			}
			return keyPrefix + name, nil
		}
		k.Versions = slices.Insert(k.Versions, len(k.Versions)-1, ref)
		return keyPrefix + name, nil
	})
	if err != nil {
		return err
	}
	if err := p.cfg.Box.Undelete(ctx, ref.UUID); err != nil && !claviger.Is(err, claviger.KeyNotFound) {
		return failed(op, version, err)
	}
	v, err := p.version(ctx, op, version)
	if claviger.Is(err, claviger.Internal) { // its content does not fit its label, or has another length
		return p.unadopt(ctx, op, name, ref, err)
	}
	v.Material.Wipe()
	return err
}

// unadopt removes a version that cannot be used from the key again.
func (p *Provider) unadopt(ctx context.Context, op, name string, ref versionRef, why error) error {
	err := p.replace(ctx, op, name, nil, func(k *keyDoc) (string, error) {
		k.Versions = slices.DeleteFunc(k.Versions, func(v versionRef) bool { return v == ref })
		return keyPrefix + name, nil
	})
	if err == nil {
		err = p.cfg.Box.Delete(ctx, ref.UUID)
	}
	if err != nil {
		return claviger.Errorf(op, claviger.Unavailable, ref.Name, "it is no version of the key (%w), and cannot be "+
			"taken out of it again: %w", why, err)
	}
	return claviger.Errorf(op, claviger.Invalid, ref.Name, "it is no version of the key as it is now, which stays as "+
		"it was: %w", why)
}
