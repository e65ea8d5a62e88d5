package keytrustee

import (
	"context"
	"slices"
	"strings"
	"time"

	"claviger"
	"claviger/trustee"
)

// Aside is a version that the Key Trustee Server has as a deleted deposit, and that no document names. claviger trustee
// recover keeps such versions. A change that was interrupted also leaves one.
type Aside struct {
	Version string    `json:"version"`
	Made    time.Time `json:"made"`

	uuid string
}

// Aside returns all versions that are set aside, sorted by name.
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
			if named[name], err = p.versionsInOtherDocs(ctx, op, &keyDoc{Name: name}); err != nil {
				return nil, err
			}
		}
	}
	return slices.DeleteFunc(list, func(a Aside) bool {
		name, _ := claviger.KeyOfVersion(a.Version)
		return named[name][a.uuid]
	}), nil
}

// setAside lists the deleted deposits of versions. The box has verified their signatures.
func (p *Provider) setAside(ctx context.Context, op, prefix string) ([]Aside, error) {
	var list []Aside
	err := p.list(ctx, prefix, true, func(d *trustee.Deposit) {
		if kind, _ := trustee.KeyOfLabel(d.Label); kind == versionPrefix {
			list = append(list, Aside{strings.TrimPrefix(d.Label, versionPrefix), d.Created, d.UUID})
		}
	})
	if err != nil {
		return nil, boxError(op, "", err)
	}
	return list, nil
}

// Adopt adds a version of Aside to its key, before the current version. A call that was interrupted may be repeated.
// Kinds VersionNotFound if no such version is set aside, KeyNotFound if the key does not exist, Invalid if the version
// has another length than the key.
func (p *Provider) Adopt(ctx context.Context, version string) error {
	const op = "keytrustee.Adopt"
	if err := p.ready(ctx, op, version); err != nil {
		return err
	}
	name, ok := claviger.KeyOfVersion(version)
	if !ok || checkName(name) != nil {
		return claviger.E(op, claviger.VersionNotFound, version, nil)
	}
	// checkChange is not called: it refuses every change after the server lost a version, and this may be that version.
	if err := p.cfg.watch.check(p.cfg.Now()); err != nil {
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
	if len(list) == 0 || len(withVersion(docs, version)) > 0 {
		return claviger.Errorf(op, claviger.VersionNotFound, version,
			"the Key Trustee Server has set no such version aside: it was adopted, belongs to a deleted key, or was "+
				"not recovered")
	}
	ref := versionRef{version, list[0].uuid}
	// Name the version in the document before it becomes live. Otherwise clean could remove it.
	err = p.replace(ctx, op, name, nil, func(k *keyDoc) (string, error) {
		if v, found := k.find(version); found {
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
		return boxError(op, version, err)
	}
	v, err := p.version(ctx, op, version)
	if claviger.Is(err, claviger.Internal) { // its content does not match its label, or has another length
		return p.unadopt(ctx, op, name, ref, err)
	}
	v.Material.Wipe()
	return err
}

// unadopt removes an adopted version from the key again. cause is the reason why the version cannot be used.
func (p *Provider) unadopt(ctx context.Context, op, name string, ref versionRef, cause error) error {
	err := p.replace(ctx, op, name, nil, func(k *keyDoc) (string, error) {
		k.Versions = slices.DeleteFunc(k.Versions, func(v versionRef) bool { return v == ref })
		return keyPrefix + name, nil
	})
	if err == nil {
		err = p.cfg.Box.Delete(ctx, ref.UUID)
	}
	if err != nil {
		return claviger.Errorf(op, claviger.Unavailable, ref.Name, "it is not a version of the key (%w), and could "+
			"not be removed from the key again: %w", cause, err)
	}
	return claviger.Errorf(op, claviger.Invalid, ref.Name, "it is not a version of the existing key, and the key was "+
		"not changed: %w", cause)
}
