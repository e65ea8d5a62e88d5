package hsm

import (
	"context"
	"errors"
	"slices"
	"time"

	"claviger"
	"claviger/metastore"
	"claviger/pkcs11"
)

// Settings of the metastore: the token to which it is bound.
const (
	settingSerial = "hsm.token.serial"
	settingLabel  = "hsm.token.label"
)

const (
	// verifyAtStart is the number of versions that are verified before the provider serves. The other versions are
	// verified in the background, and before their first use.
	verifyAtStart = 64
	// verifyConcurrency is the number of versions that are verified at the same time before the provider serves.
	verifyConcurrency = 8
	// verifyPause is the pause between two verifications in the background, which must not slow down requests.
	verifyPause = 50 * time.Millisecond
)

// bind makes sure that store and token belong together. It verifies the check values of some versions, because a clone
// of the store's token has another serial number but the same keys. If versions are missing on the token or differ
// there, a token with another serial number is refused. On the token with the recorded serial number, only these
// versions are refused (see CheckKeys), unless all verified versions are missing or differ. A version with which the
// token's calls fail or hang is left for later, if the token has proved another version. bind returns the relation of
// store and token.
func (p *Provider) bind(ctx context.Context) (r relation, err error) {
	was, err := p.recordedToken(ctx)
	if err != nil {
		return r, err
	}
	first, err := p.toVerify(ctx)
	if err != nil {
		return r, err
	}
	all := len(first)
	if first, err = p.notGivenUp(ctx, first); err != nil {
		return r, err
	}
	found, err := p.verifyAll(ctx, first)
	if err == nil {
		err = p.handleUnknown(ctx, was, found)
	}
	if err != nil {
		return r, err
	}
	if len(found.wrong) > 0 {
		if err := p.handleWrong(ctx, was, found.wrong, len(first)); err != nil {
			return r, err
		}
	}
	if r, err = p.relationOf(ctx, all, all-len(first)+len(found.wrong)+len(found.unknown)); err != nil {
		return r, err
	}
	info := p.tok.Info()
	switch {
	case !p.access.Changes(), was.known && was.serial == info.Serial && was.label == info.Label:
		return r, nil
	case was.known && was.serial != info.Serial && all == 0:
		if err := p.moveWithoutKeys(ctx, was); err != nil {
			return r, err
		}
	case was.known:
		p.log.Warn("the metastore was bound to another token whose keys this one has: a clone or a restored backup",
			"was", was.label, "wasSerial", was.serial, "is", info.Label, "isSerial", info.Serial)
	}
	r.moved = true
	return r, nil
}

// recordedToken is the token that the store records: the store is bound to this token.
type recordedToken struct {
	serial, label string
	known         bool // false: the store was never bound
}

func (p *Provider) recordedToken(ctx context.Context) (t recordedToken, err error) {
	if t.serial, t.known, err = p.store.Setting(ctx, settingSerial); err != nil {
		return t, err
	}
	t.label, _, err = p.store.Setting(ctx, settingLabel)
	return t, err
}

// handleWrong handles versions that are missing on the token or differ there: wrong has their errors. verified counts
// all versions that were compared. On the store's own token, handleWrong logs the errors, and the other versions are
// served. On another token, and if all compared versions are wrong, handleWrong returns an error. It does not log
// missing versions for a command that shows what is on the token, because the command reports them itself.
func (p *Provider) handleWrong(ctx context.Context, was recordedToken, wrong []error, verified int) error {
	info := p.tok.Info()
	if was.known && was.serial != info.Serial {
		return claviger.Errorf("hsm.Open", claviger.Invalid, "",
			"the metastore %s belongs to token %q (serial %s), and this is token %s: %w; name the right token "+
				"in the keystore file, or the metastore of this token by claviger.metastore.uri, and restart the "+
				"server",
			p.store.URI(), was.label, was.serial, tokenName(info), wrong[0])
	}
	if len(wrong) == verified {
		return p.noneFitsError(ctx, wrong[0])
	}
	if p.access.toleratesMisfit() {
		wrong = slices.DeleteFunc(wrong, func(err error) bool { return !errors.Is(err, errMismatch) })
		if len(wrong) > 0 && p.access == Inspect {
			return claviger.Errorf("hsm.Open", claviger.Invalid, "", "token %s holds another key under the name of a "+
				"key version of metastore %s, of %d of those that were compared: %w; %s", tokenName(info),
				p.store.URI(), len(wrong), wrong[0], p.cureWrong())
		}
	}
	for _, err := range wrong {
		p.log.Error("a key version of the metastore is missing on this node's token, or differs there; requests for "+
			"this version are refused, other versions are served", "err", err)
	}
	return nil
}

