package hsm

import (
	"context"
	"encoding/json"

	"claviger"
	"claviger/metastore"
)

// finishLeft finishes a creation or a roll that another process left, if the token holds the version that the step
// made: it adds the key, or the version, to the store, as the same step does if it is made again. It destroys nothing
// that works, because the store may be an old copy in which the version is in use. It leaves a step alone that it
// cannot finish, and logs why.
func (p *Provider) finishLeft(ctx context.Context, i metastore.Intent, objects int) error {
	const op = "hsm.finish"
	k, err := p.key(ctx, i.Key)
	if err != nil {
		return err
	}
	var planned stepPlan
	why := ""
	switch err := json.Unmarshal(i.Payload, &planned); {
	case err != nil || i.Op == opCreate && planned.ofOlderRelease():
		why = "an older release began it, and did not write down how the key must be"
	case objects != len(i.Refs) || objects != 1:
		why = "the token holds several objects of it"
	case (k == nil) != (i.Op == opCreate):
		why = "it does not fit the metastore"
	}
	if why == "" {
		switch err := p.mayFinish(ctx, op, i.Key, k); {
		case claviger.Is(err, claviger.Invalid):
			why = err.Error()
		case err != nil:
			return err
		}
	}
	if why != "" {
		p.failed.keep(i)
		p.log.Warn("a step was interrupted, and the token holds what it made; claviger does not finish it: make the "+
			"same step again, or see claviger hsm adopt", "key", i.Key, "step", i.Op, "begun", i.Begun, "why", why)
		return nil
	}
	p.changed.Store(true)
	finished, err := p.finishStep(ctx, op, i, k, planned)
	if err != nil || !finished {
		return err
	}
	p.HandleNotice(metastore.Notice{Key: i.Key, Change: metastore.Created}) // the store of one node sends no notices
	p.log.Info("a step that was interrupted was finished: the token held what it had made", "key", i.Key, "step", i.Op,
		"version", claviger.VersionName(i.Key, i.Refs[0].ID))
	return nil
}

// mayFinish makes the checks that a creation or a roll makes before it begins. k is nil for a creation.
func (p *Provider) mayFinish(ctx context.Context, op, key string, k *metastore.Key) error {
	if p.survey.first != nil && p.Survey().At.IsZero() { // refuseHidden would wait, and the checks of watch with it
		return claviger.Errorf(op, claviger.Unavailable, key, "the first survey of the token has not ended")
	}
	if k == nil {
		return p.refuseHidden(ctx, op, key, nil, 1)
	}
	if err := p.holdsCurrent(ctx, op, k); err != nil {
		return err
	}
	return p.refuseHidden(ctx, op, key, k.List, 1)
}

// finishStep takes an interrupted creation or roll of one version, and finishes it. k is the step's key; nil for a
// creation. If the token refuses to use the object, as after a kill within C_GenerateKey of SoftHSM, finishStep
// destroys the object and ends the step. The key's lock is held.
func (p *Provider) finishStep(ctx context.Context, op string, i metastore.Intent, k *metastore.Key,
	planned stepPlan) (finished bool, err error) {
	if i, err = p.store.Take(ctx, i, i.Op); err != nil {
		return false, err
	}
	made, err := p.workingObjects(ctx, i)
	if err != nil {
		return false, err
	}
	if len(made) == 0 {
		return false, p.store.Drop(ctx, i.Key)
	}
	m := claviger.Metadata{Name: i.Key, Cipher: claviger.DefaultCipher, BitLength: planned.Bits,
		Description: planned.Description, Attributes: planned.Attributes, Created: planned.Created}
	if k != nil {
		m = k.Metadata
	}
	v, err := p.ensureObject(ctx, op, i.Key, i.Refs[0], m.BitLength)
	if err != nil {
		return false, err
	}
	if k != nil {
		return true, p.store.FinishRoll(ctx, i, v)
	}
	list := []metastore.Version{v}
	m.Versions = metastore.CountVersions(list)
	return true, p.store.FinishCreate(ctx, i, metastore.Key{Metadata: m, List: list})
}
