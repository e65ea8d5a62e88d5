package kms

import (
	"context"

	"claviger"
	"claviger/keyring"
	"claviger/metastore"
	"claviger/migrate"
)

// history returns the records of migrations in the metastore; nil if there is no metastore.
func (s *Service) history() keyring.History {
	if s.Store == nil {
		return nil
	}
	j := journal{store: s.Store, target: s.Primary.URI()}
	for _, source := range s.Sources {
		j.sources = append(j.sources, source.Provider.URI())
	}
	return j
}

// journal reads the journal of migrations for the ring.
type journal struct {
	store  metastore.Store
	target string // URI
	// sources are the URIs of the sources that decrypt old EDEKs.
	sources []string
}

func (j journal) Origins(ctx context.Context) ([]keyring.Origin, error) {
	list, err := migrate.Origins(ctx, j.store, j.target, j.sources...)
	if err != nil {
		return nil, err
	}
	out := make([]keyring.Origin, len(list))
	for i, o := range list {
		m := claviger.Metadata{Name: o.Key, Attributes: o.Metadata.Attributes}
		out[i] = keyring.Origin{Key: o.Key, Source: o.Source, TakenOver: o.TakenOver, Created: o.Metadata.Created,
			ACLName: m.ACLName(), Folded: o.Folded, Freed: o.Freed != nil,
			Numbered: o.Numbered, Counted: o.Metadata.Versions, Rolled: o.Rolled, Made: o.Made, MadeThere: o.MadeThere}
		if o.Finished != nil {
			out[i].Finished = *o.Finished
		}
	}
	return out, nil
}

func (j journal) Alias(ctx context.Context, name string) (string, bool, error) {
	return metastore.Alias(ctx, j.store, name)
}