// moveWithoutKeys refuses to move a store without live keys to another token, unless that token holds every deleted key
// of the store, or no key or step depends on the former token.
func (p *Provider) moveWithoutKeys(ctx context.Context, was recordedToken) error {
	info := p.tok.Info()
	deleted, err := p.store.DeletedKeys(ctx)
	if err != nil {
		return err
	}
	for _, k := range deleted {
		if err := p.verifyDeleted(ctx, k); err != nil {
			return claviger.Errorf("hsm.Open", claviger.Invalid, "",
				"the metastore %s belongs to token %q (serial %s), which holds keys that were deleted and can "+
					"come back, and this is token %s: %w; name the right token in the keystore file, or another "+
					"metastore by claviger.metastore.uri, and restart the server",
				p.store.URI(), was.label, was.serial, tokenName(info), err)
		}
	}
	if len(deleted) > 0 {
		return nil // the token is a clone
	}
	// Without keys, no check value can show whether this token is a clone. Binding the store to this token loses
	// nothing, unless a step began to make keys on the former token.
	pending, err := p.store.Pending(ctx)
	if err != nil {
		return err
	}
	if len(pending) > 0 {
		return claviger.Errorf("hsm.Open", claviger.Invalid, "",
			"the metastore %s belongs to token %q (serial %s), where the step %q of key %q was interrupted, and "+
				"this is token %s; name the right token in the keystore file, or another metastore by "+
				"claviger.metastore.uri, and restart the server",
			p.store.URI(), was.label, was.serial, pending[0].Op, pending[0].Key, tokenName(info))
	}
	p.log.Warn("the metastore, which holds no key, was bound to another token", "was", was.label,
		"wasSerial", was.serial, "is", info.Label, "isSerial", info.Serial)
	return nil
}

// noneFitsError returns the error if all compared versions are missing on the token or differ there. err is the error
// of one of them.
func (p *Provider) noneFitsError(ctx context.Context, err error) error {
	h, herr := p.Holdings(ctx)
	if herr != nil {
		return herr
	}
	lacks := ""
	cure := "restore the token or the metastore from the backup that fits the other"
	if len(h.All()) > 0 {
		lacks = "; the token lacks these key versions of the metastore: " + h.Names()
		if hidden := p.tok.Hidden(); hidden != nil {
			return claviger.Errorf("hsm.Open", claviger.Invalid, "", "token %s lacks these key versions of "+
				"metastore %s: %s; they may be in these files: %w",
				tokenName(p.tok.Info()), p.store.URI(), h.Names(), hidden)
		}
		cure += "; if these keys are lost for good, " + p.adoptCommandLine("--rebind") + " gives them up by name"
	}
	return claviger.Errorf("hsm.Open", claviger.Invalid, "", "metastore %s and token %s do not fit together%s: %w; %s",
		p.store.URI(), tokenName(p.tok.Info()), lacks, err, cure)
}

// relationOf returns the relation of store and token. seen counts the versions that were compared. wrong counts the
// compared versions that are missing or differ.
func (p *Provider) relationOf(ctx context.Context, seen, wrong int) (r relation, err error) {
	r.fits = seen > wrong
	if seen > 0 {
		return r, nil
	}
	deleted, err := p.store.DeletedKeys(ctx)
	if err != nil {
		return r, err
	}
	r.empty = len(deleted) == 0
	for _, k := range deleted {
		for _, v := range k.List {
			e, err := newEntry(&k.Metadata, v)
			if err != nil {
				return r, err
			}
			err = p.verify(ctx, e)
			p.refused.Delete(e.name) // no client can ask for a deleted version
			if err == nil {
				r.fits = true
				return r, nil
			}
			if !isUnusable(err) {
				return r, err
			}
		}
	}
	return r, nil
}

// recordToken stores the token's serial number and label in the store.
func (p *Provider) recordToken(ctx context.Context) error {
	info := p.tok.Info()
	return errors.Join(p.store.SetSetting(ctx, settingSerial, info.Serial),
		p.store.SetSetting(ctx, settingLabel, info.Label))
}

// toVerify returns the versions to verify before the provider serves: the newest ones of the first keys, and if there
// are few keys, older ones too. It takes no longer if there are many keys.
func (p *Provider) toVerify(ctx context.Context) (first []string, err error) {
	current, older, _, err := p.versionsOfPage(ctx, "")
	return slices.Concat(current, older)[:min(verifyAtStart, len(current)+len(older))], err
}

// versionsOfPage returns the versions of a page of keys, the newest one of each key and the older ones, and where the
// next page begins.
func (p *Provider) versionsOfPage(ctx context.Context, from string) (current, older []string, next string, err error) {
	ctx = metastore.AllowIncomplete(ctx)
	names, next, err := p.store.Page(ctx, from, verifyAtStart)
	if err != nil || len(names) == 0 {
		return nil, nil, "", err
	}
	keys, err := p.store.Get(ctx, names...)
	if err != nil {
		return nil, nil, "", err
	}
	for _, k := range keys {
		if k == nil {
			continue // deleted meanwhile
		}
		for i, v := range k.List {
			name := claviger.VersionName(k.Name, v.ID)
			if i == len(k.List)-1 {
				current = append(current, name)
			} else {
				older = append(older, name)
			}
		}
	}
	return current, older, next, nil
}

