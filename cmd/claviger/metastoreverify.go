package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"claviger"
	"claviger/hadoopconf"
	"claviger/metastore"
	"claviger/metastore/location"
	"claviger/metastore/sqlite"
	"claviger/provider"
	"claviger/provider/builtin"
	"claviger/provider/hsm"
	"claviger/terminal"
)

// storeReport is what `metastore verify` finds.
type storeReport struct {
	Store string `json:"store"`
	sqlite.Facts
	Token *tokenReport     `json:"token,omitempty"` // nil: it was not asked
	Moved *metastore.Moved `json:"moved,omitempty"` // by metastore copy
}

// tokenReport compares a store with the token.
type tokenReport struct {
	Serial string `json:"serial"`
	Label  string `json:"label"`
	// Unknown are keys on the token, named as ours, of which the store knows nothing.
	Unknown []string `json:"unknownToTheStore"`
	// Adopt is the command that makes records of them, without their names.
	Adopt string `json:"adopt,omitempty"`
	// Misfit says why token and store do not fit together.
	Misfit string `json:"misfit,omitempty"`
	// Older says that the token was used since a backup was made, as is usual.
	Older string `json:"older,omitempty"`
	// Missing are versions of the store whose key is not on the token.
	Missing []string `json:"missingOnTheToken"`
	// Unread says which files of the token this user may not read: their keys are there
	// and not shown.
	Unread string `json:"unreadable,omitempty"`
	// GivenUp are those of which an operator has said that they are lost.
	GivenUp []string `json:"givenUpOnTheToken"`

	stale     bool   // Misfit says that another copy of the store has used the token
	takenFrom string // where that is, where the store has taken the token up
}

func newMetastoreVerify() *cobra.Command {
	var dir string
	var out terminal.Output
	var noToken bool
	cmd := &cobra.Command{
		Use:   "verify --conf DIR [--no-token] [FILE]",
		Short: "Check the store, or a backup of it, and compare it with the token",
		Long: `verify reads the metastore that DIR configures, or a FILE that metastore backup has written: whether it is whole, its schema, the token that it
belongs to, and how much it holds. It asks the token which keys it has, and names those that one side lacks. It changes nothing, and a server
may run.

Exit status: 0 store and token fit, 1 the store cannot be used, 3 one of them lacks keys of the other, or the store was moved.`,
		Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			conf, log, err := quietConf(dir)
			if err != nil {
				return err
			}
			file := ""
			if len(args) > 0 {
				file = args[0]
			}
			r, err := verifyStore(cmd.Context(), conf, file, !noToken, log)
			if err != nil {
				return err
			}
			if err := out.Write(r, r.text); err != nil {
				return err
			}
			if r.Moved != nil && file == "" {
				return &exitError{code: exitRefused}
			}
			if t := r.Token; t != nil && (len(t.Unknown)+len(t.Missing) > 0 || t.Unread != "" || t.Misfit != "") {
				return &exitError{code: exitRefused}
			}
			return nil
		},
	}
	cmd.Flags().StringVar(&dir, "conf", "", "configuration folder")
	out.Flag(cmd)
	cmd.Flags().BoolVar(&noToken, "no-token", false, "do not ask the token")
	_ = cmd.MarkFlagRequired("conf") // the flag is defined above
	return cmd
}

// quietConf loads a configuration, and a logger of warnings.
func quietConf(dir string) (*hadoopconf.Conf, *slog.Logger, error) {
	log, err := newLogger("warn")
	if err != nil {
		return nil, nil, err
	}
	conf, err := hadoopconf.LoadKMS(dir, os.LookupEnv)
	return conf, log, err
}

