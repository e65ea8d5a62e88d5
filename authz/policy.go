package authz

import (
	"fmt"
	"slices"
	"strings"

	"claviger"
	"claviger/typo"
)

// Families of property names in kms-acls.xml.
const (
	opPrefix        = "hadoop.kms.acl."
	trusteePrefix   = "keytrustee.kms.acl."
	blacklistPrefix = "hadoop.kms.blacklist."
	keyPrefix       = "key.acl."
	defaultPrefix   = "default.key.acl."
	whitelistPrefix = "whitelist.key.acl."
)

var (
	ops     = []Op{Create, Delete, Rollover, Get, GetKeys, GetMetadata, SetKeyMaterial, GenerateEEK, DecryptEEK}
	trustee = []Op{Undelete, Purge}
	keyOps  = []KeyOp{KeyAll, KeyRead, KeyManagement, KeyGenerateEEK, KeyDecryptEEK}
)

// Policy is a parsed kms-acls.xml. It is immutable. The zero value and nil deny everything. For an empty file, use
// Parse(nil).
type Policy struct {
	ops       map[Op]rule
	blacklist map[Op]rule
	keys      map[string]map[KeyOp]rule // by ACL name
	defaults  map[KeyOp]rule            // for ACL names that are not in keys
	whitelist map[KeyOp]rule            // in addition, for each ACL name
	migrate   map[string]rule           // the rules of KeyMigrate, by property
}

// rule is an ACL and the property that it comes from. The property's name is "" if the property is not set.
type rule struct {
	ACL
	from Property
}

func (r *rule) set() bool { return r.from.Name != "" }

// Property is a name and a value of kms-acls.xml. Variables in the value are expanded. The value is not trimmed,
// because a leading space has a meaning in an ACL.
type Property struct {
	Name, Value string
	Where       string // file and line, for messages; may be ""
}

// Parse makes a Policy of the properties of kms-acls.xml. If a name is given twice, the later value counts, as in
// Hadoop. Parse never fails: a property that it cannot read admits nobody, and causes a warning with its name.
//
// If its hadoop.kms.acl property is not set, an operation is open to everybody. If its hadoop.kms.blacklist property is
// not set, nobody is excluded. If its keytrustee.kms.acl property is not set, an operation is closed to everybody. At
// key level, a user without a rule is denied.
func Parse(props []Property) (p *Policy, warnings []string) {
	p = &Policy{
		ops: make(map[Op]rule), blacklist: make(map[Op]rule),
		keys: make(map[string]map[KeyOp]rule), defaults: make(map[KeyOp]rule), whitelist: make(map[KeyOp]rule),
		migrate: make(map[string]rule),
	}
	for _, op := range ops {
		p.ops[op] = rule{ACL: ACL{all: true}}
	}
	for _, op := range trustee {
		p.ops[op] = rule{}
	}
	var foreign []string // warnings about properties that are no ACLs
	for _, prop := range props {
		at := prop.Name
		if prop.Where != "" {
			at = prop.Where + ": " + prop.Name
		}
		complaint := p.set(prop.Name, rule{ParseACL(prop.Value), prop})
		if complaint == noACL {
			foreign = append(foreign, at+": "+complaint)
			continue
		}
		if complaint != "" {
			warnings = append(warnings, fmt.Sprintf("%s: %s", at, complaint))
			continue
		}
		if rest, ok := strings.CutPrefix(prop.Name, keyPrefix); ok && strings.Contains(rest, "*") {
			warnings = append(warnings,
				fmt.Sprintf("%s: applies only to the key %q: there are no wildcards in the names of keys; write a "+
					"rule for each key, or use %s<OP> or %s<OP>",
					at, rest[:strings.LastIndexByte(rest, '.')], defaultPrefix, whitelistPrefix))
		}
		for _, s := range valueWarnings(prop.Value) {
			warnings = append(warnings, fmt.Sprintf("%s: value %q: %s", at, prop.Value, s))
		}
	}
	// A file that a program wrote may have all of Hadoop's defaults, so the number of warnings is limited.
	if n := len(foreign); n > maxForeign {
		foreign = append(foreign[:maxForeign], fmt.Sprintf("%d more are not properties of kms-acls.xml and are ignored",
			n-maxForeign))
	}
	return p, append(warnings, foreign...)
}

const (
	// noACL is the warning about a property that is not an ACL.
	noACL = "is not a property of kms-acls.xml and is ignored"
	// maxForeign is the maximum number of such warnings.
	maxForeign = 10
)

