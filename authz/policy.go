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

// Policy is a parsed kms-acls.xml. It is immutable. The zero value and nil admit
// nobody to anything; what an empty file means is Parse(nil).
type Policy struct {
	ops       map[Op]rule
	blacklist map[Op]rule
	keys      map[string]map[KeyOp]rule // by ACL name
	defaults  map[KeyOp]rule            // for ACL names that keys does not hold
	whitelist map[KeyOp]rule            // in addition, for every ACL name
	migrate   map[string]rule           // those of KeyMigrate, by property
}

// rule is an ACL and the property that it comes from; the property's name is ""
// where none is set.
type rule struct {
	ACL
	from Property
}

func (r *rule) set() bool { return r.from.Name != "" }

// Property is one name and value of kms-acls.xml, variables expanded, the value
// not trimmed (a leading space has a meaning in an ACL).
type Property struct {
	Name, Value string
	Where       string // file and line, for people; it may be ""
}

// Parse makes a Policy of kms-acls.xml's properties; of one name given twice the
// later counts, as in Hadoop. It never fails: what it does not understand admits
// nobody and is told in a warning that names the property.
//
// An operation without its hadoop.kms.acl property is open to everybody, and
// without its hadoop.kms.blacklist property closed to nobody. One without its
// keytrustee.kms.acl property is closed to everybody. At key level what
// is not named is denied.
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
	var foreign []string // what resembles no ACL
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
				fmt.Sprintf("%s: is for the one key %q: there are no wildcards in the names of keys; write a rule "+
					"for each key, or use %s<OP> or %s<OP>",
					at, rest[:strings.LastIndexByte(rest, '.')], defaultPrefix, whitelistPrefix))
		}
		for _, s := range suspicions(prop.Value) {
			warnings = append(warnings, fmt.Sprintf("%s: value %q: %s", at, prop.Value, s))
		}
	}
	// A file that somebody's program wrote may hold all of Hadoop's defaults.
	if n := len(foreign); n > maxForeign {
		foreign = append(foreign[:maxForeign], fmt.Sprintf("%d more are not properties of kms-acls.xml and are ignored",
			n-maxForeign))
	}
	return p, append(warnings, foreign...)
}

// noACL is said of a name that resembles no ACL's, and maxForeign is of how many
// names at most.
const (
	noACL      = "is not a property of kms-acls.xml and is ignored"
	maxForeign = 10
)

// set files one ACL under its property's name; complaint says why it could not.
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
		// A key's name may hold dots: the last one ends it.
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
	return fmt.Sprintf("there is no operation %q, so that it is ignored%s", op,
		typo.DidYouMean(op, words, claviger.Printable))
}

// putUnlessAll: Hadoop ignores ALL as a default and in the whitelist.
func putUnlessAll(into map[KeyOp]rule, op string, a rule) (complaint string) {
	if op == string(KeyAll) {
		return "ALL is not allowed here, so that it is ignored, as in Hadoop; name READ, MANAGEMENT, " +
			"GENERATE_EEK, DECRYPT_EEK one by one"
	}
	return put(into, keyOps, op, a)
}

// knownNames lists the names that name may be a misspelling of.
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

// property is the name of the property that grants an operation.
func (op Op) property() string {
	if slices.Contains(trustee, op) {
		return trusteePrefix + string(op)
	}
	return opPrefix + string(op)
}

// May reports whether the operation-level rules admit who, blacklists included.
// groups returns the groups of a user's short name; it is asked only where a
// rule names groups, and may be nil.
func (p *Policy) May(op Op, who claviger.Principal, groups func(user string) []string) bool {
	w := p.walk(who, groups)
	return w.operation(op)
}

// MayKey is Hadoop's isACLPresent and hasAccessToKey: it reports whether the key-level
// rules of right, or else those of ALL, admit who. A name with any rule of its
// own is closed to all operations that it has no rule for: the defaults are not
// consulted then; the whitelist always is. Where no rule at all concerns the name
// and the right, the answer is no.
//
// MayKey calls refused, unless it is nil, with each right whose rules were applied and
// did not admit the caller: with right, then with ALL.
func (p *Policy) MayKey(aclName string, right KeyOp, who claviger.Principal, groups func(user string) []string,
	refused func(KeyOp)) bool {
	w := p.walk(who, groups)
	return w.key(aclName, right, refused)
}

// isMigrateRule tells the properties of KeyMigrate. A key's name may hold dots.
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

// MayMigrate reports whether the rules of KeyMigrate let who have a key of that
// ACL name taken over: the key's own, or the default where it has none, or the
// whitelist.
func (p *Policy) MayMigrate(aclName string, who claviger.Principal, groups func(user string) []string) bool {
	w := p.walk(who, groups)
	return w.migrate(aclName)
}

// MayMigrateAny reports whether there is an ACL name under which MayMigrate would
// say yes, so that others can be refused before a source is asked for the name.
func (p *Policy) MayMigrateAny(who claviger.Principal, groups func(user string) []string) bool {
	if p == nil {
		return false
	}
	for _, rule := range p.migrate {
		if rule.Admits(who, groups) {
			return true
		}
	}
	return false
}
