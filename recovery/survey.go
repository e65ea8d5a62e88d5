package recovery

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	"claviger"
	"claviger/provider/hsm"
	"claviger/typo"
)

// Choice says which keys are adopted, and how. The candidates are the keys that the token holds and the store does not
// know.
type Choice struct {
	Names       []string // of keys, or of versions
	All         bool     // every key that can be adopted and was not set aside
	Aside       bool     // set the versions aside, and do not adopt them
	Rebind      bool     // give the token to this store
	OneKey      bool     // the versions of each name belong to one key
	ACLName     string   // attribute key.acl.name of the new record; "" for none
	Description *string  // of the new record; nil for none
	By          string   // user who adopts
}

// adoption returns the provider's options for this choice.
func (c *Choice) adoption() hsm.Adoption {
	return hsm.Adoption{OneKey: c.OneKey, ACLName: c.ACLName, Description: c.Description, By: c.By}
}

// Adoption is the result of Survey and Adopt.
type Adoption struct {
	Misfit     string          `json:"misfit,omitempty"`  // why token and metastore do not fit together
	Candidates []hsm.Candidate `json:"candidates"`        // all candidates
	Lost       []string        `json:"lost"`              // versions that the token lacks; Rebind gives them up
	BoundTo    string          `json:"boundTo,omitempty"` // the other metastore to which the token is bound
	Chosen     []hsm.Candidate `json:"chosen"`
	Undecided  []hsm.Candidate `json:"left,omitempty"`    // All leaves these out, because an operator must decide
	Digest     string          `json:"digest,omitempty"`  // see digest
	Done       []string        `json:"done"`              // names of the keys that were adopted or set aside
	Aside      bool            `json:"aside"`             // the keys were set aside, and not adopted
	Rebound    bool            `json:"rebound,omitempty"` // the token belongs to this metastore now
	Source     string          `json:"source,omitempty"`  // URI of the source from which keys may have been migrated

	Choice  Choice   `json:"-"`
	misfit  error    // the error whose text is Misfit
	unbound bool     // Rebind would change the token
	known   []string // chosen names that the store knows already
}

// Survey lists the keys that the token holds and the store does not know, and the keys that c chooses. It refuses if
// keys are missing on the token, but may be in files of the token that this user cannot read.
func Survey(ctx context.Context, p *hsm.Provider, c Choice) (*Adoption, error) {
	a, err := survey(ctx, p, c)
	if err != nil || len(a.Lost) == 0 {
		return a, err
	}
	if hidden := p.Hidden(); hidden != nil {
		return a, claviger.Refuse("the token lacks these key versions of the metastore: %s; they may be in these "+
			"files, so nothing was given up or adopted: %w", strings.Join(a.Lost, ", "), hidden)
	}
	return a, nil
}

func survey(ctx context.Context, p *hsm.Provider, c Choice) (*Adoption, error) {
	a := &Adoption{Choice: c, Aside: c.Aside, Done: []string{}, Chosen: []hsm.Candidate{}}
	if err := p.Misfit(); err != nil {
		a.Misfit, a.misfit = err.Error(), err
	}
	has, err := p.Holdings(ctx)
	if err != nil {
		return a, err
	}
	a.Lost = has.All()
	bound, mine, err := p.Bindings(ctx)
	if err != nil {
		return a, err
	}
	if len(bound) > 0 && !mine {
		a.BoundTo = bound[0].String()
	}
	a.unbound = !mine || len(bound) > 1 || len(a.Lost) > 0 || hsm.IsStale(a.misfit)
	if a.Candidates, err = p.Candidates(ctx); err != nil {
		return a, err
	}
	if err := a.choose(ctx, p); err != nil {
		return a, err
	}
	a.Digest, err = a.digest()
	return a, err
}

// choose sets Chosen and Undecided.
func (a *Adoption) choose(ctx context.Context, p *hsm.Provider) (err error) {
	switch {
	case a.Choice.All && a.Aside:
		a.Chosen = a.Candidates
	case a.Choice.All:
		err = a.chooseAdoptable(ctx, p)
	default:
		err = a.chooseNamed(ctx, p)
	}
	if err != nil || !a.Aside {
		return err
	}
	// Candidates that were set aside before need nothing.
	a.Chosen = slices.DeleteFunc(slices.Clone(a.Chosen), func(c hsm.Candidate) bool {
		done := !slices.ContainsFunc(c.Versions, notAside)
		if done {
			a.known = append(a.known, c.Key)
		}
		return done
	})
	return nil
}