// set stores one ACL under its property's name. complaint is the reason if that is not possible.
func (p *Policy) set(name string, a rule) (complaint string) {
	if op, ok := strings.CutPrefix(name, opPrefix); ok {
		return put(p.ops, ops, op, a)
	}
	if op, ok := strings.CutPrefix(name, trusteePrefix); ok {
		return put(p.ops, trustee, op, a)
	}
	if op, ok := strings.CutPrefix(name, blacklistPrefix); ok {
		return put(p.blacklist, ops, op, a)
	}
	if isMigrateRule(name) {
		p.migrate[name] = a
		return ""
	}
	if op, ok := strings.CutPrefix(name, defaultPrefix); ok {
		return putUnlessAll(p.defaults, op, a)
	}
	if op, ok := strings.CutPrefix(name, whitelistPrefix); ok {
		return putUnlessAll(p.whitelist, op, a)
	}
	if rest, ok := strings.CutPrefix(name, keyPrefix); ok {
		// A key's name may contain dots: the last dot ends it.
		dot := strings.LastIndexByte(rest, '.')
		if dot <= 0 {
			return "names no key and is ignored; the form is key.acl.<key>.<OP>"
		}
		key, op := rest[:dot], rest[dot+1:]
		byOp := p.keys[key]
		if byOp == nil {
			byOp = make(map[KeyOp]rule)
		}
		complaint = put(byOp, keyOps, op, a)
		if len(byOp) > 0 {
			p.keys[key] = byOp
		}
		return complaint
	}
	return noACL + typo.DidYouMean(name, knownNames(name), claviger.Printable)
}

func put[O ~string](into map[O]rule, known []O, op string, a rule) (complaint string) {
	words := make([]string, len(known))
	for i, k := range known {
		if string(k) == op {
			into[k] = a
			return ""
		}
		words[i] = string(k)
	}
	if _, ok := any(known).([]KeyOp); ok {
		words = append(words, string(KeyMigrate))
	}
	return fmt.Sprintf("there is no operation %q, so the property is ignored%s", op,
		typo.DidYouMean(op, words, claviger.Printable))
}

// putUnlessAll is put for a default or the whitelist, where Hadoop ignores ALL.
func putUnlessAll(into map[KeyOp]rule, op string, a rule) (complaint string) {
	if op == string(KeyAll) {
		return "ALL is not allowed here, so the property is ignored, as in Hadoop; write rules for READ, MANAGEMENT, " +
			"GENERATE_EEK and DECRYPT_EEK"
	}
	return put(into, keyOps, op, a)
}

// knownNames returns correct names that name may be a misspelling of.
func knownNames(name string) []string {
	var out []string
	for _, op := range ops {
		out = append(out, opPrefix+string(op), blacklistPrefix+string(op))
	}
	for _, op := range trustee {
		out = append(out, trusteePrefix+string(op))
	}
	for _, op := range append(slices.Clone(keyOps[1:]), KeyMigrate) {
		out = append(out, defaultPrefix+string(op), whitelistPrefix+string(op))
	}
	if parts := strings.SplitN(name, ".", 3); len(parts) == 3 {
		out = append(out, keyPrefix+parts[2])
	}
	return out
}

// property returns the name of the property that grants an operation.
func (op Op) property() string {
	if slices.Contains(trustee, op) {
		return trusteePrefix + string(op)
	}
	return opPrefix + string(op)
}

// May reports whether the operation-level rules, with the blacklists, admit the caller. groups returns the groups of a
// user's short name. It is called only if a rule names groups, and may be nil.
func (p *Policy) May(op Op, caller claviger.Principal, groups func(user string) []string) bool {
	w := p.walk(caller, groups)
	return w.operation(op)
}

// MayKey is Hadoop's isACLPresent and hasAccessToKey. It reports whether the key-level rules of right, or else those of
// ALL, admit the caller. If a name has any rule of its own, the defaults do not apply to it, so operations without a
// rule are closed. The whitelist always applies. If there is no rule for the name and the right, the result is false.
//
// If refused is not nil, MayKey calls it with each right whose rules were applied and did not admit the caller: with
// right, then with ALL.
func (p *Policy) MayKey(aclName string, right KeyOp, caller claviger.Principal, groups func(user string) []string,
	refused func(KeyOp)) bool {
	w := p.walk(caller, groups)
	return w.key(aclName, right, refused)
}

// isMigrateRule reports whether name is a property of KeyMigrate. A key's name may contain dots.
func isMigrateRule(name string) bool {
	before, ok := strings.CutSuffix(name, string(KeyMigrate))
	if !ok {
		return false
	}
	if before == defaultPrefix || before == whitelistPrefix {
		return true
	}
	key, ok := strings.CutPrefix(before, keyPrefix)
	return ok && len(key) > 1 && strings.HasSuffix(key, ".")
}

// MayMigrate reports whether the rules of KeyMigrate let the caller migrate a key with that ACL name: the key's own
// rule, or the default if the key has none, or the whitelist.
func (p *Policy) MayMigrate(aclName string, caller claviger.Principal, groups func(user string) []string) bool {
	w := p.walk(caller, groups)
	return w.migrate(aclName)
}

// MayMigrateAny reports whether MayMigrate is true for any ACL name. Other callers can be refused before the source
// is called.
func (p *Policy) MayMigrateAny(caller claviger.Principal, groups func(user string) []string) bool {
	if p == nil {
		return false
	}
	for _, rule := range p.migrate {
		if rule.Admits(caller, groups) {
			return true
		}
	}
	return false
}
