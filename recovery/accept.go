package recovery

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"time"

	"claviger"
	"claviger/hadoopconf"
	"claviger/metastore"
	"claviger/metastore/postgres"
	"claviger/provider/hsm"
)

// acceptor is a store that may lack acknowledged changes.
type acceptor interface {
	Lost(ctx context.Context) ([]postgres.LostChange, error)
	Accept(ctx context.Context) error
}

// Losses are the changes that Accept has found, and whether it gave them up. Together with an error, Accept returns
// what it has found until then, and nil if the store could not be opened.
type Losses struct {
	Store string `json:"store"` // URI
	// Tracked says that the store knows which acknowledged changes it lacks.
	Tracked bool `json:"tracked"`
	// Lost has the changes in the order in which nodes saw them, and then the keys of which no node remembers a change.
	Lost []Loss `json:"lost"`
	// NotCompared says why Now does not mention the token; "" if it does.
	NotCompared string `json:"notCompared,omitempty"`
	GivenUp     bool   `json:"givenUp"`

	// TokenUnknown says why it is not known whether another copy of the store has used the token.
	TokenUnknown string `json:"tokenUnknown,omitempty"`
	// Stale says that another copy of the store has used the token since, and that it was not replaced; "" otherwise.
	Stale string `json:"stale,omitempty"`
	// TakenFrom is the URI of the copy from which this store has taken over the token; "" if it has not.
	TakenFrom string `json:"takenFrom,omitempty"`
	// Written says that the token has a record of this, too.
	Written bool `json:"written"`

	stale bool // another copy of the store has used the token
}

// Loss is a change of a key that the store lacks.
type Loss struct {
	Key string `json:"key"`
	At  string `json:"at"` // RFC 3339; "" if no node remembers a change
	// Change is the kind of change; "" if an older release did not record it.
	Change string `json:"change,omitempty"`
	// Now says what the store and the token have of the key now; "" if an earlier Loss of the key says it.
	Now string `json:"now,omitempty"`
}

// Found reports whether there is, or was, something to accept.
func (l *Losses) Found() bool { return len(l.Lost) > 0 || l.stale }

// Accept lists the acknowledged changes that the configured store lacks, and says whether another copy of the store has
// used the token since. With giveUp it gives the changes up, and the store takes over the token. Nodes that share the
// store may run meanwhile.
func Accept(ctx context.Context, conf *hadoopconf.Conf, giveUp bool, log *slog.Logger) (l *Losses, err error) {
	l = &Losses{Lost: []Loss{}}
	store, err := openStore(ctx, conf, "claviger metastore accept", giveUp, false, log)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, store.Close()) }()
	l.Store = store.URI()
	if err := l.acceptChanges(ctx, conf, store, giveUp); err != nil {
		return l, err
	}
	if err := l.acceptToken(ctx, conf, store, giveUp, log); err != nil {
		return l, err
	}
	if l.Found() && !giveUp {
		return l, claviger.Refuse("nothing was given up; to give it up, repeat the command with --yes, and then " +
			"adopt the keys of the HSM with claviger hsm adopt")
	}
	return l, nil
}

// acceptChanges lists the changes that a store of several nodes lacks, and gives them up.
func (l *Losses) acceptChanges(ctx context.Context, conf *hadoopconf.Conf, store metastore.Store, giveUp bool) error {
	s, ok := store.(acceptor)
	if l.Tracked = ok; !ok {
		return nil
	}
	lost, err := s.Lost(ctx)
	if err != nil || len(lost) == 0 {
		return err
	}
	if err := l.list(ctx, conf, store, lost); err != nil || !giveUp {
		return err
	}
	// The lost changes may include the end of a step, so the store has steps that are already finished.
	if err := hsm.EndSteps(ctx, store); err != nil {
		return err
	}
	err = s.Accept(ctx)
	l.GivenUp = err == nil
	return err
}

// acceptToken finds out whether another copy of the store has used the token since this one. With giveUp the store
// takes over the token.
func (l *Losses) acceptToken(ctx context.Context, conf *hadoopconf.Conf, store metastore.Store, giveUp bool,
	log *slog.Logger) (err error) {
	access := hsm.Inspect
	if giveUp {
		access = hsm.Repair
	}
	p, err := openToken(ctx, conf, store, access, log)
	if err != nil {
		l.TokenUnknown = err.Error()
		return nil
	}
	if p == nil {
		return nil
	}
	defer func() { err = errors.Join(err, p.Close()) }()
	err = p.CheckNotStale(ctx)
	switch {
	case !hsm.IsStale(err):
		return err
	case !giveUp:
		l.stale, l.Stale = true, err.Error()
		return nil
	}
	l.stale = true
	from, written, err := p.AcceptCopy(ctx)
	if from != "" && err != nil {
		return fmt.Errorf("this metastore may use the token again, but that was not written to the token: a server "+
			"that runs with another copy can make keys until a server has started with this metastore, or until "+
			"this command succeeds: %w", err)
	}
	l.TakenFrom, l.Written = from, written
	return err
}

