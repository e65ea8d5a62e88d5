package authz

import (
	"slices"
	"strings"

	"claviger"
)

// realUserMark before a name in a list of users admits whoever that user
// impersonates (HADOOP-17857).
const realUserMark = "~"

// ACL says who is admitted: named users, and members of groups. The zero value
// admits nobody. It is immutable.
type ACL struct {
	all    bool
	users  map[string]bool // short names, or "~" and the short name of a real user
	groups []string
}

// ParseACL reads an ACL string, "user,user group,group". It splits as Hadoop's
// AccessControlList does: at the first space, so that "alice, bob" is the user
// alice and the GROUP bob, and " staff" is the group staff alone.
func ParseACL(s string) ACL {
	users, groups, _ := strings.Cut(s, " ")
	return NewACL(users, groups)
}

// NewACL makes an ACL of two comma lists. One of them being "*" admits
// everybody.
func NewACL(users, groups string) ACL {
	if trim(users) == "*" || trim(groups) == "*" {
		return ACL{all: true}
	}
	a := ACL{users: make(map[string]bool), groups: names(groups)}
	for _, u := range names(users) {
		a.users[u] = true
	}
	return a
}

// suspicions says what in an ACL string will surprise whoever wrote it.
func suspicions(s string) []string {
	left, right, _ := strings.Cut(s, " ")
	if trim(left) == "*" || trim(right) == "*" {
		return nil
	}
	var out []string
	if strings.Contains(s, "${") {
		out = append(out, "the variable is not set, so that its name is taken for one of a user or group")
	}
	switch users := trim(left); {
	case strings.HasSuffix(users, ",") && trim(right) != "":
		out = append(out, "the first space ends the list of users, so that what follows it ("+trim(right)+
			") are groups; write users without spaces between them")
	case users == "" && left != "":
		out = append(out,
			"the value begins on a new line, so that its first space ends an empty list of users "+
				"and what follows it are groups; write it directly after <value>")
	}
	for _, n := range names(left) {
		if odd := oddUser(strings.TrimPrefix(n, realUserMark)); odd != "" {
			out = append(out, odd)
		}
	}
	for _, n := range names(right) {
		switch {
		case n == "*":
			out = append(out, "* inside a list admits nobody; everybody is a * alone")
		case strings.HasPrefix(n, "@") || strings.HasPrefix(n, "%"):
			out = append(out, "\""+n+"\" is taken as a group's name, its first character with it; write "+n[1:])
		case strings.Contains(n, "*"):
			out = append(out, "\""+n+"\" is taken as the name of one group: there are no wildcards")
		case strings.ContainsAny(n, " \t"):
			out = append(out, "\""+n+"\" is taken as the name of one group; lists are separated by commas")
		}
	}
	return out
}

// oddUser says what is odd about a name in a list of users, "" for nothing. Users
// are compared by the short names that auth_to_local makes.
func oddUser(n string) string {
	switch {
	case n == "*":
		return "* inside a list admits nobody; everybody is a * alone"
	case strings.HasPrefix(n, "@") || strings.HasPrefix(n, "%"):
		return "\"" + n +
			"\" is taken as a user's name; groups stand behind the first blank of the value, " +
			"without a sign: write \"USER,USER " + n[1:] + "\""
	case strings.Contains(n, "*"):
		return "\"" + n + "\" is taken as the name of one user: there are no wildcards"
	}
	if i := strings.LastIndexByte(n, '\\'); i >= 0 {
		return "\"" + n + "\" names a domain, but users are known by their short names; write " + n[i+1:]
	}
	if i := strings.IndexAny(n, "/@"); i > 0 {
		return "\"" + n +
			"\" is a principal, but users are known by the short names that auth_to_local makes of them; write " +
			n[:i] +
			" unless a rule makes another name"
	}
	return ""
}

// Admits is Hadoop's isUserInList. groups returns the groups of a user's short
// name; it is asked only where the ACL names groups, and may be nil.
func (a ACL) Admits(who claviger.Principal, groups func(user string) []string) bool {
	by, _ := a.admits(who, groups)
	return by != byNothing
}

// GroupsUnknown are the groups of a user that could not be looked up. No list can
// name such a group, so they admit to nothing; a blacklist that names groups shuts
// the user out.
var GroupsUnknown = []string{unknownGroup}

// unknownGroup holds a comma, which parts names in lists.
const unknownGroup = ","

// admission is by what an ACL admits somebody.
type admission int

const (
	byNothing admission = iota
	byStar
	byName
	byGroup
	byRealUser
	byUnknownGroups // of a blacklist alone
)

// admits is Admits; group is the one that byGroup means.
func (a ACL) admits(who claviger.Principal, groups func(user string) []string) (by admission, group string) {
	switch {
	case a.all:
		return byStar, ""
	case a.users[who.Short]:
		return byName, ""
	}
	if len(a.groups) > 0 && groups != nil {
		of := groups(who.Short)
		if i := slices.IndexFunc(a.groups, func(g string) bool { return slices.Contains(of, g) }); i >= 0 {
			return byGroup, a.groups[i]
		}
	}
	if who.Real != nil && a.users[realUserMark+who.Real.Short] {
		return byRealUser, ""
	}
	return byNothing, ""
}

// shutsOut is admits of a blacklist: a user of unknown groups is on each that names
// groups.
func (a ACL) shutsOut(who claviger.Principal, groups func(user string) []string) (by admission, group string) {
	if by, group = a.admits(who, groups); by != byNothing || len(a.groups) == 0 || groups == nil {
		return by, group
	}
	if slices.Contains(groups(who.Short), unknownGroup) {
		return byUnknownGroups, ""
	}
	return byNothing, ""
}

// names splits a list at commas and newlines and trims each name, as Hadoop's
// getTrimmedStringCollection does; empty names are dropped.
func names(list string) []string {
	var out []string
	for _, n := range strings.FieldsFunc(list, func(r rune) bool { return r == ',' || r == '\n' }) {
		if n = trim(n); n != "" {
			out = append(out, n)
		}
	}
	return out
}

// trim is Java's String.trim: it takes off every character up to U+0020.
func trim(s string) string {
	return strings.TrimFunc(s, func(r rune) bool { return r <= ' ' })
}
