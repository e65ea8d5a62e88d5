package migrate

import (
	"context"
	"fmt"
	"strings"

	"claviger"
)

// NameNode is the NameNode's user, which requests the EDEKs of new files.
type NameNode struct {
	User string // short name; "" asks for nobody
	From string // how that is known, for messages
	Err  error  // the rules of auth_to_local make no user of its principal
}

// Decide reports whether the rules of this server admit a user to a request for a key with this ACL name. If
// not, it returns what decides, and the change of the rules that would admit the user.
type Decide func(user, request, aclName string) (may bool, by, cure string)

// need is a request that a user makes to this server after the cut-over.
type need struct {
	check   string
	who     string // in messages: "alice", "hdfs, the NameNode's user"
	user    string
	request string
	purpose string             // what it is for
	source  func(*tried) error // what became of it at the source; errNotAsked: not known
	// partly: a refusal on some keys is no fault where the source was not tried, since each user has keys of
	// his own.
	partly bool
	bad    Status // what a refusal makes of the check
	cure   string // beside the rule
}

// rules checks that the rules by which this server will serve admit the users' requests after the cut-over,
// compared with what the source permits.
func (e *Engine) rules(ctx context.Context, list []*tried) []Check {
	p := &e.cfg.Probes
	if p.Rules == nil {
		return nil
	}
	c, decide := p.Rules(ctx)
	checks := []Check{c}
	if decide == nil {
		return checks
	}
	if c := ownRights(p.User, list, decide); c.Status == Warning {
		checks = append(checks, c)
	}
	if p.AsUser != "" {
		checks = append(checks, need{
			check: "files of users here", who: p.AsUser, user: p.AsUser, request: "DECRYPT_EEK",
			purpose: "to open files",
			source:  func(t *tried) error { return t.as }, partly: true, bad: Failure,
		}.try(list, decide))
	}
	nn := p.NameNode
	const files, zones = "new files here", "new zones here"
	if nn.Err != nil {
		return append(checks, Check{Name: files, Needed: true, Status: Failure, Measured: nn.Err.Error(),
			Cure: "take over hadoop.kms.authentication.kerberos.name.rules and hadoop.security.auth_to_local from " +
				"the source, so that a rule makes a user of the NameNode's principal"})
	}
	if nn.User == "" {
		return checks
	}
	who := fmt.Sprintf("%s, the NameNode's user (%s)", nn.User, nn.From)
	const other = "; --namenode-user names the user where it is another"
	return append(checks,
		need{check: files, who: who, user: nn.User, request: "GENERATE_EEK",
			purpose: "to create files in encryption zones",
			source:  func(t *tried) error { return t.made }, bad: Failure, cure: other}.try(list, decide),
		need{check: zones, who: who, user: nn.User, request: "GET_METADATA", purpose: "to make encryption zones",
			source: func(*tried) error { return errNotAsked }, bad: Warning, cure: other}.try(list, decide))
}

// ownRights warns where the rules of this server let its own user, and not everybody, open every EDEK: somebody
// copied what the server needs at the source.
func ownRights(user string, list []*tried, decide Decide) Check {
	const request = "DECRYPT_EEK"
	c := Check{Name: "own user here"}
	everybody := true
	for _, t := range list {
		if may, _, _ := decide(user, request, t.aclName); !may {
			return c
		}
		may, _, _ := decide("any other user", request, t.aclName)
		everybody = everybody && may
	}
	if user == "" || everybody {
		return c
	}
	c.Status = Warning
	c.Measured = fmt.Sprintf("%s, this server's own user, may %s on all of %d keys here: it can open every EDEK", user,
		request, len(list))
	c.Cure = fmt.Sprintf("the server needs that right at the source alone: take %s out of whitelist.key.acl.%s in "+
		"this server's kms-acls.xml; claviger acl explain %s %s KEY shows which rule grants it",
		user, request, user, request)
	return c
}

// try applies the rules to each key, and compares with the source.
func (n need) try(list []*tried, decide Decide) Check {
	c := Check{Name: n.check, Needed: n.bad == Failure}
	may, there, unknown := 0, 0, 0
	var names []string // of keys where the user lacks the right
	decided, change := "", ""
	for _, t := range list {
		ok, by, cure := decide(n.user, n.request, t.aclName)
		switch err := n.source(t); {
		case ok:
			may++
			continue
		case err == nil: // the user has it at the source
			there++
		case refused(err) && !impersonation(err):
			continue // nor has he at the source
		default:
			unknown++
			if n.partly {
				continue
			}
		}
		names = append(names, claviger.Printable(t.key))
		if decided == "" {
			decided, change = by, cure
		}
	}
	if len(list) == 0 {
		c.Status, c.Measured, c.Needed = NotTried, "the source has no key that we can read, to try with", false
		return c
	}
	c.Measured = fmt.Sprintf("%s, may %s on %d of %d keys", n.who, n.request, may, len(list))
	if n.partly && may == 0 && len(names) == 0 {
		c.Status = n.bad
		c.Cure = fmt.Sprintf("see which rule decides: claviger acl explain %s %s %s", n.user, n.request,
			claviger.Printable(list[0].key))
		return c
	}
	if len(names) == 0 {
		if may < len(list) && !n.partly {
			c.Measured += "; the source refuses the others too"
		}
		return c
	}
	c.Status = n.bad
	c.Measured += "; not on " + someNames(names)
	switch {
	case there > 0 && unknown == 0:
		c.Measured += ", which the source grants"
	case unknown > 0 && !n.partly && n.bad == Failure:
		c.Measured += ", of which the source was not asked or did not say"
	}
	c.Measured += " (decided by " + decided + ")"
	c.Cure = fmt.Sprintf("in this server's kms-acls.xml, %s, who needs it %s; claviger acl explain %s %s KEY shows "+
		"the rules%s", change, n.purpose, n.user, n.request, n.cure)
	return c
}

// someNames returns the first names, and how many more there are.
func someNames(names []string) string {
	text := strings.Join(names[:min(len(names), namedKeys)], ", ")
	if more := len(names) - namedKeys; more > 0 {
		text += fmt.Sprintf(" and %d more", more)
	}
	return text
}