func verifyStore(ctx context.Context, conf *hadoopconf.Conf, file string, token bool, log *slog.Logger) (r *storeReport, err error) {
	var store metastore.Store
	r = &storeReport{Store: file}
	backup := file != ""
	if file == "" {
		place, err := location.Of(conf)
		if err != nil {
			return nil, err
		}
		r.Store, file = place.URI, place.File
		if file != "" && place.Missing() {
			return nil, place.Wrap(fmt.Errorf("%w at %s", location.ErrNone, file))
		}
	}
	if file != "" {
		if r.Facts, err = sqlite.Inspect(ctx, file); err != nil {
			return nil, err
		}
		var read *sqlite.Store
		if read, err = sqlite.OpenReadOnly(ctx, file); err == nil {
			store = read // an interface that holds nil is not nil
			r.Moved, err = metastore.MovedTo(ctx, read)
		}
	} else {
		if store, err = location.OpenReadOnly(ctx, conf, log); err == nil {
			r.Facts, err = factsOf(ctx, store)
		}
	}
	if store != nil {
		defer func() { err = errors.Join(err, store.Close()) }()
	}
	if err != nil || !token {
		return r, err
	}
	r.Token, err = compareToken(ctx, conf, store, false, log)
	if t := r.Token; t != nil && backup && t.stale {
		t.Misfit = ""
		t.Older = "the token was used since this backup was made, as is usual; metastore restore has the restored store take the token up"
	}
	return r, err
}

// factsOf counts what a store holds that is no file.
func factsOf(ctx context.Context, s metastore.Store) (f sqlite.Facts, err error) {
	versions, err := versionsOf(ctx, s)
	if err != nil {
		return f, err
	}
	names, err := s.Names(ctx)
	if err != nil {
		return f, err
	}
	shelved, err := s.Shelved(ctx)
	if err != nil {
		return f, err
	}
	pending, err := s.Pending(ctx)
	if err != nil {
		return f, err
	}
	runs, err := s.Runs(ctx)
	if err != nil {
		return f, err
	}
	f.Keys, f.Deleted, f.Pending, f.Runs = len(names), len(shelved), len(pending), len(runs)
	for _, v := range versions {
		if !v.shelved {
			f.Versions++
		}
	}
	if f.TokenSerial, _, err = s.Setting(ctx, "hsm.token.serial"); err == nil {
		f.TokenLabel, _, err = s.Setting(ctx, "hsm.token.label")
	}
	return f, err
}

// storedVersion is a version of a store.
type storedVersion struct {
	name    string
	object  string // CKA_ID in hex
	shelved bool
}

// versionsOf returns all versions of a store, those of deleted keys too.
func versionsOf(ctx context.Context, s metastore.Store) (all []storedVersion, err error) {
	err = metastore.Each(ctx, s, func(k *metastore.Key) {
		for _, v := range k.List {
			all = append(all, storedVersion{claviger.VersionName(k.Name, v.ID), v.Object, false})
		}
	})
	if err != nil {
		return nil, err
	}
	shelved, err := s.Shelved(ctx)
	if err != nil {
		return nil, err
	}
	for _, k := range shelved {
		for _, v := range k.List {
			all = append(all, storedVersion{claviger.VersionName(k.Name, v.ID), v.Object, true})
		}
	}
	return all, nil
}

// openToken opens the token of the first provider with a store; nil where that is none.
func openToken(ctx context.Context, conf *hadoopconf.Conf, store metastore.Store, access hsm.Access, log *slog.Logger) (*hsm.Provider, error) {
	list, err := provider.SplitURIs(conf.String(hadoopconf.ProviderURI))
	if err != nil || len(list) == 0 {
		return nil, refuse(conf, hadoopconf.ProviderURI, "it must name a provider")
	}
	if scheme, _, _ := strings.Cut(list[0], ":"); scheme != "cloudera.hsmkp" && scheme != "pkcs11" {
		return nil, nil //nolint:nilnil // there is no token
	}
	registry := builtin.Registry(builtin.Options{Access: access, Store: func(context.Context, func(context.Context, string) error) (metastore.Store, error) { return store, nil }})
	opened, err := registry.Open(ctx, list[0], provider.Env{Get: conf.Get, Getenv: os.Getenv, ConfDir: conf.Dir(), User: osUser(), Log: log})
	if of := placed(conf, err); of != nil {
		return nil, of
	}
	if err != nil {
		return nil, fmt.Errorf("the token cannot be asked which keys it has: %w", err)
	}
	p, ok := opened.(*hsm.Provider)
	if !ok {
		return nil, errors.Join(fmt.Errorf("%s is no HSM", list[0]), opened.Close())
	}
	return p, nil
}

