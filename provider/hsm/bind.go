package hsm

import (
	"context"
	"errors"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"claviger"
	"claviger/metastore"
)

// Settings of the metastore.
const (
	settingSerial = "hsm.token.serial"
	settingLabel  = "hsm.token.label"
)

const (
	// verifyAtStart is how many versions are verified before the provider serves;
	// the others are before their first use, and in the background.
	verifyAtStart = 64
	// verifyAtOnce is how many of them side by side.
	verifyAtOnce = 8
	// verifyPause lies between two of the background's, which must not be in
	// anybody's way.
	verifyPause = 50 * time.Millisecond
)

// bind makes sure that store and token belong together: by the token's serial
// number, and by check values where that differs, since a cloned or restored
// token is another with the same keys. On its own token a version that is missing
// or another is refused by itself (see CheckKeys), unless none fits. It returns the
// versions that remain to be verified, and how the two stand to each other.
func (p *Provider) bind(ctx context.Context) (later []string, st standing, err error) {
	info := p.tok.Info()
	serial, known, err := p.store.Setting(ctx, settingSerial)
	if err != nil {
		return nil, st, err
	}
	label, _, err := p.store.Setting(ctx, settingLabel)
	if err != nil {
		return nil, st, err
	}
	first, later, err := p.toVerify(ctx)
	if err != nil {
		return nil, st, err
	}
	all := len(first)
	if first, err = p.notGivenUp(ctx, first); err != nil {
		return nil, st, err
	}
	wrong, err := p.verifyAll(ctx, first)
	if err != nil {
		return nil, st, err
	}
	if len(wrong) > 0 {
		err := wrong[0]
		if known && serial != info.Serial {
			return nil, st, claviger.Errorf("hsm.Open", claviger.Invalid, "",
				"the metastore %s belongs to token %q (serial %s), and this is token %s: %w; name the right token "+
					"in the keystore file, or the metastore of this token by claviger.metastore.uri",
				p.store.URI(), label, serial, tokenName(info), err)
		}
		if len(wrong) == len(first) {
			return nil, st, p.noneFits(ctx, err)
		}
		for _, err := range wrong {
			p.log.Error("a key version of the metastore is not on this node's token as it should be; it is refused, "+
				"others are served", "err", err)
		}
	}
	if st, err = p.stands(ctx, all, all-len(first)+len(wrong)); err != nil {
		return nil, st, err
	}
	switch {
	case !p.access.Changes(), known && serial == info.Serial && label == info.Label:
		return later, st, nil
	case known && serial != info.Serial && all == 0:
		shelved, err := p.store.Shelved(ctx)
		if err != nil {
			return nil, st, err
		}
		for _, k := range shelved {
			if err := p.verifyShelved(ctx, k); err != nil {
				return nil, st, claviger.Errorf("hsm.Open", claviger.Invalid, "",
					"the metastore %s belongs to token %q (serial %s), which holds keys that were deleted and can "+
						"come back, and this is token %s: %w; name the right token in the keystore file, or another "+
						"metastore by claviger.metastore.uri",
					p.store.URI(), label, serial, tokenName(info), err)
			}
		}
		if len(shelved) > 0 {
			break // a clone
		}
		// No check value can tell whether this is a clone. Nothing is lost by taking it,
		// unless keys were begun on the other.
		pending, err := p.store.Pending(ctx)
		if err != nil {
			return nil, st, err
		}
		if len(pending) > 0 {
			return nil, st, claviger.Errorf("hsm.Open", claviger.Invalid, "",
				"the metastore %s belongs to token %q (serial %s), where the step %q of key %q was broken off, and "+
					"this is token %s; name the right token in the keystore file, or another metastore by "+
					"claviger.metastore.uri",
				p.store.URI(), label, serial, pending[0].Op, pending[0].Key, tokenName(info))
		}
		p.log.Warn("the metastore, which holds no key, was bound to another token", "was", label, "wasSerial", serial,
			"is", info.Label, "isSerial", info.Serial)
	case known:
		p.log.Warn("the metastore was bound to another token whose keys this one has: a clone or a restored backup",
			"was", label, "wasSerial", serial, "is", info.Label, "isSerial", info.Serial)
	}
	st.moved = true
	return later, st, nil
}

