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

// A store and a token recognise each other by the store's id. The store keeps the id as a setting. The token keeps it
// in a data object, one for each store that uses the token. That is one store, except where sites shared a token
// before there were such objects.
const (
	// SettingID is the store's id: 32 hex digits.
	SettingID = "store.id"
	// settingBound is the time when the store was first bound to a token by its id.
	settingBound = "hsm.bound"
	// settingKeepsNone is the serial number of a token that refused claviger's data object.
	settingKeepsNone = "hsm.keeps.none"
	// application is CKA_APPLICATION of claviger's data objects.
	application = "claviger"
	// bindingLabel, followed by the store's id, is CKA_LABEL.
	bindingLabel = "metastore "
)

// Binding is the data object that a token keeps for a store that uses it.
type Binding struct {
	Store string    `json:"store"` // id of the store
	URI   string    `json:"uri"`   // place of the store when it was bound, without secrets
	Since time.Time `json:"since"`
	// Incarnation is the store's incarnation that was last written to the token, and Served the time of that. Objects
	// of older releases have neither.
	Incarnation string     `json:"incarnation,omitempty"`
	Served      *time.Time `json:"served,omitempty"`

	label string // CKA_LABEL
}

// served is when an incarnation of the store was last written to the token: at the start of a server, or before a
// change of keys.
func (b Binding) served() time.Time {
	if b.Served == nil {
		return b.Since
	}
	return *b.Served
}

func (b Binding) String() string {
	return fmt.Sprintf("%s (id %s, bound since %s)", b.URI, b.Store, b.Since.UTC().Format(time.DateOnly))
}

// bindings lists the stores to which the token is bound. An object that claviger does not understand counts as the
// object of another store.
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

// relation says how a store and a token relate, by the keys that they hold.
type relation struct {
	fits  bool // the token has a key of the store, with the right check value
	empty bool // the store has no key, not even a deleted one
	moved bool // the store was bound to another token, or to none
}

// bindIDs compares the ids of store and token. It binds the two at their first use.
func (p *Provider) bindIDs(ctx context.Context, r relation) error {
	ctx, unlock, err := p.bindingLock(ctx)
	if err != nil {
		return err
	}
	defer unlock()
	id, _, err := p.store.Setting(ctx, SettingID)
	if err != nil {
		return err
	}
	_, boundBefore, err := p.store.Setting(ctx, settingBound)
	if err != nil {
		return err
	}
	b, err := p.checkBinding(ctx, id, r, boundBefore)
	if err != nil {
		return err
	}
	if !p.access.makesKeys() || p.access == Make && len(b.mine) > 0 {
		return nil // a command writes to the token before its first change, see claimToken
	}
	if p.keepsNoData.Load() {
		p.warnKeepsNone()
		return nil
	}
	return p.writeBinding(ctx, id, r, b, boundBefore)
}

// checkBinding reads the token's data objects and refuses a store that must not use the token. It stores whether the
// token keeps no data objects, and whether it is bound to this store alone. The binding lock is held.
func (p *Provider) checkBinding(ctx context.Context, id string, r relation, boundBefore bool) (bindingState, error) {
	b, err := p.readBindings(ctx, id)
	keepsNone := claviger.Is(err, claviger.Unsupported)
	if IsStale(err) && r.empty { // the error about an empty store is more precise
		err = cmp.Or(p.refuseEmpty(ctx), err)
	}
	if err != nil && !keepsNone {
		return b, err
	}
	if len(b.mine) == 0 && !keepsNone { // a token may list data objects and yet keep none
		if keepsNone, err = p.refusedObjectBefore(ctx, b); err != nil {
			return b, err
		}
	}
	p.keepsNoData.Store(keepsNone)
	if len(b.mine) == 0 && !keepsNone {
		if err := p.mayBind(ctx, r, b); err != nil {
			return b, err
		}
	}
	switch {
	case len(b.mine) > 0, len(b.others) == 0:
	case r.fits && !boundBefore:
		p.log.Warn("the token is shared with another metastore, since before metastores and tokens were bound; "+
			"neither of them prunes it; move one of them to a token of its own", "token", tokenName(p.tok.Info()),
			"other", b.others[0].String())
	default:
		return b, boundElsewhere(p.tok.Info(), b.others[0], p.store.URI(), p.confDir)
	}
	p.alone.Store(len(b.mine) > 0 && len(b.others) == 0)
	if r.empty {
		return b, p.refuseEmpty(ctx)
	}
	return b, nil
}

