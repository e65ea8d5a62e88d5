package hsm

import (
	"context"
	"encoding/json"
	"slices"

	"claviger"
	"claviger/metastore"
)

// Adopted returns the names whose record was made by an operator's adoption and not by a user: the journal has one of
// the key's versions, and the creation time of its record.
func (p *Provider) Adopted(ctx context.Context, names ...string) ([]string, error) {
	records, err := p.adoptions(ctx)
	if err != nil || len(records) == 0 {
		return nil, err
	}
	names = slices.DeleteFunc(slices.Clone(names), func(name string) bool { return len(records[name]) == 0 })
	keys, err := p.store.Get(ctx, names...)
	if err != nil {
		return nil, err
	}
	var list []string
	for i, k := range keys {
		if k != nil && madeBy(k, records[names[i]]) {
			list = append(list, names[i])
		}
	}
	return list, nil
}

// Retake gives a key the description, attributes and creation time of m. An adoption made the key's record, and m is
// the record that was lost before. The versions stay. Nodes may serve meanwhile. Kinds: KeyNotFound; Invalid if no
// adoption made the record, or if cipher or length differ.
func (p *Provider) Retake(ctx context.Context, m claviger.Metadata) error {
	const op = "hsm.Retake"
	ctx, unlock, err := p.lock(ctx, op, m.Name)
	if err != nil {
		return err
	}
	defer unlock()
	if err := p.mayRecord(ctx); err != nil {
		return err
	}
	k, err := p.key(ctx, m.Name)
	if err != nil {
		return err
	}
	if k == nil {
		return claviger.E(op, claviger.KeyNotFound, m.Name, nil)
	}
	records, err := p.adoptions(ctx)
	switch {
	case err != nil:
		return err
	case !madeBy(k, records[m.Name]):
		return claviger.Errorf(op, claviger.Invalid, m.Name, "key %s was not brought back by claviger hsm adopt, or "+
			"was created again since", claviger.Printable(m.Name))
	case k.Cipher != m.Cipher || k.BitLength != m.BitLength:
		return claviger.Errorf(op, claviger.Invalid, m.Name, "key %s has cipher %s and %d bits here, and %s and %d "+
			"bits there", claviger.Printable(m.Name), k.Cipher, k.BitLength, m.Cipher, m.BitLength)
	}
	if err := p.store.Amend(ctx, m); err != nil {
		return err
	}
	for _, v := range k.List {
		p.versions.Delete(claviger.VersionName(m.Name, v.ID))
	}
	return nil
}

// adoptions reads, by key, the journal's records of adoptions that made a key's record.
func (p *Provider) adoptions(ctx context.Context) (map[string][]adopted, error) {
	records, err := p.store.Records(ctx, journalRun)
	if err != nil {
		return nil, err
	}
	byKey := map[string][]adopted{}
	for _, r := range records {
		var rec adopted
		if err := json.Unmarshal(r.Data, &rec); err != nil {
			return nil, claviger.Errorf("hsm.Adopted", claviger.Internal, "",
				"the journal's record %q of run %s is damaged: %w; restore the metastore from a backup", r.Item,
				journalRun, err)
		}
		if rec.Made != nil && !rec.Aside { // the run also has records of keys that were given up
			byKey[rec.Key] = append(byKey[rec.Key], rec)
		}
	}
	return byKey, nil
}

// madeBy reports whether one of the adoptions made the key's record. A key that was made later under the name has other
// versions. A record that was retaken has another creation time.
func madeBy(k *metastore.Key, records []adopted) bool {
	return slices.ContainsFunc(records, func(rec adopted) bool {
		return rec.Made.UnixMilli() == k.Created.UnixMilli() &&
			slices.ContainsFunc(k.List, func(v metastore.Version) bool {
				return slices.Contains(rec.Objects,
					v.Object)
			})
	})
}