// GivenUp returns the versions, of the given ones, that an operator has given up on this token. It leaves out versions
// of deleted keys.
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
		case !claviger.Is(err, claviger.VersionNotFound): // VersionNotFound: it belongs to a deleted key
			return nil, err
		}
	}
	return given, nil
}

// notGivenUp returns the versions that were not given up on this token.
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

// CheckKeys returns an error that names the versions that are missing on this node's token or differ there. Requests
// for these versions are refused, and each request verifies its version again. Other versions are served.
func (p *Provider) CheckKeys(ctx context.Context) error {
	if err := p.ready("hsm.CheckKeys", ""); err != nil {
		return err
	}
	found := p.LastHoldings().Lost
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
		if claviger.Is(err, claviger.VersionNotFound) { // deleted meanwhile
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
	// SoftHSM does not show a running process an object file that somebody put back.
	cure := "synchronise the HSM with the HSM of the other nodes, or restore it from a backup; " +
		"if hsm inspect shows the keys and this message stays for a minute, restart the server"
	if hidden := p.tok.Hidden(); hidden != nil {
		cure = "they may be in these files: " + hidden.Error()
	}
	return claviger.Errorf("hsm.CheckKeys", claviger.Unavailable, "",
		"token %s does not hold these key versions of metastore %s, or holds other keys under their names, so this "+
			"node refuses them: %s; %s",
		tokenName(p.tok.Info()), p.store.URI(), summarize(names), cure)
}

// verifyLater verifies all versions, slowly: first the newest one of each key, then the older ones. A version that was
// verified before costs nothing. verifyLater logs what is wrong; a request for such a version is refused.
func (p *Provider) verifyLater(ctx context.Context) {
	for _, newest := range []bool{true, false} {
		for from, more := "", true; more; {
			current, older, next, err := p.versionsOfPage(ctx, from)
			if ctx.Err() != nil {
				return
			}
			if err != nil {
				p.log.Warn("the key versions to verify could not be read; each is verified before its first use, and "+
					"the next attempt follows", "err", err, "in", watchPause)
				if !sleep(ctx, watchPause) {
					return
				}
				continue
			}
			versions := older
			if newest {
				versions = current
			}
			for _, v := range versions {
				if !p.verifyOneLater(ctx, v) {
					return
				}
			}
			from, more = next, next != ""
		}
	}
}

// sleep returns true after that time, and false if ctx ends before.
func sleep(ctx context.Context, d time.Duration) bool {
	select {
	case <-ctx.Done():
		return false
	case <-time.After(d):
		return true
	}
}

// verifyOneLater verifies a version after a pause. It returns false if ctx has ended.
func (p *Provider) verifyOneLater(ctx context.Context, v string) bool {
	if p.isVerified(v) {
		return ctx.Err() == nil
	}
	if !sleep(ctx, verifyPause) {
		return false
	}
	e, err := p.entry(ctx, v)
	if err == nil {
		err = p.verify(ctx, e)
		if gone := p.missingOnToken(ctx, "hsm.verify", e, err); claviger.Is(gone, claviger.VersionNotFound) {
			err = gone
		}
	}
	switch {
	case err == nil, ctx.Err() != nil, claviger.Is(err, claviger.VersionNotFound): // the last: deleted meanwhile
	case claviger.Is(err, claviger.Unavailable) && !isUnusable(err):
		p.log.Warn("a key version could not be verified; it is verified before its first use", "version", v, "err",
			err)
	case p.wasGivenUp(ctx, v):
		p.log.Info("a key version that was given up on this token is still not there; it is not used", "version", v)
	default:
		p.log.Error("a key version on the token is not as the metastore says; it is not used", "version", v, "err",
			err)
	}
	return true
}

// wasGivenUp reports whether an operator has given a version up on this token. If that cannot be read, it returns
// false.
func (p *Provider) wasGivenUp(ctx context.Context, version string) bool {
	given, err := p.GivenUp(ctx, []string{version})
	return err == nil && len(given) > 0
}

// Latency measures short calls of the HSM: encryptions of one block if there is a key, else requests for the state of
// the token.
func (p *Provider) Latency(ctx context.Context) ([]time.Duration, error) {
	const samples = 20
	first, err := p.toVerify(ctx)
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

// objectSize is about how many bytes a key object takes on a token: 32 bytes of key, and its attributes.
const objectSize = 512

// Room returns how many more keys fit on the token. known is false if the token does not say.
func (p *Provider) Room(context.Context) (keys int, known bool, err error) {
	free := p.tok.Info().FreePrivateMemory
	return int(min(free/objectSize, 1<<30)), free > 0, nil
}

// TryKey makes a key on the token as a server does, encrypts with it, and destroys it again.
func (p *Provider) TryKey(ctx context.Context) error { return pkcs11.TryKey(ctx, p.tok.token) }