// refusedObjectBefore reports whether this token has refused the store's data object before. If no key of the store is
// missing it returns false, and the object is tried again.
func (p *Provider) refusedObjectBefore(ctx context.Context, b bindingState) (bool, error) {
	serial, _, err := p.store.Setting(ctx, settingKeepsNone)
	if err != nil || serial != p.tok.Info().Serial || len(b.others) > 0 {
		return false, err
	}
	h, err := p.Holdings(ctx)
	return len(h.All()) > 0, err
}

// warnKeepsNone logs that the token keeps no data objects.
func (p *Provider) warnKeepsNone(attrs ...any) {
	p.log.Warn("the token keeps no data objects, so it cannot be bound to its metastore: claviger cannot distinguish "+
		"two new metastores on it before one of them has a key, and no key counts as an orphan",
		append([]any{"token", tokenName(p.tok.Info())}, attrs...)...)
}

// writeBinding writes the id and a new incarnation to store and token, unless the token is older than the store and
// lacks keys. The binding lock is held.
func (p *Provider) writeBinding(ctx context.Context, id string, r relation, b bindingState, boundBefore bool) error {
	if len(b.mine) == 0 && boundBefore && r.fits {
		p.log.Warn("the token did not know this metastore, whose keys it holds: a clone or a restored backup", "token",
			tokenName(p.tok.Info()), "metastore", p.store.URI())
	}
	if b.tokenOlder {
		h, err := p.Holdings(ctx)
		if err != nil {
			return err
		}
		if len(h.All()) > 0 {
			p.log.Error("the token is older than the metastore; no key is made or rolled", "err", p.olderToken(&h))
			return nil // without a new incarnation, the next start sees again that the token is older
		}
	}
	err := p.bindTo(ctx, id, b.mine, len(b.others) == 0)
	if err != nil && len(b.mine) > 0 && !claviger.IsUnreachable(err) && ctx.Err() == nil {
		// If a token or a disk is full, the keys on the token can still be served.
		p.log.Error("the metastore and the token did not take a new incarnation, so that a copy of the metastore "+
			"would not notice this process; no key is made or rolled before they do", "token", tokenName(p.tok.Info()),
			"metastore", p.store.URI(), "err", err)
		return nil
	}
	return err
}

// refuseLostObject refuses a store whose data object the token has lost, while the token holds keys of claviger that
// the store does not know. list is the store's history; it says whether the token had the object. Such keys show that
// this store is a copy, or an older state, of the store that made them. Without the object nothing else shows that.
func (p *Provider) refuseLostObject(ctx context.Context, b bindingState, list []incarnation) error {
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
		record, err := destroyedRecord(ctx, p.store, o.Label)
		if err != nil {
			return err
		}
		if stored, _, err := p.store.Setting(ctx, settingDestroyed+o.ID); err != nil {
			return err
		} else if stored != record {
			labels = append(labels, o.Label)
		}
	}
	if len(labels) == 0 {
		return nil
	}
	err = stalef("the object that bound token %s to metastore %s is gone, and the token holds keys of claviger that "+
		"this metastore does not know: %s; so this metastore may be a copy, or an older state, of the metastore that "+
		"made these keys; two copies would destroy each other's keys, so no key is made or destroyed with this "+
		"metastore; if this metastore is an old copy, name the right metastore by claviger.metastore.uri; if this is "+
		"the right metastore, check that no other metastore is used, and bind the token to this metastore: %s; then "+
		"%s makes records of the keys that this metastore does not know",
		tokenName(info), p.store.URI(), summarize(labels), p.acceptCommandLine(), p.adoptCommandLine(""))
	if p.usedAtThisPlace(list) {
		return samePlaceError{err}
	}
	return err
}

