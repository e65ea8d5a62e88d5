package migrate

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"claviger"
)

// A Ranger KMS, and a Java KMS on a keystore, keep names in lower case and answer to every spelling. They list
// "finance" and answer to "Finance". An EDEK has the spelling with which its zone was made: Finance@1. Such a
// key is taken over under the spelling of its key.acl.name, with which it was created. The metastore keeps an
// alias (metastore.SetAlias) that finds it under any other spelling.

// triedSpellings is the number of keys that are probed under another spelling, if the first cannot be read.
const triedSpellings = 3

// spelling is the way in which a source treats spellings of names, as far as it is known.
type spelling struct {
	folds bool
	// listed and answered are the proof: the source lists the first and answers to the second.
	listed, answered string
}

// spelling requests a listed key under another spelling of its name that the source does not list.
func (e *Engine) spelling(ctx context.Context, op string, names []string, atSource []*claviger.Metadata) (
	spelling, error) {
	tried := 0
	for i, name := range names {
		other := strings.ToUpper(name)
		if other == name {
			other = claviger.FoldName(name)
		}
		if _, listed := slices.BinarySearch(names, other); atSource[i] == nil || listed ||
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
		// The source may refuse that name, or fail for other reasons.
		if tried++; tried >= triedSpellings {
			break
		}
	}
	return spelling{}, nil
}

// spelled returns the names under which the keys are taken over. If the source ignores case, that is the spelling of
// key.acl.name, unless the journal or the target has the key in the listed spelling.
func (s spelling) spelled(names []string, atSource []*claviger.Metadata, known func(string) bool) []string {
	if !s.folds {
		return names
	}
	keys := slices.Clone(names)
	for i, m := range atSource {
		if m == nil || known(names[i]) {
			continue
		}
		if acl := m.Attributes[claviger.ACLNameAttribute]; claviger.FoldName(acl) == claviger.FoldName(names[i]) {
			keys[i] = acl
		}
	}
	return keys
}

// clash finds a key here whose name differs from name in case only. Both would need the same alias, so EDEKs of one key
// would be opened with the other.
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

// check returns the check for a plan, if the source folds case.
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
		const named = 5
		c.Measured += fmt.Sprintf("; %d keys are taken over as key.acl.name spells them: %s", n,
			claviger.FirstNames(changed, named))
	}
	c.Measured += "; each key is found here by any spelling, because EDEKs have the spelling of their zone"
	return c, true
}
