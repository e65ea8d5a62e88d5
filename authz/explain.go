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

// Explain decides as May, MayKey and MayMigrate do, and says by which rules.
// aclName is the key's; with "" the key-level rules are not asked, as where
// hadoop.kms.key.authorization.enable is false; those of KeyMigrate always are.
func (p *Policy) Explain(r Request, aclName string, who claviger.Principal,
	groups func(user string) []string) Decision {
	w := p.walk(who, groups)
	w.recorder = &recorder{who: who, groups: groups}
	allowed := false
	if r.Key == KeyMigrate {
		allowed = w.migrate(aclName)
		return Decision{Allowed: allowed, Steps: w.recorder.steps}
	}
	for _, op := range r.Any {
		if allowed = w.operation(op); allowed {
			break
		}
	}
	if allowed && r.Key != "" && aclName != "" {
		allowed = w.key(aclName, r.Key, nil)
	}
	return Decision{Allowed: allowed, Steps: w.recorder.steps}
}

// recorder puts the steps of a walk into words. The methods that a walk calls do
// nothing on nil. by and group are what the rule answered.
type recorder struct {
	who    claviger.Principal
	groups func(user string) []string
	steps  []Step
}

// Values of Step.Level.
const (
	atOperation = "operation"
	atKey       = "key"
)

// unsettle takes the decision from the steps so far.
func (c *recorder) unsettle() {
	for i := range c.steps {
		c.steps[i].Decides = false
	}
}

// add appends a step. If decides is true, it decides until another step does.
func (c *recorder) add(level, property string, r *rule, decides bool, format string, args ...any) {
	if decides {
		c.unsettle()
	}
	c.steps = append(c.steps, Step{Level: level, Property: property, Set: r.set(), Where: r.from.Where,
		Value: r.from.Value, Says: fmt.Sprintf(format, args...), Decides: decides})
}

// operation records the list of an operation; known is false where there are no rules.
func (c *recorder) operation(op Op, r *rule, known bool, by admission, group string) {
	if c == nil {
		return
	}
	name := op.property()
	switch {
	case !known:
		c.add(atOperation, name, r, true, "there are no rules: denied")
	case by == byNothing && !r.set():
		c.add(atOperation, name, r, true, "not set: closed to everybody, unlike Hadoop's own operations")
	case by == byNothing:
		c.add(atOperation, name, r, true, "%s: denied", c.absent())
	case !r.set():
		c.add(atOperation, name, r, true, "not set: open to everybody at operation level")
	default:
		c.add(atOperation, name, r, true, "%s: admitted", c.present(by, group))
	}
}

// blacklist records the blacklist of an operation; those of package variable trustee
// have none.
func (c *recorder) blacklist(op Op, r *rule, by admission, group string) {
	if c == nil || slices.Contains(trustee, op) {
		return
	}
	name := blacklistPrefix + string(op)
	switch {
	case !r.set():
		c.add(atOperation, name, r, false, "not set: nobody is shut out")
	case by != byNothing:
		c.add(atOperation, name, r, true, "%s: shut out, denied", c.present(by, group))
	default:
		c.add(atOperation, name, r, false, "%s: not shut out", c.absent())
	}
}

// noKeyRule records that no rule concerns a right on a key.
func (c *recorder) noKeyRule(aclName string, op KeyOp) {
	if c == nil {
		return
	}
	c.add(atKey, keyPrefix+aclName+"."+string(op), &rule{}, true,
		"neither a key.acl.%s.* nor %s%s nor %s%s is set: denied", aclName, defaultPrefix, op, whitelistPrefix, op)
}

// keyRule records the key's own rule of an operation, or the default where own is
// false.
func (c *recorder) keyRule(aclName string, own bool, op KeyOp, r *rule, by admission, group string) {
	switch {
	case c == nil:
	case own && !r.set():
		c.add(atKey, keyPrefix+aclName+"."+string(op), r, false,
			"not set, and as key.acl.%s.* has another operation, the defaults do not count: not admitted by it",
			aclName)
	case own:
		c.listed(keyPrefix+aclName+"."+string(op), r, by, group)
	default:
		c.shared(defaultPrefix, op, r, by, group)
	}
}

// whitelist records the whitelist's rule of an operation.
func (c *recorder) whitelist(op KeyOp, r *rule, by admission, group string) {
	if c != nil {
		c.shared(whitelistPrefix, op, r, by, group)
	}
}

// shared records a rule that is for every key. ALL cannot have one, so that it is
// not missed.
func (c *recorder) shared(prefix string, op KeyOp, r *rule, by admission, group string) {
	switch {
	case r.set():
		c.listed(prefix+string(op), r, by, group)
	case op != KeyAll:
		c.add(atKey, prefix+string(op), r, false, "not set: not admitted by it")
	}
}

// listed records a key-level rule that is set.
func (c *recorder) listed(name string, r *rule, by admission, group string) {
	if by == byNothing {
		c.add(atKey, name, r, false, "%s: not admitted by it", c.absent())
		return
	}
	c.add(atKey, name, r, true, "%s: admitted", c.present(by, group))
}

// keyRefused makes the first key-level step the one that decides: that is the rule
// of the right itself, rather than of ALL.
func (c *recorder) keyRefused() {
	if c == nil {
		return
	}
	c.unsettle()
	if i := slices.IndexFunc(c.steps, func(s Step) bool { return s.Level == atKey }); i >= 0 {
		c.steps[i].Decides = true
	}
}

// migrate records a rule of KeyMigrate; the first one decides where none admits.
func (c *recorder) migrate(name string, first bool, r *rule, by admission, group string) {
	switch {
	case c == nil:
	case by != byNothing:
		c.add(atKey, name, r, true, "%s: admitted", c.present(by, group))
	case !r.set():
		c.add(atKey, name, r, first, "not set: closed to everybody, unlike Hadoop's own rights")
	default:
		c.add(atKey, name, r, first, "%s: not admitted by it", c.absent())
	}
}

func (c *recorder) present(by admission, group string) string {
	switch by {
	case byStar:
		return "* is everybody"
	case byGroup:
		return c.who.Short + " is in the group " + group
	case byUnknownGroups:
		return "the groups of " + c.who.Short + " cannot be looked up, and it names groups"
	case byRealUser:
		return c.who.Short + " is impersonated by " + c.who.Real.Short + ", which " + realUserMark + c.who.Real.Short +
			" admits"
	}
	return c.who.Short + " is named"
}

// absent says that a list does not hold the caller. It names the caller's groups, which
// are the usual surprise.
func (c *recorder) absent() string {
	var of []string
	if c.groups != nil {
		of = c.groups(c.who.Short)
	}
	if len(of) == 0 {
		return c.who.Short + " (in no group) is not in it"
	}
	if slices.Contains(of, unknownGroup) {
		return c.who.Short + " (groups cannot be looked up) is not in it"
	}
	return c.who.Short + " (groups " + strings.Join(of, ", ") + ") is not in it"
}