// forgetWritten marks the incarnations in a history as not written to this token, and returns the newest that was
// written. It is for an operator who binds store and token again, with the store at this place.
func (p *Provider) forgetWritten(list []incarnation) (newest string) {
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

// mayBind refuses to bind a store with keys to a token without an object of the store, unless the token holds all of
// the store's keys. A token with only some of them may have been initialised again, and these keys made since.
func (p *Provider) mayBind(ctx context.Context, r relation, b bindingState) error {
	if len(b.others) > 0 && !r.fits {
		return nil // checkBinding refuses this case
	}
	h, err := p.Holdings(ctx)
	if err != nil || len(h.All()) == 0 {
		return err
	}
	if b.samePlace && len(b.others) == 0 {
		return samePlaceError{p.misfit("%s", p.notBound(&h))}
	}
	return claviger.Errorf("hsm.Open", claviger.Invalid, "", "%s", p.notBound(&h))
}

// boundElsewhere is the refusal of a store at a token that belongs to another store.
func boundElsewhere(info pkcs11.TokenInfo, other Binding, uri, confDir string) error {
	if uri == other.URI {
		uri += ", a new metastore at the same place: the first metastore was lost or replaced"
	}
	return claviger.Errorf("hsm.Open", claviger.Invalid, "",
		"token %s belongs to the metastore %s, and this is the metastore %s: two metastores on one token cannot "+
			"tell each other's keys from lost keys; name the first metastore by claviger.metastore.uri, or another "+
			"token in the keystore file, and restart the server; if the first metastore is lost, %s",
		tokenName(info), other, uri, cureLostStore(confDir, true))
}

// bindingLock keeps nodes that start at the same time from binding twice. held ends if the lock is lost.
func (p *Provider) bindingLock(ctx context.Context) (held context.Context, unlock func(), err error) {
	if !p.access.Changes() {
		return ctx, func() {}, nil
	}
	held, unlock, _, err = metastore.Hold(ctx, p.store, "binding", true)
	return held, unlock, err
}

// bindTo writes the store's id and a new incarnation to both sides. The store comes first, so that a token is never
// bound to a store that does not know the token. mine are the objects of this store that the token has. The binding
// lock is held.
func (p *Provider) bindTo(ctx context.Context, id string, mine []Binding, alone bool) error {
	id, err := p.ensureID(ctx, id)
	if err != nil {
		return err
	}
	incarnation, err := p.beginIncarnation(ctx, mine)
	if err != nil {
		return err
	}
	p.awaitStandbys(ctx)
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
	if claviger.Is(err, claviger.Unsupported) {
		return p.bindWithoutObject(ctx, len(mine) > 0, err)
	}
	if err != nil {
		return err
	}
	p.alone.Store(alone)
	p.keepsNoData.Store(false)
	p.putIncarnation.Store(true)
	if err := p.endIncarnation(ctx, incarnation); err != nil {
		return err
	}
	if _, set, err := p.store.Setting(ctx, settingKeepsNone); err != nil {
		return err
	} else if set {
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
		p.log.Warn("the metastore that the token belongs to was at another place before; check that no server uses "+
			"what is left there", "was", mine[0].URI, "is", p.store.URI(), "id", id)
	}
	return p.store.SetSetting(ctx, settingBound, b.Since.Format(time.RFC3339))
}

// ensureID returns id, the store's id. If that is "" it draws one and writes it to the store.
func (p *Provider) ensureID(ctx context.Context, id string) (string, error) {
	if id != "" {
		return id, nil
	}
	raw := make([]byte, 16)
	if _, err := rand.Read(raw); err != nil {
		return "", err
	}
	id = hex.EncodeToString(raw)
	return id, p.store.SetSetting(ctx, SettingID, id)
}

// bindWithoutObject accepts that the token has refused the data object. refusal is its error. If the token has an
// object of the store already, that object stays as it is.
func (p *Provider) bindWithoutObject(ctx context.Context, hasObject bool, refusal error) error {
	if hasObject {
		p.putIncarnation.Store(true) // so that it is not tried again
		p.log.Warn("the token does not let its data object be replaced, so that a copy of the metastore would not "+
			"notice this process", "token", tokenName(p.tok.Info()), "err", refusal)
		return nil
	}
	p.keepsNoData.Store(true)
	if err := p.store.SetSetting(ctx, settingKeepsNone, p.tok.Info().Serial); err != nil {
		return err
	}
	p.warnKeepsNone("err", refusal)
	return nil
}

// rebind gives the token to this store alone, and gives up the keys that the token lacks.
func (p *Provider) rebind(ctx context.Context) error {
	ctx, unlock, err := p.bindingLock(ctx)
	if err != nil {
		return err
	}
	defer unlock()
	if err := p.giveUp(ctx); err != nil {
		return err
	}
	if _, err := p.acceptCopy(ctx); err != nil {
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
	mine, others := splitBindings(all, id)
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

// splitBindings separates the bindings to the store with this id from those to other stores. A crash may leave several
// bindings to one store.
func splitBindings(all []Binding, id string) (mine, others []Binding) {
	for _, b := range all {
		if b.Store == id {
			mine = append(mine, b)
		} else {
			others = append(others, b)
		}
	}
	return mine, others
}

// refuseEmpty refuses a store without keys if the token holds keys of claviger. Keys that an interrupted step of the
// store has made do not count.
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
