package recovery

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"claviger"
	"claviger/provider/hsm"
	"claviger/shellword"
)

// Binds reports whether the choice binds the token to this store.
func (a *Adoption) Binds() bool { return a.Choice.Rebind && a.unbound }

// GivesUp returns the versions that the choice gives up.
func (a *Adoption) GivesUp() []string {
	if a.Choice.Rebind {
		return a.Lost
	}
	return nil
}

// Check returns an error if the choice cannot be carried out. idle says why there is nothing to do; it is "" if there
// is something to do. conf is the configuration folder, for the commands in the error.
func (a *Adoption) Check(conf string) (idle string, err error) {
	none := len(a.Chosen) == 0 && !a.Binds()
	switch {
	case none && len(a.Undecided) == 0 && (len(a.Candidates) == 0 || a.Choice.Rebind || len(a.known) > 0):
		if a.misfit != nil {
			return "", claviger.Refuse("nothing was done, and the token and the metastore do not fit together: %w",
				a.misfit)
		}
		return a.idle(), nil
	case none && len(a.Undecided) > 0:
		return "", a.LeftOut(conf)
	case hsm.IsStale(a.misfit) && !a.Choice.Rebind:
		return "", claviger.Refuse("nothing was done: %w", a.misfit)
	case a.BoundTo != "" && !a.Choice.Rebind:
		return "", claviger.Refuse("nothing was done; the token is bound to the metastore %s; if this server should "+
			"use that metastore, set claviger.metastore.uri to it; if it is lost, pass --rebind as well", a.BoundTo)
	case none:
		return "", claviger.Refuse("nothing was done; name the keys to adopt (a deleted key looks like the others), " +
			"or pass --all")
	case a.Aside:
		return "", nil
	}
	for _, c := range a.Chosen {
		if err := c.MayAdopt(a.Choice.adoption()); err != nil {
			return "", claviger.Refuse("key %s cannot be adopted: %s; nothing was done; leave it out, or set it "+
				"aside with --aside", c.Key, claviger.Reason(err))
		}
	}
	return "", nil
}

// idle says that there was nothing to do, and which keys were not adopted.
func (a *Adoption) idle() string {
	if !a.Choice.Rebind || len(a.known) > 0 || len(a.Candidates) == 0 {
		return "nothing to do"
	}
	return "nothing was done: the token belongs to this metastore already and lacks none of its keys, " +
		"so there is nothing to rebind; the keys above were not adopted: name the keys to adopt, or pass --all"
}

// Adopt makes the records of the chosen keys, one key at a time. It refuses if the same choice now selects other keys
// than in Survey. p may be another provider than in Survey, opened for changes.
func (a *Adoption) Adopt(ctx context.Context, p *hsm.Provider) error {
	now, err := survey(ctx, p, a.Choice)
	if err != nil {
		return err
	}
	if now.Digest != a.Digest {
		return claviger.Refuse("the token or the metastore has changed meanwhile; nothing was done; list the keys " +
			"again")
	}
	adopt := p.Adopt
	if a.Aside {
		adopt = p.SetAside
	}
	for _, c := range now.Chosen {
		if err := adopt(ctx, c, a.Choice.adoption()); err != nil {
			return err
		}
		a.Done = append(a.Done, c.Key)
	}
	if !a.Choice.Rebind {
		return nil
	}
	// Rebind is the last step, so that after an error the next call finds the same state.
	if err := p.Rebind(ctx); err != nil {
		return err
	}
	a.Rebound = true
	return nil
}

// LeftOut returns the error for the keys that All has left out; nil if there are none. It lists the commands from which
// the operator chooses.
func (a *Adoption) LeftOut(conf string) error {
	if len(a.Undecided) == 0 {
		return nil
	}
	var b strings.Builder
	for _, c := range a.Undecided {
		fmt.Fprintf(&b, "\nkey %s cannot be adopted: %s%s", claviger.Printable(c.Key),
			claviger.Reason(c.MayAdopt(a.Choice.adoption())), decisions(conf, c))
	}
	return claviger.Refuse("--all has left out %d keys; for each of them, choose one of the commands below it:%s",
		len(a.Undecided), b.String())
}

// decisions returns the commands from which an operator chooses for a candidate, one on each line.
func decisions(conf string, c hsm.Candidate) string {
	var b strings.Builder
	line := func(flag string, names []string) {
		fmt.Fprintf(&b, "\n  claviger hsm adopt --conf %s%s %s", shellword.Quote(conf), flag,
			shellword.Command(names...))
	}
	if c.Why != "" {
		line(" --aside", labels(c))
		return b.String()
	}
	rest := slices.DeleteFunc(labels(c), func(name string) bool {
		return slices.ContainsFunc(c.Keys, func(names []string) bool { return slices.Contains(names, name) })
	})
	if len(rest) > 0 { // these versions belong to the metastore's key
		line("", rest)
	}
	aside := ""
	if c.Known {
		aside = " --aside"
	}
	for _, names := range c.Keys {
		line(aside, names)
	}
	return b.String()
}
