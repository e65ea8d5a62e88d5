package hsm

import (
	"cmp"
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"

	"claviger"
	"claviger/metastore"
	"claviger/pkcs11"
)

// A store and a token know each other by the store's id. The store keeps it as a
// setting. The token keeps it in a data object, one for each store that uses the
// token, which is one but for sites that shared a token before there were such
// objects.
const (
	// SettingID is the store's id: 32 hex digits.
	SettingID = "store.id"
	// settingBound is when the store was first bound to a token by its id.
	settingBound = "hsm.bound"
	// settingKeepsNone is the serial number of a token that refused our data object.
	settingKeepsNone = "hsm.keeps.none"
	// application is CKA_APPLICATION of our data objects.
	application = "claviger"
	// bindingLabel and the store's id are CKA_LABEL.
	bindingLabel = "metastore "
)

// Binding is what a token keeps of a store that uses it.
type Binding struct {
	Store string    `json:"store"` // its id
	URI   string    `json:"uri"`   // where it was when it was bound, without secrets
	Since time.Time `json:"since"`
	// Incarnation is the last of the store that was written to the token; "" in an object of
	// an older program. Served is when.
	Incarnation string     `json:"incarnation,omitempty"`
	Served      *time.Time `json:"served,omitempty"`

	label string // CKA_LABEL
}

// served is when the store was last begun to be used with the token.
func (b Binding) served() time.Time {
	if b.Served == nil {
		return b.Since
	}
	return *b.Served
}

func (b Binding) String() string {
	return fmt.Sprintf("%s (id %s, bound since %s)", b.URI, b.Store, b.Since.UTC().Format(time.DateOnly))
}

// bindings are the stores that the token is bound to. An object that says nothing
// that we understand counts as another store's.
func bindings(ctx context.Context, tok token) ([]Binding, error) {
	data, err := tok.ListData(ctx, application)
	if err != nil {
		return nil, err
	}
	var list []Binding
	for _, d := range data {
		id, ok := strings.CutPrefix(d.Label, bindingLabel)
		if !ok {
			continue
		}
		b := Binding{label: d.Label}
		if json.Unmarshal(d.Value, &b) != nil || b.Store != id {
			b = Binding{Store: id, URI: "a metastore of another version of claviger"}
		}
		b.label = d.Label
		list = append(list, b)
	}
	return list, nil
}

// standing is how a store and a token stand to each other by what they hold.
type standing struct {
	fits  bool // a key of the store is on the token, by check value
	empty bool // the store has no key, not even a deleted one
	moved bool // the store was at another token, or at none
}

// bindIDs compares the ids, and binds the two where that is their first use.
func (p *Provider) bindIDs(ctx context.Context, st standing) error {
	ctx, unlock, err := p.bindingLock(ctx)
	if err != nil {
		return err
	}
	defer unlock()
	id, _, err := p.store.Setting(ctx, SettingID)
	if err != nil {
		return err
	}
	_, before, err := p.store.Setting(ctx, settingBound)
	if err != nil {
		return err
	}
	bond, err := p.bond(ctx, id)
	keepsNone := claviger.Is(err, claviger.Unsupported)
	if IsStale(err) && st.empty { // that says more
		err = cmp.Or(p.refuseEmpty(ctx), err)
	}
	if err != nil && !keepsNone {
		return err
	}
	mine, others := bond.mine, bond.others
	if len(mine) == 0 && !keepsNone { // it may list what it does not keep
		serial, _, err := p.store.Setting(ctx, settingKeepsNone)
		if err != nil {
			return err
		}
		if serial == p.tok.Info().Serial && len(others) == 0 {
			h, err := p.Holdings(ctx)
			if err != nil {
				return err
			}
			keepsNone = len(h.All()) > 0 // else it is tried once more
		}
	}
	p.keepsNone.Store(keepsNone)
	if len(mine) == 0 && !keepsNone {
		if err := p.mayBind(ctx, st, bond); err != nil {
			return err
		}
	}
	switch {
	case len(mine) > 0, len(others) == 0:
	case st.fits && !before:
		p.log.Warn("the token is shared with another metastore, since before metastores and tokens were bound; "+
			"neither of them prunes it; move one of them to a token of its own", "token", tokenName(p.tok.Info()),
			"other", others[0].String())
	default:
		return boundElsewhere(p.tok.Info(), others[0], p.store.URI(), p.confDir)
	}
	p.alone.Store(len(mine) > 0 && len(others) == 0)
	if st.empty {
		if err := p.refuseEmpty(ctx); err != nil {
			return err
		}
	}
	if !p.access.makes() || p.access == Make && len(mine) > 0 {
		return nil // a command takes the token before its first change, see take
	}
	if keepsNone {
		p.log.Warn("the token keeps no data objects, so that it cannot be bound to its metastore: two new "+
			"metastores on it are not told apart before one of them has a key, and no key is taken for an orphan",
			"token", tokenName(p.tok.Info()))
		return nil
	}
	if len(mine) == 0 && before && st.fits {
		p.log.Warn("the token did not know this metastore, whose keys it holds: a clone or a restored backup", "token",
			tokenName(p.tok.Info()), "metastore", p.store.URI())
	}
	if bond.older {
		h, err := p.Holdings(ctx)
		if err != nil {
			return err
		}
		if len(h.All()) > 0 {
			p.log.Error("the token is older than the metastore; no key is made or rolled", "err", p.olderToken(&h))
			return nil // it stays older, so that every start sees that
		}
	}
	err = p.bindTo(ctx, id, mine, len(others) == 0)
	if err != nil && len(mine) > 0 && !claviger.IsAway(err) && ctx.Err() == nil {
		// A token or a disk without room serves the keys that are there.
		p.log.Error("the metastore and the token did not take a new incarnation, so that a copy of the metastore "+
			"would not notice this process; no key is made or rolled before they do", "token", tokenName(p.tok.Info()),
			"metastore", p.store.URI(), "err", err)
		return nil
	}
	return err
}

