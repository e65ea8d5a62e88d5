package kmsclient

import (
	"context"
	"slices"

	"claviger"
)

// Hadoop's KMS answers {} or [ ] for an absent key or version. A Ranger KMS also has other answers, depending on its
// release and on the request: 200 with an empty body, 404 with { }, 500 with a Java exception. A KMS also sends such
// answers when something is broken: a keystore entry that is not Hadoop's, a balancer, a full disk. So such an answer
// alone never means that the key is absent. The client then sends another request, whose answer is clear.

// unexpectedAnswer reports whether err is about an answer that is neither valid nor a refusal.
func unexpectedAnswer(err error) bool { return claviger.Is(err, claviger.Internal) }

// confirm returns err. But if the answer was unexpected and the metadata shows that the key does not exist, it returns
// an error of kind missing about the requested name.
func (p *Provider) confirm(ctx context.Context, err error, op, about, key string, missing claviger.Kind) error {
	if err == nil || !unexpectedAnswer(err) {
		return err
	}
	list, metaErr := p.metadata(ctx, []string{key})
	if metaErr == nil && list[0] == nil {
		return claviger.E(op, missing, about, nil)
	}
	return err
}

// unlisted reports whether the KMS returns a list of names without key. It ignores case, because Ranger's list has the
// names in lower case.
func (p *Provider) unlisted(ctx context.Context, key string) bool {
	names, err := p.Keys(ctx)
	fold := claviger.FoldName(key)
	return err == nil && !slices.ContainsFunc(names, func(n string) bool { return claviger.FoldName(n) == fold })
}