// noneFits says that no version which was looked at is on the token as it should be; err
// is of one of them.
func (p *Provider) noneFits(ctx context.Context, err error) error {
	h, herr := p.Holdings(ctx)
	if herr != nil {
		return herr
	}
	lacks := ""
	cure := "restore the token or the metastore from the backup that fits the other"
	if len(h.All()) > 0 {
		lacks = "; the token lacks these key versions of it: " + h.Names()
		if hidden := p.tok.Hidden(); hidden != nil {
			return claviger.Errorf("hsm.Open", claviger.Invalid, "", "token %s lacks these key versions of "+
				"metastore %s: %s; they may be in these files: %w",
				tokenName(p.tok.Info()), p.store.URI(), h.Names(), hidden)
		}
		cure += "; if these keys are lost for good, " + p.adopt("--rebind") + " gives them up by name"
	}
	return claviger.Errorf("hsm.Open", claviger.Invalid, "", "metastore %s and token %s do not fit together%s: %w; %s",
		p.store.URI(), tokenName(p.tok.Info()), lacks, err, cure)
}

// stands says how store and token stand to each other, of which so many versions
// were looked at, and so many are wrong.
func (p *Provider) stands(ctx context.Context, seen, wrong int) (st standing, err error) {
	st.fits = seen > wrong
	if seen > 0 {
		return st, nil
	}
	shelved, err := p.store.Shelved(ctx)
	if err != nil {
		return st, err
	}
	st.empty = len(shelved) == 0
	for _, k := range shelved {
		for _, v := range k.List {
			e, err := newEntry(&k.Metadata, v)
			if err != nil {
				return st, err
			}
			err = p.verify(ctx, e)
			p.refused.Delete(e.name) // no client can ask for it
			if err == nil {
				st.fits = true
				return st, nil
			}
			if !unfit(err) {
				return st, err
			}
		}
	}
	return st, nil
}

// noteToken has the store remember its token.
func (p *Provider) noteToken(ctx context.Context) error {
	info := p.tok.Info()
	return errors.Join(p.store.SetSetting(ctx, settingSerial, info.Serial),
		p.store.SetSetting(ctx, settingLabel, info.Label))
}

// toVerify returns all versions, the newest of each key first, in two parts.
func (p *Provider) toVerify(ctx context.Context) (first, later []string, err error) {
	var current, older []string
	err = metastore.Each(ctx, p.store, func(k *metastore.Key) {
		for i, v := range k.List {
			name := claviger.VersionName(k.Name, v.ID)
			if i == len(k.List)-1 {
				current = append(current, name)
			} else {
				older = append(older, name)
			}
		}
	})
	if err != nil {
		return nil, nil, err
	}
	all := append(current, older...)
	n := min(verifyAtStart, len(all))
	return all[:n], all[n:], nil
}

// GivenUp returns those of the versions that an operator has given up on this token.
func (p *Provider) GivenUp(ctx context.Context, versions []string) ([]string, error) {
	kept, err := p.notGivenUp(ctx, versions)
	if err != nil || len(kept) == len(versions) {
		return nil, err
	}
	var given []string
	for _, v := range versions {
		if slices.Contains(kept, v) {
			continue
		}
		switch _, _, err := p.store.ByVersion(ctx, v); {
		case err == nil:
			given = append(given, v)
		case !claviger.Is(err, claviger.VersionNotFound): // that is of a deleted key
			return nil, err
		}
	}
	return given, nil
}

// notGivenUp is a list without the versions that were given up on this token.
func (p *Provider) notGivenUp(ctx context.Context, versions []string) ([]string, error) {
	given, err := p.givenUp(ctx)
	if err != nil || len(given) == 0 {
		return versions, err
	}
	var kept []string
	for _, v := range versions {
		_, stored, err := p.store.ByVersion(ctx, v)
		if err == nil && !given[stored.Object] {
			kept = append(kept, v)
		} else if err != nil && !claviger.Is(err, claviger.VersionNotFound) {
			return nil, err
		}
	}
	return kept, nil
}