// list describes the changes that the store lacks, key by key, with the current state of the key in store and token.
func (l *Losses) list(ctx context.Context, conf *hadoopconf.Conf, store metastore.Store,
	lost []postgres.LostChange) error {
	token, notCompared := compareToken(ctx, conf, store, false, slog.New(slog.DiscardHandler))
	if notCompared == nil && token == nil {
		notCompared = errors.New("the first provider is not an HSM")
	}
	if notCompared != nil {
		l.NotCompared = notCompared.Error()
	}
	var listed []string
	add := func(loss Loss) error {
		if slices.Contains(listed, loss.Key) {
			l.Lost = append(l.Lost, loss)
			return nil
		}
		listed = append(listed, loss.Key)
		now, err := keyNow(ctx, store, token, lost, loss.Key)
		loss.Now = now
		l.Lost = append(l.Lost, loss)
		return err
	}
	for _, c := range lost {
		if err := add(Loss{Key: c.Key, At: c.At.Format(time.RFC3339), Change: string(c.Change)}); err != nil {
			return err
		}
	}
	for _, key := range differingKeys(token) { // nodes remember only the newest changes
		if slices.Contains(listed, key) {
			continue
		}
		if err := add(Loss{Key: key}); err != nil {
			return err
		}
	}
	return nil
}

// keyNow describes what the store and the token have of a key now. The store lacks changes of this key.
func keyNow(ctx context.Context, store metastore.Store, token *Token, lost []postgres.LostChange, key string) (
	string, error) {
	keys, err := store.Get(metastore.AllowIncomplete(ctx), key)
	if err != nil {
		return "", err
	}
	var last metastore.Change
	for _, l := range lost {
		if l.Key == key && l.Change != metastore.Invalidated {
			last = l.Change
		}
	}
	k := keys[0]
	var parts []string
	if here := inStore(k, key, last); here != "" {
		parts = append(parts, here)
	}
	if token == nil {
		return strings.Join(parts, "; "), nil
	}
	for _, name := range namesOfKey(token.Unknown, key) {
		parts = append(parts, fmt.Sprintf("the token holds %s, which the store does not know: made or rolled since "+
			"(claviger hsm adopt)", claviger.Printable(name)))
	}
	for _, name := range namesOfKey(token.Missing, key) {
		parts = append(parts, fmt.Sprintf("the token lacks %s: destroyed since, by a deletion or a purge",
			claviger.Printable(name)))
	}
	if len(parts) == 1 && k != nil && last == "" {
		parts = append(parts, "the token holds the same versions: the lost change may be of attributes or rules, or a "+
			"soft deletion")
	}
	return strings.Join(parts, "; "), nil
}

// inStore describes what the store has of a key. k is nil if it has nothing; last is the last lost change of the key.
func inStore(k *metastore.Key, key string, last metastore.Change) string {
	switch {
	case k == nil && last == metastore.Deleted:
		return "not in the store, as it should be"
	case k == nil:
		return "not in the store"
	case last == metastore.Deleted:
		return "BACK, so the users that its old ACL allows can use it: delete it again (hadoop key delete)"
	case len(k.List) > 0:
		newest := claviger.VersionName(key, k.List[len(k.List)-1].ID)
		return "in the store, newest version " + claviger.Printable(newest)
	}
	return ""
}

// differingKeys returns the names of the keys of which the store and the token have different versions.
func differingKeys(token *Token) (keys []string) {
	if token == nil {
		return nil
	}
	for _, name := range slices.Concat(token.Unknown, token.Missing) {
		if key, ok := claviger.KeyOfVersion(name); ok {
			keys = append(keys, key)
		}
	}
	slices.Sort(keys)
	return slices.Compact(keys)
}

// namesOfKey returns the names that are versions of a key.
func namesOfKey(names []string, key string) (of []string) {
	for _, name := range names {
		if k, ok := claviger.KeyOfVersion(name); ok && k == key {
			of = append(of, name)
		}
	}
	return of
}