// compareToken compares a store with the token of the first provider; nil where
// that is none. With takeUp the store, which is put in the place of another, takes the token
// up; nothing is written to the token.
func compareToken(ctx context.Context, conf *hadoopconf.Conf, store metastore.Store, takeUp bool, log *slog.Logger) (r *tokenReport, err error) {
	p, err := openToken(ctx, conf, store, hsm.Look, log)
	if err != nil || p == nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, p.Close()) }()
	from := ""
	if takeUp {
		if from, _, err = p.TakeUp(ctx); err != nil {
			return nil, err
		}
	}
	objects, err := p.Objects(ctx)
	if err != nil {
		return nil, fmt.Errorf("the token cannot be asked which keys it has: %w", err)
	}
	i := p.Info()
	r = &tokenReport{Serial: i.Serial, Label: i.Label, Unknown: []string{}, Missing: []string{}, takenFrom: from}
	for _, o := range objects {
		if o.Mark == hsm.Unknown { // the marks of hsm list, and what adopt takes
			r.Unknown = append(r.Unknown, o.Label)
		}
	}
	h, err := p.Holdings(ctx)
	if err != nil {
		return nil, err
	}
	r.Missing, r.GivenUp = h.All(), h.GivenUp
	if err := p.Misfit(); err != nil {
		r.Misfit, r.stale = err.Error(), hsm.IsStale(err)
	}
	if err := p.Hidden(); err != nil {
		r.Unread = err.Error() + asWhom(err)
	}
	if len(r.Unknown) > 0 {
		bound, mine, err := p.Bindings(ctx)
		if err != nil {
			return nil, err
		}
		r.Adopt = "claviger hsm adopt --conf " + conf.Dir()
		if len(bound) > 0 && !mine {
			r.Adopt += " --rebind"
		}
	}
	slices.Sort(r.Unknown)
	slices.Sort(r.Missing)
	return r, nil
}

func (r *storeReport) text(w io.Writer) {
	row := func(name, format string, args ...any) { fmt.Fprintf(w, "%s\t%s\n", name, fmt.Sprintf(format, args...)) }
	row("store", "%s", r.Store)
	if r.Schema > 0 {
		row("file", "whole, schema version %d", r.Schema)
	}
	if !r.Made.IsZero() {
		row("backup", "made at %s", r.Made.Format(time.RFC3339))
	}
	if r.Moved != nil {
		row("MOVED", "to %s at %s by claviger metastore copy: no server starts on this one", r.Moved.To, r.Moved.At.Format(time.RFC3339))
	}
	row("holds", "%d keys with %d versions, %d deleted keys, %d pending steps, %d migration runs", r.Keys, r.Versions, r.Deleted, r.Pending, r.Runs)
	if r.TokenSerial != "" {
		row("belongs to", "token %q, serial %s", r.TokenLabel, r.TokenSerial)
	}
	t := r.Token
	if t == nil {
		row("token", "not asked")
		return
	}
	row("token", "%q, serial %s: lacks %d versions of the store, and holds %d keys that the store does not know", t.Label, t.Serial, len(t.Missing), len(t.Unknown))
	if t.Misfit != "" {
		row("MISFIT", "%s", t.Misfit)
	}
	if t.Older != "" {
		row("older", "%s", t.Older)
	}
	if t.Unread != "" {
		row("UNREADABLE", "%s", t.Unread)
	}
	for _, name := range t.Missing {
		if t.Unread != "" {
			row("MISSING", "%s is not shown: it may be in a file that this user may not read", claviger.Printable(name))
			continue
		}
		row("MISSING", "%s is not on the token: restore the token, or look whether this store is of another", claviger.Printable(name))
	}
	for _, name := range t.GivenUp {
		row("GIVEN UP", "%s is not on the token, and was given up: where it is its key's newest version roll the key; delete the key only where it has no other", claviger.Printable(name))
	}
	for _, name := range t.Unknown {
		row("UNKNOWN", "%s is on the token: this store is older than it, or of another; restore a newer store, or adopt it: %s %s", claviger.Printable(name), t.Adopt, claviger.Printable(name))
	}
}
