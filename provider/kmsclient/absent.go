package kmsclient

import (
	"context"
	"slices"

	"claviger"
)

// Hadoop's KMS says that a key or a version is absent by {} or [ ]. Ranger's says
// it in other ways too, by version and request: 200 with an empty body, 404 with
// { }, 500 with an exception of Java's. Others say the same when something is
// broken: a keystore entry that is no Hadoop key, a balancer, a full disk. So an
// odd answer alone never means absence. It is asked again, by a question that the
// KMS answers in so many words.

// odd tells an answer that is neither what was asked for nor a refusal.
func odd(err error) bool { return claviger.Is(err, claviger.Internal) }

// confirm returns err, unless that is odd and the metadata of the key says that it
// does not exist: then an error of kind missing, about what was asked for.
func (p *Provider) confirm(ctx context.Context, err error, op, about, key string, missing claviger.Kind) error {
	if err == nil || !odd(err) {
		return err
	}
	list, again := p.metadata(ctx, []string{key})
	if again == nil && list[0] == nil {
		return claviger.E(op, missing, about, nil)
	}
	return err
}

// unlisted reports that the list of names can be read and has no spelling of key.
// Ranger's list has the names in lower case.
func (p *Provider) unlisted(ctx context.Context, key string) bool {
	names, err := p.Keys(ctx)
	fold := claviger.FoldName(key)
	return err == nil && !slices.ContainsFunc(names, func(n string) bool { return claviger.FoldName(n) == fold })
}
