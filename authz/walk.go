package authz

import "claviger"

// walk decides for one caller. All rules are applied here: with a recorder, walk also explains the decision, so the
// explanation always matches the decision.
type walk struct {
	policy   *Policy
	caller   claviger.Principal
	groups   func(user string) []string
	recorder *recorder // nil: record nothing
}

// denyAll is used in the place of a nil Policy.
var denyAll = new(Policy)

func (p *Policy) walk(caller claviger.Principal, groups func(user string) []string) walk {
	if p == nil {
		p = denyAll
	}
	return walk{policy: p, caller: caller, groups: groups}
}

// operation applies the list of an operation, then its blacklist.
func (w *walk) operation(op Op) bool {
	list, known := w.policy.ops[op]
	by, group := list.admits(w.caller, w.groups)
	w.recorder.operation(op, &list, known, by, group)
	if by == notAdmitted {
		return false
	}
	black := w.policy.blacklist[op]
	by, group = black.excludes(w.caller, w.groups)
	w.recorder.blacklist(op, &black, by, group)
	return by == notAdmitted
}

// key applies the rules of right, then those of ALL: the key's own rules, or the defaults if the key has none, and the
// whitelist.
func (w *walk) key(aclName string, right KeyOp, refused func(KeyOp)) bool {
	rules, own := w.policy.keys[aclName]
	if !own {
		rules = w.policy.defaults
		_, byDefault := rules[right]
		_, whitelisted := w.policy.whitelist[right]
		if !byDefault && !whitelisted {
			w.recorder.noKeyRule(aclName, right)
			return false
		}
	}
	for _, op := range [...]KeyOp{right, KeyAll} {
		if w.keyRule(rules, aclName, own, op) || w.whitelist(op) {
			return true
		}
		if refused != nil {
			refused(op)
		}
	}
	w.recorder.keyRefused()
	return false
}

func (w *walk) keyRule(rules map[KeyOp]rule, aclName string, own bool, op KeyOp) bool {
	r := rules[op]
	by, group := r.admits(w.caller, w.groups)
	w.recorder.keyRule(aclName, own, op, &r, by, group)
	return by != notAdmitted
}

func (w *walk) whitelist(op KeyOp) bool {
	r := w.policy.whitelist[op]
	by, group := r.admits(w.caller, w.groups)
	w.recorder.whitelist(op, &r, by, group)
	return by != notAdmitted
}

// migrate applies the rules of KeyMigrate: the key's own rule, or the default if the key has none; then the whitelist.
func (w *walk) migrate(aclName string) bool {
	first := keyPrefix + aclName + "." + string(KeyMigrate)
	if _, set := w.policy.migrate[first]; !set {
		first = defaultPrefix + string(KeyMigrate)
	}
	for i, name := range [...]string{first, whitelistPrefix + string(KeyMigrate)} {
		r := w.policy.migrate[name]
		by, group := r.admits(w.caller, w.groups)
		w.recorder.migrate(name, i == 0, &r, by, group)
		if by != notAdmitted {
			return true
		}
	}
	return false
}
