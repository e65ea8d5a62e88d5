package authz

import (
	"fmt"
	"slices"
	"strings"

	"claviger"
)

// Step is one rule that was evaluated for a decision.
type Step struct {
	Level    string `json:"level"`           // "operation" or "key"
	Property string `json:"property"`        // the name of the rule's property
	Set      bool   `json:"set"`             // the property is set
	Where    string `json:"where,omitempty"` // file and line, if it is set
	Value    string `json:"value,omitempty"`
	Says     string `json:"says"` // the result, in words
	Decides  bool   `json:"decides"`
}

// Decision is a decision with its steps, in the order of evaluation.
type Decision struct {
	Allowed bool   `json:"allowed"`
	Steps   []Step `json:"steps"`
}

// DecidedBy returns the step that decided; false if the request needed no rule.
func (d Decision) DecidedBy() (Step, bool) {
	for i := len(d.Steps) - 1; i >= 0; i-- {
		if d.Steps[i].Decides {
			return d.Steps[i], true
		}
	}
	return Step{}, false
}

// Explain decides as May, MayKey and MayMigrate do, and returns the rules that decided. aclName is the ACL name of the
// key. If it is "", the key-level rules are not evaluated, as if hadoop.kms.key.authorization.enable were false; but
// the rules of KeyMigrate always are.
func (p *Policy) Explain(r Request, aclName string, caller claviger.Principal,
	groups func(user string) []string) Decision {
	w := p.walk(caller, groups)
	w.recorder = &recorder{caller: caller, groups: groups}
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

// recorder records the steps of a walk in words. The methods that a walk calls do nothing if the recorder is nil. Their
// parameters by and group are the result of the rule.
type recorder struct {
	caller claviger.Principal
	groups func(user string) []string
	steps  []Step
}

// Values of Step.Level.
const (
	atOperation = "operation"
	atKey       = "key"
)

// clearDecision removes the decision from the steps so far.
func (c *recorder) clearDecision() {
	for i := range c.steps {
		c.steps[i].Decides = false
	}
}

// add appends a step. If decides is true, it decides until another step does.
func (c *recorder) add(level, property string, r *rule, decides bool, format string, args ...any) {
	if decides {
		c.clearDecision()
	}
	c.steps = append(c.steps, Step{Level: level, Property: property, Set: r.set(), Where: r.from.Where,
		Value: r.from.Value, Says: fmt.Sprintf(format, args...), Decides: decides})
}

// operation records the list of an operation; known is false if there are no rules.
func (c *recorder) operation(op Op, r *rule, known bool, by admission, group string) {
	if c == nil {
		return
	}
	name := op.property()
	switch {
	case !known:
		c.add(atOperation, name, r, true, "there are no rules: denied")
	case by == notAdmitted && !r.set():
		c.add(atOperation, name, r, true, "not set: closed to everybody, unlike Hadoop's own operations")
	case by == notAdmitted:
		c.add(atOperation, name, r, true, "%s: denied", c.absent())
	case !r.set():
		c.add(atOperation, name, r, true, "not set: open to everybody at operation level")
	default:
		c.add(atOperation, name, r, true, "%s: admitted", c.present(by, group))
	}
}

// blacklist records the blacklist of an operation. The operations of the variable trustee have none.
func (c *recorder) blacklist(op Op, r *rule, by admission, group string) {
	if c == nil || slices.Contains(trustee, op) {
		return
	}
	name := blacklistPrefix + string(op)
	switch {
	case !r.set():
		c.add(atOperation, name, r, false, "not set: nobody is excluded")
	case by != notAdmitted:
		c.add(atOperation, name, r, true, "%s: excluded, denied", c.present(by, group))
	default:
		c.add(atOperation, name, r, false, "%s: not excluded", c.absent())
	}
}

// noKeyRule records that there is no rule for a right on a key.
func (c *recorder) noKeyRule(aclName string, op KeyOp) {
	if c == nil {
		return
	}
	c.add(atKey, keyPrefix+aclName+"."+string(op), &rule{}, true,
		"neither a key.acl.%s.* nor %s%s nor %s%s is set: denied", aclName, defaultPrefix, op, whitelistPrefix, op)
}

// keyRule records the key's own rule of an operation, or the default if own is false.
func (c *recorder) keyRule(aclName string, own bool, op KeyOp, r *rule, by admission, group string) {
	switch {
	case c == nil:
	case own && !r.set():
		c.add(atKey, keyPrefix+aclName+"."+string(op), r, false,
			"not set, and the defaults do not apply because key.acl.%s.* has another operation: not admitted by it",
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

// shared records a rule for all keys. There is no such rule for ALL, so a missing one is not recorded.
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
	if by == notAdmitted {
		c.add(atKey, name, r, false, "%s: not admitted by it", c.absent())
		return
	}
	c.add(atKey, name, r, true, "%s: admitted", c.present(by, group))
}

// keyRefused makes the first key-level step decide. That is the rule of the right itself, not of ALL.
func (c *recorder) keyRefused() {
	if c == nil {
		return
	}
	c.clearDecision()
	if i := slices.IndexFunc(c.steps, func(s Step) bool { return s.Level == atKey }); i >= 0 {
		c.steps[i].Decides = true
	}
}

// migrate records a rule of KeyMigrate. If no rule admits, the first one decides.
func (c *recorder) migrate(name string, first bool, r *rule, by admission, group string) {
	switch {
	case c == nil:
	case by != notAdmitted:
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
		return c.caller.Short + " is in the group " + group
	case byUnknownGroups:
		return "the groups of " + c.caller.Short + " cannot be looked up, and it names groups"
	case byRealUser:
		return c.caller.Short + " is impersonated by " + c.caller.Real.Short + ", which " + realUserMark +
			c.caller.Real.Short + " admits"
	}
	return c.caller.Short + " is named"
}

// absent returns the text for a list that does not contain the caller. It has the caller's groups, because they are
// often not what the administrator expects.
func (c *recorder) absent() string {
	var groups []string
	if c.groups != nil {
		groups = c.groups(c.caller.Short)
	}
	if len(groups) == 0 {
		return c.caller.Short + " (in no group) is not in it"
	}
	if slices.Contains(groups, unknownGroup) {
		return c.caller.Short + " (groups cannot be looked up) is not in it"
	}
	return c.caller.Short + " (groups " + strings.Join(groups, ", ") + ") is not in it"
}
