package authz

import (
	"fmt"
	"slices"
	"strings"

	"claviger"
)

// Step is one rule that was looked at on the way to a decision.
type Step struct {
	Level    string `json:"level"`           // "operation" or "key"
	Property string `json:"property"`        // the one that was looked for
	Set      bool   `json:"set"`             // is it set?
	Where    string `json:"where,omitempty"` // file and line, where it is set
	Value    string `json:"value,omitempty"`
	Says     string `json:"says"` // what follows from it, in words
	Decides  bool   `json:"decides"`
}

// Decision is an answer with its reasons, in the order of evaluation.
type Decision struct {
	Allowed bool   `json:"allowed"`
	Steps   []Step `json:"steps"`
}

// DecidedBy returns the step that decided; false where a request needs no rule.
func (d Decision) DecidedBy() (Step, bool) {
	for i := len(d.Steps) - 1; i >= 0; i-- {
		if d.Steps[i].Decides {
			return d.Steps[i], true
		}
	}
	return Step{}, false
}

// Explain tells whether a request is admitted, and by which rules. aclName is the
// key's; with "" the key-level rules are not asked, as where
// hadoop.kms.key.authorization.enable is false; those of KeyMigrate always are. It
// decides as May, KeyRulePresent, MayKey and MayMigrate do, which tests hold.
func (p *Policy) Explain(r Request, aclName string, who claviger.Principal,
	groups func(user string) []string) Decision {
	if p == nil {
		p = new(Policy)
	}
	e := &explainer{policy: p, who: who, groups: groups}
	if r.Key == KeyMigrate {
		allowed := e.migrate(aclName)
		return Decision{Allowed: allowed, Steps: e.steps}
	}
	allowed := false
	for _, op := range r.Any {
		if allowed = e.operation(op); allowed {
			break
		}
	}
	if allowed && r.Key != "" && aclName != "" {
		e.settle() // the grant at operation level was not the last word
		allowed = e.key(aclName, r.Key)
	}
	return Decision{Allowed: allowed, Steps: e.steps}
}

type explainer struct {
	policy *Policy
	who    claviger.Principal
	groups func(user string) []string
	steps  []Step
}

func (e *explainer) settle() {
	for i := range e.steps {
		e.steps[i].Decides = false
	}
}

// add notes a step; it decides until another one does.
func (e *explainer) add(level, property string, r rule, decides bool, format string, args ...any) {
	s := Step{Level: level, Property: property, Set: r.from.Name != "", Where: r.from.Where, Value: r.from.Value,
		Says: fmt.Sprintf(format, args...), Decides: decides}
	if decides {
		e.settle()
	}
	e.steps = append(e.steps, s)
}

// operation is May.
func (e *explainer) operation(op Op) bool {
	const level = "operation"
	name := op.property()
	rule, known := e.policy.ops[op]
	by, group := rule.admits(e.who, e.groups)
	switch {
	case !known:
		e.add(level, name, rule, true, "there are no rules: denied")
		return false
	case by == byNothing && rule.from.Name == "":
		e.add(level, name, rule, true, "not set: closed to everybody, unlike Hadoop's own operations")
		return false
	case by == byNothing:
		e.add(level, name, rule, true, "%s: denied", e.absent())
		return false
	case rule.from.Name == "":
		e.add(level, name, rule, true, "not set: open to everybody at operation level")
	default:
		e.add(level, name, rule, true, "%s: admitted", e.present(by, group))
	}
	if slices.Contains(trustee, op) {
		return true // there is no blacklist for it
	}
	black, set := e.policy.blacklist[op]
	name = blacklistPrefix + string(op)
	if !set {
		e.add(level, name, black, false, "not set: nobody is shut out")
		return true
	}
	if by, group = black.shutsOut(e.who, e.groups); by != byNothing {
		e.add(level, name, black, true, "%s: shut out, denied", e.present(by, group))
		return false
	}
	e.add(level, name, black, false, "%s: not shut out", e.absent())
	return true
}

// key is KeyRulePresent and MayKey, for the right and then for ALL.
func (e *explainer) key(aclName string, op KeyOp) bool {
	const level = "key"
	if !e.policy.KeyRulePresent(aclName, op) {
		e.add(level, keyPrefix+aclName+"."+string(op), rule{}, true,
			"neither a key.acl.%s.* nor %s%s nor %s%s is set: denied", aclName, defaultPrefix, op, whitelistPrefix, op)
		return false
	}
	own, named := e.policy.keys[aclName]
	for _, op := range [...]KeyOp{op, KeyAll} {
		rules, name := own, keyPrefix+aclName+"."+string(op)
		if !named {
			rules, name = e.policy.defaults, defaultPrefix+string(op)
		}
		if e.keyRule(level, name, rules, op, named, aclName) || e.keyRule(level, whitelistPrefix+string(op),
			e.policy.whitelist, op, false, "") {
			return true
		}
	}
	// What shut him out is the rule of the right itself, rather than ALL's.
	for i := range e.steps {
		if s := &e.steps[i]; s.Level == level {
			e.settle()
			s.Decides = true
			break
		}
	}
	return false
}

// keyRule asks one list. ALL is no default and in no whitelist, so there it is
// passed over in silence.
func (e *explainer) keyRule(level, name string, rules map[KeyOp]rule, op KeyOp, named bool, aclName string) bool {
	r, set := rules[op]
	if !set {
		switch {
		case named:
			e.add(level, name, r, false,
				"not set, and as key.acl.%s.* has another operation, the defaults do not count: not admitted by it", aclName)
		case op != KeyAll:
			e.add(level, name, r, false, "not set: not admitted by it")
		}
		return false
	}
	by, group := r.admits(e.who, e.groups)
	if by == byNothing {
		e.add(level, name, r, false, "%s: not admitted by it", e.absent())
		return false
	}
	e.add(level, name, r, true, "%s: admitted", e.present(by, group))
	return true
}

// migrate is MayMigrate.
func (e *explainer) migrate(aclName string) bool {
	names := e.policy.migrateRules(aclName)
	if names == nil {
		names = []string{defaultPrefix + string(KeyMigrate)}
	}
	for i, name := range names {
		r := e.policy.migrate[name]
		by, group := r.admits(e.who, e.groups)
		switch {
		case by != byNothing:
			e.add("key", name, r, true, "%s: admitted", e.present(by, group))
			return true
		case r.from.Name == "":
			e.add("key", name, r, i == 0, "not set: closed to everybody, unlike Hadoop's own rights")
		default:
			e.add("key", name, r, i == 0, "%s: not admitted by it", e.absent())
		}
	}
	return false
}

func (e *explainer) present(by admission, group string) string {
	switch by {
	case byStar:
		return "* is everybody"
	case byGroup:
		return e.who.Short + " is in the group " + group
	case byUnknownGroups:
		return "the groups of " + e.who.Short + " cannot be looked up, and it names groups"
	case byRealUser:
		return e.who.Short + " is impersonated by " + e.who.Real.Short + ", which " + realUserMark + e.who.Real.Short +
			" admits"
	}
	return e.who.Short + " is named"
}

// absent says that a list does not hold the caller, with the groups that he is
// taken to be in, since these are what people are mostly wrong about.
func (e *explainer) absent() string {
	var of []string
	if e.groups != nil {
		of = e.groups(e.who.Short)
	}
	if len(of) == 0 {
		return e.who.Short + " (in no group) is not in it"
	}
	if slices.Contains(of, unknownGroup) {
		return e.who.Short + " (groups cannot be looked up) is not in it"
	}
	return e.who.Short + " (groups " + strings.Join(of, ", ") + ") is not in it"
}
