package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"claviger"
	"claviger/hadoopconf"
	"claviger/metastore"
	"claviger/metastore/location"
	"claviger/metastore/postgres"
	"claviger/owner"
	"claviger/provider/builtin"
	"claviger/provider/hsm"
)

// acceptor is a store that may lack what was acknowledged.
type acceptor interface {
	Lost(ctx context.Context) ([]postgres.LostChange, error)
	Accept(ctx context.Context) error
	URI() string
}

func newMetastoreAccept() *cobra.Command {
	var dir string
	var yes bool
	cmd := &cobra.Command{
		Use:   "accept --conf DIR [--yes]",
		Short: "Give up acknowledged changes that PostgreSQL has lost, or take a token up that another copy has used",
		Long: fmt.Sprintf(`accept lists the changes of keys that nodes have seen and that the metastore lacks, since its server was replaced by a standby that was behind, or by an older copy:
what was done to each key, and what store and token tell of the key now. A key that was deleted since is back: delete it again.
It says, too, whether another copy of the metastore has used the token since: then no server starts on this one, or
makes keys. With --yes it gives the changes up, and has the metastore take the token up: every node changes keys again
within %d seconds, and the other copy does no more. Stop the other copy first. Nodes on PostgreSQL may serve
meanwhile. Rebuild what the HSM still holds then: claviger hsm adopt.
Exit codes: 0 nothing is missing, or it was given up; 1 failed; 3 something is missing and --yes was not given.`, int(hsm.DecidedWithin.Seconds())),
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return acceptLosses(cmd.Context(), cmd.OutOrStdout(), dir, yes)
		},
	}
	cmd.Flags().StringVar(&dir, "conf", "", "configuration folder")
	cmd.Flags().BoolVar(&yes, "yes", false, "give up what is missing, and take the token up")
	_ = cmd.MarkFlagRequired("conf") // the flag is defined above
	return cmd
}

func acceptLosses(ctx context.Context, out io.Writer, dir string, yes bool) (err error) {
	conf, log, err := quietConf(dir)
	if err != nil {
		return err
	}
	open := location.OpenReadOnly
	if yes {
		if err := owner.RefuseRoot(builtin.Files(conf)...); err != nil {
			return err
		}
		open = location.OpenExisting
	}
	store, err := open(ctx, conf, log)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, store.Close()) }()
	if yes { // nodes that share the store may go on
		self := owner.Self("claviger metastore accept", conf.Dir())
		if _, err := store.Claim(ctx, self, false); err != nil {
			return inUse(err, self, "")
		}
	}
	lost, err := acceptChanges(ctx, out, conf, store, yes)
	if err != nil {
		return err
	}
	stale, err := acceptToken(ctx, out, conf, store, yes, log)
	switch {
	case err != nil:
		return err
	case (lost || stale) && !yes:
		_, err = fmt.Fprintln(out, "Repeat this with --yes, and then adopt what the HSM holds: claviger hsm adopt.")
		return errors.Join(err, &exitError{exitRefused, nil})
	case lost || stale:
		_, err = fmt.Fprintf(out, "Adopt what the HSM holds now (claviger hsm adopt). "+
			"Nodes that run change keys again within %d seconds.\n",
			int(hsm.DecidedWithin.Seconds()))
	}
	return err
}

// acceptChanges lists the changes that a store of several nodes lacks; with yes it gives
// them up.
func acceptChanges(ctx context.Context, out io.Writer, conf *hadoopconf.Conf, store metastore.Store, yes bool) (found bool, err error) {
	s, ok := store.(acceptor)
	if !ok {
		return false, nil
	}
	lost, err := s.Lost(ctx)
	if err != nil {
		return false, err
	}
	if len(lost) == 0 {
		_, err := fmt.Fprintf(out, "No node has told of a change that %s lacks.\n", s.URI())
		return false, err
	}
	if err := listLosses(ctx, out, conf, store, lost); err != nil {
		return true, err
	}
	if !yes {
		_, err := fmt.Fprintln(out, "These are the newest of the changes that are missing; there may be others.")
		return true, err
	}
	// What was lost may be the ends of steps.
	if err := hsm.EndSteps(ctx, store); err != nil {
		return true, err
	}
	if err := s.Accept(ctx); err != nil {
		return true, err
	}
	_, err = fmt.Fprintln(out, "Given up.")
	return true, err
}

