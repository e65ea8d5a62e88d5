package migrate

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"claviger"
)

// A Ranger KMS, and a Java KMS on a keystore, keep names in lower case and answer to
// every spelling. They list "finance", answer to "Finance", and an EDEK names the
// spelling that its zone was made with: Finance@1. Such a key is taken over under the
// spelling of its key.acl.name, which is how it was created, and the metastore keeps
// an alias (metastore.SetAlias), by which it is found under any other.

// triedSpellings is how many keys are asked for under another spelling, where the
// first ones cannot be read.
const triedSpellings = 3

// spelling is what is known of how a source takes names.
type spelling struct {
	folds bool
	// listed and answered are the proof: it lists the one and answers to the other.
	listed, answered string
}

// spelling asks the source for a key that it lists under another spelling of its
// name, one that it does not list.
func (e *Engine) spelling(ctx context.Context, op string, names []string, theirs []*claviger.Metadata) (spelling,
	error) {
	tried := 0
	for i, name := range names {
		other := strings.ToUpper(name)
		if other == name {
			other = claviger.FoldName(name)
		}
		if _, listed := slices.BinarySearch(names, other); theirs[i] == nil || listed ||
			claviger.FoldName(other) != claviger.FoldName(name) {
			continue
		}
		ms, err := e.cfg.Source.Metadata(ctx, other)
		if ctx.Err() != nil {
			return spelling{}, e.sourceError(ctx, op, name, err)
		}
		if err == nil && len(ms) == 1 {
			return spelling{folds: ms[0] != nil, listed: name, answered: other}, nil
		}
		// It may be refused under that name, or fail for reasons of its own.
		if tried++; tried >= triedSpellings {
			break
		}
	}
	return spelling{}, nil
}

// spelled are the names under which the keys are taken over. Where the source folds
// case, that is the spelling of key.acl.name, unless the journal or the target has the
// key as it is listed.
func (s spelling) spelled(names []string, theirs []*claviger.Metadata, known func(string) bool) []string {
	if !s.folds {
		return names
	}
	keys := slices.Clone(names)
	for i, m := range theirs {
		if m == nil || known(names[i]) {
			continue
		}
		if acl := m.Attributes[claviger.ACLNameAttribute]; claviger.FoldName(acl) == claviger.FoldName(names[i]) {
			keys[i] = acl
		}
	}
	return keys
}

// clash finds a key that differs from name in case only, among those that are here:
// there is one alias for both, so EDEKs of the one would be taken for the other's.
func (s spelling) clash(name string, here []string) string {
	if !s.folds {
		return ""
	}
	for _, k := range here {
		if k != name && claviger.FoldName(k) == claviger.FoldName(name) {
			return k
		}
	}
	return ""
}

// check says in a plan what was found.
func (s spelling) check(items []Item) (Check, bool) {
	if !s.folds {
		return Check{}, false
	}
	c := Check{Name: "spelling of names",
		Measured: fmt.Sprintf("the source lists %s and answers to %s: it folds case, as Ranger's and Java's "+
			"keystores do", claviger.Printable(s.listed), claviger.Printable(s.answered))}
	var changed []string
	for _, it := range items {
		if it.Listed != "" {
			changed = append(changed, claviger.Printable(it.Key))
		}
	}
	if n := len(changed); n > 0 {
		const most = 5
		more := ""
		if n > most {
			more = fmt.Sprintf(" and %d more", n-most)
		}
		c.Measured += fmt.Sprintf("; %d keys are taken over as key.acl.name spells them: %s%s", n,
			strings.Join(changed[:min(n, most)], ", "), more)
	}
	c.Measured += "; each is found here by any spelling, for EDEKs have that of their zone"
	return c, true
}