// digest returns a digest of the choice, the chosen versions and the lost versions.
func (a *Adoption) digest() (string, error) {
	h := sha256.New()
	description := ""
	if d := a.Choice.Description; d != nil {
		description = *d
	}
	fmt.Fprintf(h, "%t %t %t %q %q\n", a.Aside, a.Choice.Rebind, a.Choice.OneKey, a.Choice.ACLName, description)
	if a.Choice.Rebind {
		fmt.Fprintf(h, "%q\n", a.Lost)
	}
	for _, c := range a.Chosen {
		for _, o := range c.Versions {
			fmt.Fprintf(h, "%s %q\n", o.ID, o.Label)
		}
		if c.Step != nil {
			step, err := json.Marshal(c.Step)
			if err != nil {
				return "", err
			}
			fmt.Fprintf(h, "%s\n", step)
		}
	}
	return hex.EncodeToString(h.Sum(nil)[:8]), nil
}

// chooseAdoptable chooses all candidates that can be adopted, without the versions that were set aside.
func (a *Adoption) chooseAdoptable(ctx context.Context, p *hsm.Provider) error {
	for _, c := range a.Candidates {
		if !slices.ContainsFunc(c.Versions, notAside) {
			a.known = append(a.known, c.Key)
			continue
		}
		c, err := p.Restrict(ctx, c, notAside)
		if err != nil {
			return err
		}
		if c.MayAdopt(a.Choice.adoption()) != nil {
			a.Undecided = append(a.Undecided, c)
		} else {
			a.Chosen = append(a.Chosen, c)
		}
	}
	return nil
}

func notAside(o hsm.Object) bool { return o.Mark != hsm.Aside }

// chooseNamed chooses candidates by the names of keys and versions. A name that the store knows was adopted before. A
// version that was set aside is chosen only by its own name, not by the name of its key.
func (a *Adoption) chooseNamed(ctx context.Context, p *hsm.Provider) error {
	for _, c := range a.Candidates {
		c, chosen, err := a.named(ctx, p, c)
		if err != nil {
			return err
		}
		if chosen {
			a.Chosen = append(a.Chosen, c)
		}
	}
	for _, name := range a.Choice.Names {
		if slices.ContainsFunc(a.Chosen, func(c hsm.Candidate) bool {
			return c.Key == name || slices.Contains(labels(c), name)
		}) {
			continue
		}
		known, err := knows(ctx, p, name)
		if err != nil {
			return err
		}
		if known {
			a.known = append(a.known, name)
			continue
		}
		var unknown []string
		for _, c := range a.Candidates {
			unknown = append(append(unknown, c.Key), labels(c)...)
		}
		return claviger.Refuse("the token holds nothing of %s that the metastore does not know%s; nothing was done",
			claviger.Printable(name), typo.DidYouMean(name, unknown, claviger.Printable))
	}
	return nil
}

// named returns the part of a candidate that the names choose; false if they choose no version of it.
func (a *Adoption) named(ctx context.Context, p *hsm.Provider, c hsm.Candidate) (hsm.Candidate, bool, error) {
	wholeKey := slices.Contains(a.Choice.Names, c.Key)
	if wholeKey && a.Aside {
		return c, true, nil
	}
	chosen := func(o hsm.Object) bool {
		return slices.Contains(a.Choice.Names, o.Label) || wholeKey && notAside(o)
	}
	switch some := slices.ContainsFunc(c.Versions, chosen); {
	case !some && wholeKey:
		return c, false, claviger.Refuse("all versions of %s that the metastore does not know were set aside; "+
			"nothing was done; name those that are to be adopted: %s", c.Key, strings.Join(labels(c), " "))
	case !some:
		return c, false, nil
	}
	c, err := p.Restrict(ctx, c, chosen)
	return c, true, err
}

// labels returns the names of a candidate's versions.
func labels(c hsm.Candidate) []string {
	names := make([]string, len(c.Versions))
	for i, o := range c.Versions {
		names[i] = o.Label
	}
	return names
}

// knows reports whether the store has a key or a version of that name.
func knows(ctx context.Context, p *hsm.Provider, name string) (bool, error) {
	list, err := p.Metadata(ctx, name)
	if err != nil || list[0] != nil {
		return err == nil, err
	}
	_, err = p.Version(ctx, name)
	if claviger.Is(err, claviger.VersionNotFound) {
		return false, nil
	}
	return err == nil, err
}