// verifyAll returns what is wrong with single versions, in the order of their texts; an
// error where the token or the store can't be asked.
func (p *Provider) verifyAll(ctx context.Context, versions []string) (wrong []error, err error) {
	var mu sync.Mutex
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(verifyAtOnce)
	for _, v := range versions {
		g.Go(func() error {
			e, err := p.entry(ctx, v)
			if claviger.Is(err, claviger.VersionNotFound) {
				return nil // deleted since
			}
			if err != nil {
				return err
			}
			err = p.verify(ctx, e)
			if unfit(err) {
				if claviger.Is(p.gone(ctx, "hsm.Open", e, err), claviger.VersionNotFound) {
					return nil // deleted since
				}
				mu.Lock()
				defer mu.Unlock()
				wrong = append(wrong, err)
				return nil
			}
			return err
		})
	}
	err = g.Wait()
	slices.SortFunc(wrong, func(a, b error) int { return strings.Compare(a.Error(), b.Error()) })
	return wrong, err
}

// CheckKeys names the versions that were found to be missing on this node's token,
// or to be others there. They are refused, and verified again at each use; other
// versions are served.
func (p *Provider) CheckKeys(ctx context.Context) error {
	if err := p.ready("hsm.CheckKeys", ""); err != nil {
		return err
	}
	found := p.Holds().Lost
	for k := range p.refused.Range {
		name, _ := k.(string)
		found = append(found, name)
	}
	if len(found) == 0 {
		return nil
	}
	slices.Sort(found)
	given, err := p.givenUp(ctx)
	if err != nil {
		return err
	}
	var names []string
	for _, name := range slices.Compact(found) {
		_, v, err := p.store.ByVersion(ctx, name)
		if claviger.Is(err, claviger.VersionNotFound) { // deleted since
			p.refused.Delete(name)
			continue
		}
		if err == nil && given[v.Object] {
			continue
		}
		names = append(names, name)
	}
	if len(names) == 0 {
		return nil
	}
	// SoftHSM shows a process no object file that was put back under it.
	cure := "synchronise the HSM with that of the other nodes, or restore it from a backup; " +
		"where hsm inspect shows the keys and this stays for a minute, restart the server"
	if hidden := p.tok.Hidden(); hidden != nil {
		cure = "they may be in these files: " + hidden.Error()
	}
	return claviger.Errorf("hsm.CheckKeys", claviger.Unavailable, "",
		"token %s does not hold these key versions of metastore %s, or holds others of their names, so this node "+
			"refuses them: %s; %s",
		tokenName(p.tok.Info()), p.store.URI(), some(names), cure)
}

// verifyLater goes through the rest, slowly. What it finds wrong is told, and
// refused when it is used.
func (p *Provider) verifyLater(ctx context.Context, versions []string) {
	for _, v := range versions {
		select {
		case <-ctx.Done():
			return
		case <-time.After(verifyPause):
		}
		e, err := p.entry(ctx, v)
		if err == nil {
			err = p.verify(ctx, e)
			if gone := p.gone(ctx, "hsm.verify", e, err); claviger.Is(gone, claviger.VersionNotFound) {
				err = gone
			}
		}
		switch {
		case err == nil, ctx.Err() != nil, claviger.Is(err, claviger.VersionNotFound): // the last: deleted since
		case claviger.Is(err, claviger.Unavailable) && !unfit(err):
			p.log.Warn("a key version could not be verified; it will be before its first use", "version", v, "err",
				err)
		default:
			p.log.Error("a key version on the token is not as the metastore says; it is not used", "version", v, "err",
				err)
		}
	}
}

// Latency times small round trips to the HSM: encryptions of one block where
// there is a key, else questions for the token's state.
func (p *Provider) Latency(ctx context.Context) ([]time.Duration, error) {
	const samples = 20
	first, _, err := p.toVerify(ctx)
	if err != nil {
		return nil, err
	}
	var times []time.Duration
	block := make([]byte, 16)
	for range samples {
		began := time.Now()
		if len(first) > 0 {
			err = p.EncryptBlocks(ctx, first[0], block)
		} else {
			err = p.tok.Ping(ctx)
		}
		if err != nil {
			return nil, err
		}
		times = append(times, time.Since(began))
	}
	return times, nil
}

// objectSize is what a key object takes on a token, about: 32 bytes of key, and
// its attributes.
const objectSize = 512

// Room tells how many more keys the token holds, as far as it says.
func (p *Provider) Room(context.Context) (keys int, known bool, err error) {
	free := p.tok.Info().FreePrivateMemory
	return int(min(free/objectSize, 1<<30)), free > 0, nil
}
