package hsm

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"claviger"
	"claviger/pkcs11"
)

// settingOrphans is the setting with the times when orphans were first found: a JSON object of milliseconds since 1970,
// by CKA_ID.
const settingOrphans = "hsm.orphans"

// recordSince stores when orphans were first found, and returns them with their times: CKA_START_DATE, or the time when
// a server or a prune first found that nothing refers to them.
func (p *Provider) recordSince(ctx context.Context, orphans []Object) ([]Object, error) {
	text, _, err := p.store.Setting(ctx, settingOrphans)
	if err != nil {
		return nil, err
	}
	before, now := map[string]int64{}, map[string]int64{}
	if text != "" {
		if err := json.Unmarshal([]byte(text), &before); err != nil {
			return nil, claviger.Errorf("hsm.Prune", claviger.Internal, "", "setting %s of metastore %s: %w",
				settingOrphans, p.store.URI(), err)
		}
	}
	list := slices.Clone(orphans)
	for i, o := range list {
		ms, ok := before[o.ID]
		if !ok {
			ms = time.Now().UnixMilli()
		}
		now[o.ID] = ms
		t := time.UnixMilli(ms).UTC()
		raw, err := hex.DecodeString(o.ID)
		if err != nil {
			return nil, err
		}
		if day, err := p.tok.StartDate(ctx, raw, o.Label); err != nil {
			return nil, err
		} else if !day.IsZero() && day.Before(t) {
			t = day
		}
		list[i].Since = &t
	}
	if !p.access.Changes() || maps.Equal(before, now) {
		return list, nil
	}
	data, err := json.Marshal(now)
	if err != nil {
		return nil, err
	}
	return list, p.store.SetSetting(ctx, settingOrphans, string(data))
}

// Prunable lists what a prune would destroy, and what it would keep.
type Prunable struct {
	Orphans []Object `json:"orphans"` // to be destroyed, by label
	Recent  []Object `json:"young"`   // orphans that are kept because they were found too recently
	Unknown []Object `json:"unknown"` // always kept: the store does not know them
	// Digest identifies Orphans: it changes if any of them changes.
	Digest string `json:"digest"`
}

// Prunable lists the objects to which nothing refers. Those that are older than the given age can be destroyed.
func (p *Provider) Prunable(ctx context.Context, older time.Duration) (Prunable, error) {
	r := Prunable{Orphans: []Object{}, Recent: []Object{}, Unknown: []Object{}}
	objects, err := p.Objects(ctx)
	if err != nil {
		return r, err
	}
	var orphans []Object
	for _, o := range objects {
		switch o.Mark {
		case Orphan:
			orphans = append(orphans, o)
		case Unknown:
			r.Unknown = append(r.Unknown, o)
		}
	}
	if orphans, err = p.recordSince(ctx, orphans); err != nil {
		return r, err
	}
	for _, o := range orphans {
		if time.Since(*o.Since) < older {
			r.Recent = append(r.Recent, o)
		} else {
			r.Orphans = append(r.Orphans, o)
		}
	}
	for _, list := range [][]Object{r.Orphans, r.Recent, r.Unknown} {
		slices.SortFunc(list, func(a, b Object) int { return strings.Compare(a.Label+a.ID, b.Label+b.ID) })
	}
	h := sha256.New()
	for _, o := range r.Orphans {
		fmt.Fprintf(h, "%s %q\n", o.ID, o.Label)
	}
	r.Digest = hex.EncodeToString(h.Sum(nil)[:8])
	return r, nil
}

// Prune destroys the orphans in the list for ever, and returns those that it has destroyed. Before that it checks each
// of them again.
func (p *Provider) Prune(ctx context.Context, orphans []Object) ([]Object, error) {
	gone := []Object{}
	for _, o := range orphans {
		destroyed, err := p.destroyOrphan(ctx, o)
		if err != nil {
			return gone, err
		}
		if destroyed {
			gone = append(gone, o)
		}
	}
	return gone, nil
}

// destroyOrphan destroys one orphan, if it still is one, under its key's lock.
func (p *Provider) destroyOrphan(ctx context.Context, o Object) (bool, error) {
	ctx, unlock, err := p.lock(ctx, "hsm.Prune", o.Key())
	if err != nil {
		return false, err
	}
	defer unlock()
	if err := p.mayDestroy(ctx); err != nil {
		return false, err
	}
	id, err := hex.DecodeString(o.ID)
	if err != nil {
		return false, err
	}
	found, err := p.tok.FindLabel(ctx, o.Label)
	at := slices.IndexFunc(found, func(k pkcs11.KeyInfo) bool { return bytes.Equal(k.ID, id) })
	if err != nil || at < 0 {
		return false, err
	}
	r, err := p.records(ctx, o.Key())
	if err != nil || r.live[o.ID] || r.begun[o.ID] != "" || r.deleted[o.ID] {
		return false, err
	}
	if mark, err := p.markUnreferenced(ctx, found[at], o, r); err != nil || mark != Orphan {
		return false, err
	}
	return true, p.destroy(ctx, id, o.Label)
}