// objectLost refuses a store of which the token has had an object (by its history, list) and
// has none now, while keys of ours are there that the store does not know: those are of
// another copy of it, or of the state that this one is older than. Where no object is left
// nothing else tells them apart.
func (p *Provider) objectLost(ctx context.Context, b bond, list []incarnation) error {
	info := p.tok.Info()
	if len(b.mine) > 0 || len(b.others) > 0 ||
		!slices.ContainsFunc(list, func(e incarnation) bool { return e.Put && e.Serial == info.Serial }) {
		return nil
	}
	objects, err := p.Objects(ctx)
	if err != nil {
		return err
	}
	var labels []string
	for _, o := range objects {
		if o.Mark != Unknown {
			continue
		}
		note, err := destroyedNote(ctx, p.store, o.Label)
		if err != nil {
			return err
		}
		if was, _, err := p.store.Setting(ctx, settingDestroyed+o.ID); err != nil {
			return err
		} else if was != note {
			labels = append(labels, o.Label)
		}
	}
	if len(labels) == 0 {
		return nil
	}
	err = stalef("the object that bound token %s to metastore %s is gone, and the token holds keys of claviger that "+
		"this metastore does not know: %s; so the metastore may be a copy, or an older state, of the one that made "+
		"them; two copies would destroy each other's keys, so nothing is made or destroyed with this one; if it is "+
		"an old copy, name the right one by claviger.metastore.uri; if it is the one to go on, see that no other is "+
		"used, and give the token to it: %s; then %s makes records of what it does not know",
		tokenName(info), p.store.URI(), some(labels), p.accept(), p.adopt(""))
	if p.usedHere(list) {
		return hereError{err}
	}
	return err
}

// forgetPut has a history know no more that this token had an incarnation, and returns the
// newest that it had: an operator binds them anew, at this place.
func (p *Provider) forgetPut(list []incarnation) (newest string) {
	for i := range list {
		if list[i].Serial == p.tok.Info().Serial && list[i].Put {
			newest, list[i].Put = list[i].ID, false
		}
		if list[i].Serial == p.tok.Info().Serial {
			list[i].URI = p.store.URI()
		}
	}
	return newest
}

// mayBind refuses to bind a store with keys to a token that has no object of it, unless
// the token holds every one of them: a part may be what was made since the others were
// lost.
func (p *Provider) mayBind(ctx context.Context, st standing, b bond) error {
	if len(b.others) > 0 && !st.fits {
		return nil // refused for that, see bindIDs
	}
	h, err := p.Holdings(ctx)
	if err != nil || len(h.All()) == 0 {
		return err
	}
	if b.here && len(b.others) == 0 {
		return hereError{p.misfit("%s", p.notBound(&h))}
	}
	return claviger.Errorf("hsm.Open", claviger.Invalid, "", "%s", p.notBound(&h))
}

// boundElsewhere refuses a store at a token that belongs to another.
func boundElsewhere(info pkcs11.TokenInfo, other Binding, uri, confDir string) error {
	if uri == other.URI {
		uri += ", at the same place but another: it was lost, or put there in place of the first"
	}
	return claviger.Errorf("hsm.Open", claviger.Invalid, "",
		"token %s belongs to the metastore %s, and this is the metastore %s: two metastores on one token cannot "+
			"tell each other's keys from lost ones; name the first by claviger.metastore.uri, or another token in the "+
			"keystore file; if the first is lost, %s",
		tokenName(info), other, uri, cureLostStore(confDir, true))
}

// bindingLock keeps nodes that start at once from binding twice. held ends where the lock
// is lost.
func (p *Provider) bindingLock(ctx context.Context) (held context.Context, unlock func(), err error) {
	if !p.access.Changes() {
		return ctx, func() {}, nil
	}
	held, unlock, _, err = metastore.Hold(ctx, p.store, "binding", true)
	return held, unlock, err
}

