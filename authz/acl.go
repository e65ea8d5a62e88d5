package authz

import (
	"slices"
	"strings"

	"claviger"
)

// realUserMark before a name in a list of users admits each user that the named user impersonates (HADOOP-17857).
const realUserMark = "~"

// ACL admits named users, and members of groups. The zero value admits nobody. An ACL is immutable.
type ACL struct {
	all    bool
	users  map[string]bool // short names, or "~" and the short name of a real user
	groups []string
}

// ParseACL reads an ACL string, "user,user group,group". Like Hadoop's AccessControlList, it splits the string at the
// first space. So "alice, bob" is the user alice and the GROUP bob, and " staff" is only the group staff.
func ParseACL(s string) ACL {
	users, groups, _ := strings.Cut(s, " ")
	return NewACL(users, groups)
}

// NewACL makes an ACL of two lists that are separated by commas. If one of them is "*", everybody is admitted.
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

// valueWarnings returns warnings about an ACL string that probably does not mean what its author wanted.
func valueWarnings(s string) []string {
	left, right, _ := strings.Cut(s, " ")
	if trim(left) == "*" || trim(right) == "*" {
		return nil
	}
	var out []string
	if strings.Contains(s, "${") {
		out = append(out, "the variable is not set, so its name is used as the name of a user or group")
	}
	switch users := trim(left); {
	case strings.HasSuffix(users, ",") && trim(right) != "":
		out = append(out, "the first space ends the list of users, so the names after it ("+trim(right)+
			") are groups; write users without spaces between them")
	case users == "" && left != "":
		out = append(out,
			"the value begins on a new line, so its first space ends an empty list of users, and all names are "+
				"groups; write the value directly after <value>")
	}
	for _, n := range names(left) {
		if warning := userWarning(strings.TrimPrefix(n, realUserMark)); warning != "" {
			out = append(out, warning)
		}
	}
	for _, n := range names(right) {
		switch {
		case n == "*":
			out = append(out, "* inside a list admits nobody; for everybody, write * alone")
		case strings.HasPrefix(n, "@") || strings.HasPrefix(n, "%"):
			out = append(out, "\""+n+"\" is taken as a group's name, with its first character; write "+n[1:])
		case strings.Contains(n, "*"):
			out = append(out, "\""+n+"\" is taken as the name of one group: there are no wildcards")
		case strings.ContainsAny(n, " \t"):
			out = append(out, "\""+n+"\" is taken as the name of one group; lists are separated by commas")
		}
	}
	return out
}

// userWarning returns a warning about a name in a list of users; "" if there is none. Users are compared by the short
// names that auth_to_local makes.
func userWarning(n string) string {
	switch {
	case n == "*":
		return "* inside a list admits nobody; for everybody, write * alone"
	case strings.HasPrefix(n, "@") || strings.HasPrefix(n, "%"):
		return "\"" + n +
			"\" is taken as a user's name; groups come after the first space of the value, " +
			"without @ or %: write \"USER,USER " + n[1:] + "\""
	case strings.Contains(n, "*"):
		return "\"" + n + "\" is taken as the name of one user: there are no wildcards"
	}
	if i := strings.LastIndexByte(n, '\\'); i >= 0 {
		return "\"" + n + "\" has a domain, but rules need short names of users; write " + n[i+1:]
	}
	if i := strings.IndexAny(n, "/@"); i > 0 {
		return "\"" + n +
			"\" is a principal, but rules need the short names that auth_to_local makes; write " + n[:i] +
			" unless auth_to_local makes another name"
	}
	return ""
}

// Admits is Hadoop's isUserInList. groups returns the groups of a user's short name. It is called only if the ACL
// names groups, and may be nil.
func (a ACL) Admits(caller claviger.Principal, groups func(user string) []string) bool {
	by, _ := a.admits(caller, groups)
	return by != notAdmitted
}

// GroupsUnknown means that the groups of a user could not be looked up. No list can name such a group, so no list of
// groups admits the user; but a blacklist that names groups excludes the user.
var GroupsUnknown = []string{unknownGroup}

// unknownGroup is a comma, which separates names in lists, so it cannot be a group's name.
const unknownGroup = ","

// admission is the part of an ACL that admits a user.
type admission int

const (
	notAdmitted admission = iota
	byStar
	byName
	byGroup
	byRealUser
	byUnknownGroups // only in a blacklist
)

// admits is Admits with the reason. group is the name of the group if by is byGroup.
func (a ACL) admits(caller claviger.Principal, groups func(user string) []string) (by admission, group string) {
	switch {
	case a.all:
		return byStar, ""
	case a.users[caller.Short]:
		return byName, ""
	}
	if len(a.groups) > 0 && groups != nil {
		userGroups := groups(caller.Short)
		if i := slices.IndexFunc(a.groups, func(g string) bool { return slices.Contains(userGroups, g) }); i >= 0 {
			return byGroup, a.groups[i]
		}
	}
	if caller.Real != nil && a.users[realUserMark+caller.Real.Short] {
		return byRealUser, ""
	}
	return notAdmitted, ""
}

// excludes is admits for a blacklist: a blacklist that names groups excludes each user whose groups are unknown.
func (a ACL) excludes(caller claviger.Principal, groups func(user string) []string) (by admission, group string) {
	if by, group = a.admits(caller, groups); by != notAdmitted || len(a.groups) == 0 || groups == nil {
		return by, group
	}
	if slices.Contains(groups(caller.Short), unknownGroup) {
		return byUnknownGroups, ""
	}
	return notAdmitted, ""
}

// names splits a list at commas and newlines, trims each name, and drops empty names, as Hadoop's
// getTrimmedStringCollection does.
func names(list string) []string {
	var out []string
	for _, n := range strings.FieldsFunc(list, func(r rune) bool { return r == ',' || r == '\n' }) {
		if n = trim(n); n != "" {
			out = append(out, n)
		}
	}
	return out
}

// trim is Java's String.trim: it removes all characters up to U+0020 at both ends.
func trim(s string) string {
	return strings.TrimFunc(s, func(r rune) bool { return r <= ' ' })
}
