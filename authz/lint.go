package authz

import (
	"fmt"
	"maps"
	"slices"

	"claviger"
	"claviger/typo"
)

// Doubts tells which rules do nothing, or probably not what is meant, beside the
// warnings of Parse; each begins with where the rule is. known are the ACL names
// that keys have, nil where they are not known.
func (p *Policy) Doubts(known []string) []string {
	var out []string
	doubt := func(r rule, format string, args ...any) {
		text := fmt.Sprintf(format, args...)
		if r.from.Where != "" {
			text = r.from.Where + ": " + text
		}
		out = append(out, text)
	}
	for _, op := range ops {
		black, set := p.blacklist[op]
		if !set {
			continue
		}
		if black.all {
			doubt(black, "%s: * shuts out everybody, so that %s%s admits nobody", black.from.Name, opPrefix, op)
			continue
		}
		for _, u := range slices.Sorted(maps.Keys(black.users)) {
			if p.ops[op].users[u] {
				doubt(p.ops[op], "%s: names %s, whom %s shuts out", p.ops[op].from.Name, u, black.from.Name)
			}
		}
	}
	for _, name := range slices.Sorted(maps.Keys(p.keys)) {
		rules := p.keys[name]
		var of []KeyOp // in the order of keyOps
		for _, op := range keyOps {
			if _, ok := rules[op]; ok {
				of = append(of, op)
			}
		}
		first := rules[of[0]]
		if known != nil && !slices.Contains(known, name) {
			doubt(first, "%s: no key has the ACL name %q%s", first.from.Name, name,
				typo.DidYouMean(name, known, claviger.Printable))
		}
		if _, all := rules[KeyAll]; all {
			continue
		}
		for _, op := range keyOps[1:] {
			if d, ok := p.defaults[op]; ok && !slices.Contains(of, op) && (d.all || len(d.users)+len(d.groups) > 0) {
				doubt(first, "%s: as key %q has a rule of its own, %s (%s) does not count "+
					"for it; set %s%s.%s if it should",
					first.from.Name, name, d.from.Name, orNowhere(d.from.Where), keyPrefix, name, op)
			}
		}
	}
	return out
}

// AdmitsToKeys tells whether any rule at key level admits anybody. Where none does, and
// key authorization is on, no key can be used.
func (p *Policy) AdmitsToKeys() bool {
	admits := func(rules map[KeyOp]rule) bool {
		for _, r := range rules {
			if r.all || len(r.users)+len(r.groups) > 0 {
				return true
			}
		}
		return false
	}
	for _, rules := range p.keys {
		if admits(rules) {
			return true
		}
	}
	return admits(p.defaults) || admits(p.whitelist)
}

func orNowhere(where string) string {
	if where == "" {
		return "not in a file"
	}
	return where
}