// bindTo writes the store's id and a new incarnation to both sides: first to the store, so
// that a token is never bound to a store that does not know of it. mine are the objects of
// this store that the token has. The binding lock is held.
func (p *Provider) bindTo(ctx context.Context, id string, mine []Binding, alone bool) error {
	if id == "" {
		raw := make([]byte, 16)
		if _, err := rand.Read(raw); err != nil {
			return err
		}
		id = hex.EncodeToString(raw)
		if err := p.store.SetSetting(ctx, SettingID, id); err != nil {
			return err
		}
	}
	incarnation, err := p.beginIncarnation(ctx, mine)
	if err != nil {
		return err
	}
	p.awaitCopies(ctx)
	now := time.Now().UTC().Truncate(time.Second)
	b := Binding{Store: id, URI: p.store.URI(), Since: now, Incarnation: incarnation, Served: &now}
	if len(mine) > 0 {
		b.Since = mine[0].Since
	}
	value, err := json.Marshal(b)
	if err != nil {
		return err
	}
	err = p.tok.PutData(ctx, pkcs11.Data{Application: application, Label: bindingLabel + id, Value: value})
	if claviger.Is(err, claviger.Unsupported) && len(mine) > 0 {
		p.putIncarnation.Store(true) // it is not tried again
		p.log.Warn("the token does not let its data object be replaced, so that a copy of the metastore would not "+
			"notice this process", "token", tokenName(p.tok.Info()), "err", err)
		return nil
	}
	if claviger.Is(err, claviger.Unsupported) {
		p.keepsNone.Store(true)
		if err := p.store.SetSetting(ctx, settingKeepsNone, p.tok.Info().Serial); err != nil {
			return err
		}
		p.log.Warn("the token keeps no data objects, so that it cannot be bound to its metastore: two new "+
			"metastores on it are not told apart before one of them has a key, and no key is taken for an orphan",
			"token", tokenName(p.tok.Info()), "err", err)
		return nil
	}
	if err != nil {
		return err
	}
	p.alone.Store(alone)
	p.keepsNone.Store(false)
	p.putIncarnation.Store(true)
	if err := p.endIncarnation(ctx, incarnation); err != nil {
		return err
	}
	if _, was, err := p.store.Setting(ctx, settingKeepsNone); err != nil {
		return err
	} else if was {
		if err := p.store.SetSetting(ctx, settingKeepsNone, ""); err != nil {
			return err
		}
	}
	switch {
	case len(mine) > 0 && mine[0].URI == p.store.URI():
		return nil
	case len(mine) == 0:
		p.log.Info("the token and the metastore were bound to each other", "token", tokenName(p.tok.Info()),
			"metastore", p.store.URI(), "id", id)
	default:
		p.log.Warn("the metastore that the token belongs to was at another place before; see that no server uses "+
			"what is left there", "was", mine[0].URI, "is", p.store.URI(), "id", id)
	}
	return p.store.SetSetting(ctx, settingBound, b.Since.Format(time.RFC3339))
}

// rebind gives the token to this store alone, and gives up what the token lacks.
func (p *Provider) rebind(ctx context.Context) error {
	ctx, unlock, err := p.bindingLock(ctx)
	if err != nil {
		return err
	}
	defer unlock()
	if err := p.giveUp(ctx); err != nil {
		return err
	}
	if _, err := p.takeUp(ctx); err != nil {
		return err
	}
	id, _, err := p.store.Setting(ctx, SettingID)
	if err != nil {
		return err
	}
	all, err := bindings(ctx, p.tok)
	if claviger.Is(err, claviger.Unsupported) {
		return nil
	}
	if err != nil {
		return err
	}
	mine, others := apart(all, id)
	if err := p.bindTo(ctx, id, mine, true); err != nil {
		return err
	}
	for _, b := range others {
		if err := p.tok.DestroyData(ctx, application, b.label); err != nil {
			return err
		}
	}
	return nil
}

// apart parts the bindings to a store, of which a crash may leave several, from those to
// others.
func apart(all []Binding, id string) (mine, others []Binding) {
	for _, b := range all {
		if b.Store == id {
			mine = append(mine, b)
		} else {
			others = append(others, b)
		}
	}
	return mine, others
}

// refuseEmpty refuses a store without a key beside a token with keys of ours, but
// for those of steps that the store knows were begun.
func (p *Provider) refuseEmpty(ctx context.Context) error {
	objects, err := p.Objects(ctx)
	if err != nil {
		return err
	}
	var labels []string
	for _, o := range objects {
		if o.Mark == Unknown {
			labels = append(labels, o.Label)
		}
	}
	if len(labels) == 0 {
		return nil
	}
	return emptyStore(p.store.URI(), p.tok.Info(), labels, nil, p.confDir)
}
