package migrate

import "context"

// SourceRights are checks of what the source permits us, which Plan makes, too.
type SourceRights struct {
	Self    *Check // a failure if the source is this server itself; otherwise nil
	Read    Check  // names and metadata of keys
	Decrypt *Check // EDEKs in our own name, as a re-encryption does; nil if the source is not a KMS
	Users   *Check // EDEKs on behalf of Probes.AsUser; nil if the source is not a KMS
}

// SourceRights tries each key of the source: it reads the key's metadata, makes an EDEK, which no file uses, and opens
// it. It changes nothing. If the source does not list its keys, it returns an error.
func (e *Engine) SourceRights(ctx context.Context) (r SourceRights, err error) {
	sv, err := e.survey(ctx, "migrate.SourceRights")
	var facts []HostFacts
	if e.cfg.Probes.Source != nil && len(e.cfg.Probes.Own) > 0 {
		facts = e.cfg.Probes.Source(ctx)
	}
	if c, itself := e.cfg.Probes.itself(ctx, facts, err); itself {
		r.Self = &c
	}
	if err != nil {
		return r, err
	}
	r.Read = e.readable(ctx, sv)
	if list := e.rights(ctx, e.tryRights(ctx, sv)); len(list) == 2 {
		r.Decrypt, r.Users = &list[0], &list[1]
	}
	return r, nil
}
