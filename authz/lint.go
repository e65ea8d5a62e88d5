package authz

import (
	"fmt"
	"maps"
	"slices"

	"claviger"
	"claviger/typo"
)

// Lint returns rules that have no effect, or probably not the effect that was meant, in addition to the warnings of
// Parse. Each text begins with the place of the rule. known has the ACL names of the keys; nil if they are not known.
func (p *Policy) Lint(known []string) []string {
	var out []string
	report := func(r rule, format string, args ...any) {
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
			report(black, "%s: * excludes everybody, so %s%s admits nobody", black.from.Name, opPrefix, op)
			continue
		}
		for _, u := range slices.Sorted(maps.Keys(black.users)) {
			if p.ops[op].users[u] {
				report(p.ops[op], "%s: names %s, but %s excludes that user", p.ops[op].from.Name, u, black.from.Name)
			}
		}
	}
	for _, name := range slices.Sorted(maps.Keys(p.keys)) {
		rules := p.keys[name]
		var own []KeyOp // operations with a rule, in the order of keyOps
		for _, op := range keyOps {
			if _, ok := rules[op]; ok {
				own = append(own, op)
			}
		}
		first := rules[own[0]]
		if known != nil && !slices.Contains(known, name) {
			report(first, "%s: no key has the ACL name %q%s", first.from.Name, name,
				typo.DidYouMean(name, known, claviger.Printable))
		}
		if _, all := rules[KeyAll]; all {
			continue
		}
		for _, op := range keyOps[1:] {
			if d, ok := p.defaults[op]; ok && !slices.Contains(own, op) && (d.all || len(d.users)+len(d.groups) > 0) {
				report(first, "%s: key %q has its own rule, so %s (%s) does not apply to it; if it should, set %s%s.%s",
					first.from.Name, name, d.from.Name, whereOrNone(d.from.Where), keyPrefix, name, op)
			}
		}
	}
	return out
}

// AdmitsToKeys reports whether a rule at key level admits any user. If none does, and key authorization is on, no key
// can be used.
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

func whereOrNone(where string) string {
	if where == "" {
		return "not in a file"
	}
	return where
}
