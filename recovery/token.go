package recovery

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"strings"

	"claviger/hadoopconf"
	"claviger/metastore"
	"claviger/provider"
	"claviger/provider/hsm"
	"claviger/shellword"
)

// Token is the result of comparing a store with the token.
type Token struct {
	Serial string `json:"serial"`
	Label  string `json:"label"`
	// Unknown are the labels of keys on the token that the store does not know. The labels look like names of versions.
	Unknown []string `json:"unknownToTheStore"`
	// Adopt is the command that adopts them, without their names.
	Adopt string `json:"adopt,omitempty"`
	// Misfit says why token and store do not fit together.
	Misfit string `json:"misfit,omitempty"`
	// Older says that the token was used after a backup was made, which is usual.
	Older string `json:"older,omitempty"`
	// Missing are versions of the store whose key is not on the token.
	Missing []string `json:"missingOnTheToken"`
	// Unread names the files of the token that this user may not read. They may have the missing keys.
	Unread string `json:"unreadable,omitempty"`
	// GivenUp are the missing versions that an operator has given up.
	GivenUp []string `json:"givenUpOnTheToken"`

	// Hidden is the error whose text is Unread.
	Hidden error `json:"-"`
	// Objects are the keys on the token.
	Objects []hsm.Object `json:"-"`

	stale     bool   // Misfit says that another copy of the store has used the token
	takenFrom string // URI of that copy, if the store has taken over the token
}

// Fits reports whether the token and the store have the same keys, as far as this user can read them.
func (t *Token) Fits() bool {
	return len(t.Unknown)+len(t.Missing) == 0 && t.Hidden == nil && t.Misfit == ""
}

// openToken opens the token of the first provider with a store. The result is nil if the first provider has no token.
func openToken(ctx context.Context, conf *hadoopconf.Conf, store metastore.Store, access hsm.Access,
	log *slog.Logger) (*hsm.Provider, error) {
	list, err := provider.SplitURIs(conf.String(hadoopconf.ProviderURI))
	if err != nil || len(list) == 0 {
		return nil, conf.Refuse(hadoopconf.ProviderURI, "it must name a provider")
	}
	scheme, _, _ := strings.Cut(list[0], ":")
	if scheme = strings.ToLower(scheme); scheme != "cloudera.hsmkp" && scheme != "pkcs11" {
		return nil, nil //nolint:nilnil // there is no token
	}
	theStore := func(context.Context, func(context.Context, string) error) (metastore.Store, error) {
		return store, nil
	}
	env := provider.Env{Get: conf.Get, Getenv: os.Getenv, ConfDir: conf.Dir(), Log: log}
	p, err := hsm.Open(ctx, list[0], env, hsm.Options{Access: access, Store: theStore})
	if of := conf.WithPlace(err); of != nil {
		return nil, of
	}
	if err != nil {
		return nil, fmt.Errorf("claviger could not read which keys the token has: %w", err)
	}
	return p, nil
}

// compareToken compares a store with the token of the first provider. The result is nil if that provider has no token.
// With takeUp the store takes over the token, because it replaces another store; this writes nothing to the token.
func compareToken(ctx context.Context, conf *hadoopconf.Conf, store metastore.Store, takeUp bool,
	log *slog.Logger) (t *Token, err error) {
	p, err := openToken(ctx, conf, store, hsm.Inspect, log)
	if err != nil || p == nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, p.Close()) }()
	from := ""
	if takeUp {
		if from, _, err = p.AcceptCopy(ctx); err != nil {
			return nil, err
		}
	}
	if t, err = CompareToken(ctx, conf, p); t != nil {
		t.takenFrom = from
	}
	return t, err
}

// CompareToken compares the open token of a configuration with the store that it was opened with.
func CompareToken(ctx context.Context, conf *hadoopconf.Conf, p *hsm.Provider) (*Token, error) {
	objects, err := p.Objects(ctx)
	if err != nil {
		return nil, fmt.Errorf("claviger could not read which keys the token has: %w", err)
	}
	i := p.Info()
	t := &Token{Serial: i.Serial, Label: i.Label, Unknown: []string{}, Missing: []string{}, Objects: objects}
	for _, o := range objects {
		if o.Mark == hsm.Unknown { // hsm list shows the same marks, and hsm adopt adopts these objects
			t.Unknown = append(t.Unknown, o.Label)
		}
	}
	h, err := p.Holdings(ctx)
	if err != nil {
		return nil, err
	}
	t.Missing, t.GivenUp, t.Hidden = h.All(), h.GivenUp, p.Hidden()
	if err := p.Misfit(); err != nil {
		t.Misfit, t.stale = err.Error(), hsm.IsStale(err)
	}
	if len(t.Unknown) > 0 {
		if t.Adopt, err = adoptCommand(ctx, conf, p); err != nil {
			return nil, err
		}
	}
	slices.Sort(t.Unknown)
	slices.Sort(t.Missing)
	return t, nil
}

// adoptCommand returns the command that adopts unknown keys, without their names.
func adoptCommand(ctx context.Context, conf *hadoopconf.Conf, p *hsm.Provider) (string, error) {
	bound, mine, err := p.Bindings(ctx)
	if err != nil {
		return "", err
	}
	command := "claviger hsm adopt --conf " + shellword.Quote(conf.Dir())
	if len(bound) > 0 && !mine {
		command += " --rebind"
	}
	return command, nil
}
