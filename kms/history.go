package kms

import (
	"context"

	"claviger"
	"claviger/keyring"
	"claviger/metastore"
	"claviger/migrate"
)

// history is what migrations have left in the metastore; nil where there is none.
func (s *Service) history() keyring.History {
	if s.Store == nil {
		return nil
	}
	p := past{store: s.Store, target: s.Primary.URI()}
	for _, source := range s.Sources {
		p.sources = append(p.sources, source.Provider.URI())
	}
	return p
}

// past reads the journal for the ring.
type past struct {
	store  metastore.Store
	target string // URI
	// sources are the URIs of what is asked for old EDEKs.
	sources []string
}

func (p past) Origins(ctx context.Context) ([]keyring.Origin, error) {
	list, err := migrate.Origins(ctx, p.store, p.target, p.sources...)
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

func (p past) Alias(ctx context.Context, name string) (string, bool, error) {
	return metastore.Alias(ctx, p.store, name)
}