// acceptToken says whether another copy of the store has used the token since this one;
// with yes the store takes the token up.
func acceptToken(ctx context.Context, out io.Writer, conf *hadoopconf.Conf, store metastore.Store, yes bool,
	log *slog.Logger) (stale bool, err error) {
	access := hsm.Look
	if yes {
		access = hsm.Mend
	}
	p, err := openToken(ctx, conf, store, access, log)
	if err != nil {
		_, err := fmt.Fprintf(out, "Whether another copy of the metastore has used the token since is not known: %v\n", err)
		return false, err
	}
	if p == nil {
		return false, nil
	}
	defer func() { err = errors.Join(err, p.Close()) }()
	err = p.Stale(ctx)
	switch {
	case !hsm.IsStale(err):
		return false, err
	case !yes:
		_, err := fmt.Fprintln(out, err)
		return true, err
	}
	from, written, err := p.TakeUp(ctx)
	switch {
	case from == "":
		return true, err
	case err != nil:
		return true, fmt.Errorf("this metastore may use the token again, but that was not written to the token, "+
			"so another copy that runs makes keys until a server has started on this one, or this command succeeds: %w", err)
	}
	_, err = fmt.Fprintf(out, "The token, which the metastore at %s used last, was taken up by this one.\n", from)
	if !written {
		_, werr := fmt.Fprintln(out, "The token was not changed by this, since it has lost its object or keys; "+
			"a start of a server on this metastore changes it once no key is missing.")
		err = errors.Join(err, werr)
	}
	return true, err
}

// listLosses prints, key by key, what was done that the store lacks, and what store and
// token tell of the key now.
func listLosses(ctx context.Context, out io.Writer, conf *hadoopconf.Conf, store metastore.Store, lost []postgres.LostChange) error {
	log := slog.New(slog.DiscardHandler)
	token, notAsked := compareToken(ctx, conf, store, false, log)
	if notAsked == nil && token == nil {
		notAsked = errors.New("the first provider is no HSM")
	}
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	_, _ = fmt.Fprintln(w, "KEY\tCHANGED\tCHANGE\tNOW") // Flush tells of errors
	var told []string
	for _, l := range lost {
		now := "as above"
		if !slices.Contains(told, l.Key) {
			told = append(told, l.Key)
			var err error
			if now, err = keyNow(ctx, store, token, lost, l.Key); err != nil {
				return err
			}
		}
		_, _ = fmt.Fprintf(w, "%s\t%s\t%s\t%s\n", claviger.Printable(l.Key), l.At.Format(time.RFC3339), cmp.Or(string(l.Change), "not known"), now)
	}
	for _, key := range tokenDiffers(token) { // nodes remember the newest changes alone
		if slices.Contains(told, key) {
			continue
		}
		now, err := keyNow(ctx, store, token, lost, key)
		if err != nil {
			return err
		}
		_, _ = fmt.Fprintf(w, "%s\t-\tno node remembers one\t%s\n", claviger.Printable(key), now)
	}
	if err := w.Flush(); err != nil || notAsked == nil {
		return err
	}
	_, err := fmt.Fprintf(out, "What the token tells is left out: %v.\n", notAsked)
	return err
}

// keyNow tells what store and token have of a key whose changes the store lacks.
func keyNow(ctx context.Context, store metastore.Store, token *tokenReport, lost []postgres.LostChange, key string) (string, error) {
	keys, err := store.Get(metastore.AsItIs(ctx), key)
	if err != nil {
		return "", err
	}
	var says []string
	say := func(format string, args ...any) { says = append(says, fmt.Sprintf(format, args...)) }
	var last metastore.Change
	for _, l := range lost {
		if l.Key == key && l.Change != metastore.Invalidated {
			last = l.Change
		}
	}
	k := keys[0]
	switch {
	case k == nil && last == metastore.Deleted:
		say("not in the store, as it should be")
	case k == nil:
		say("not in the store")
	case last == metastore.Deleted:
		say("BACK, and open to the users whom its rules of then allow: delete it again (hadoop key delete)")
	case len(k.List) > 0:
		say("in the store, newest version %s", claviger.Printable(claviger.VersionName(key, k.List[len(k.List)-1].ID)))
	}
	if token == nil {
		return strings.Join(says, "; "), nil
	}
	for _, name := range ofKey(token.Unknown, key) {
		say("the token holds %s, which the store does not know: made or rolled since (claviger hsm adopt)", claviger.Printable(name))
	}
	for _, name := range ofKey(token.Missing, key) {
		say("the token lacks %s: destroyed since, by a deletion or a purge", claviger.Printable(name))
	}
	if len(says) == 1 && k != nil && last == "" {
		say("the token holds the same versions: rules, attributes or a soft deletion may be what was changed")
	}
	return strings.Join(says, "; "), nil
}

// tokenDiffers names the keys of which store and token have other versions.
func tokenDiffers(token *tokenReport) (keys []string) {
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

// ofKey are the names of versions that are a key's.
func ofKey(names []string, key string) (of []string) {
	for _, name := range names {
		if k, ok := claviger.KeyOfVersion(name); ok && k == key {
			of = append(of, name)
		}
	}
	return of
}
