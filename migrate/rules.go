package migrate

import (
	"context"
	"fmt"

	"claviger"
	"claviger/shellword"
)

// NameNode is the NameNode's user, which requests the EDEKs of new files.
type NameNode struct {
	User string // short name; "" if not known
	From string // the place that names the user, for messages
	Err  error  // why the rules of auth_to_local make no user of the NameNode's principal
}

// Decide reports whether the rules of this server admit a user's request for a key with this ACL name. If not, by is
// the rule that decides, and cure is the change of the rules that would admit the user.
type Decide func(user, request, aclName string) (may bool, by, cure string)

// userRequest is a request that a user makes to this server after the cut-over, with the check of it.
type userRequest struct {
	check   string
	who     string // in messages: "alice", "hdfs, the NameNode's user"
	user    string
	request string
	purpose string             // of the request, in messages
	source  func(*trial) error // the result at the source; errNotTried: not known
	// someKeys: the user may need only some keys, so a refusal for other keys is not a fault if the source was not
	// tried.
	someKeys bool
	bad      Status // of the check, after a refusal
	cure     string // in addition to the rule
}

// rules checks that the rules of this server admit the users' requests after the cut-over, as the source does.
func (e *Engine) rules(ctx context.Context, list []*trial) []Check {
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
		checks = append(checks, userRequest{
			check: "files of users here", who: p.AsUser, user: p.AsUser, request: "DECRYPT_EEK",
			purpose: "to open files",
			source:  func(t *trial) error { return t.as }, someKeys: true, bad: Failure,
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
	const other = "; if it is another user, name it by --namenode-user"
	return append(checks,
		userRequest{check: files, who: who, user: nn.User, request: "GENERATE_EEK",
			purpose: "to create files in encryption zones",
			source:  func(t *trial) error { return t.made }, bad: Failure, cure: other}.try(list, decide),
		userRequest{check: zones, who: who, user: nn.User, request: "GET_METADATA", purpose: "to make encryption zones",
			source: func(*trial) error { return errNotTried }, bad: Warning, cure: other}.try(list, decide))
}

// ownRights warns if the rules of this server let its own user, and not every user, open every EDEK. Then somebody has
// copied the rules that the server needs at the source.
func ownRights(user string, list []*trial, decide Decide) Check {
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
	c.Measured = fmt.Sprintf("%s, this server's own user, may %s on all %d keys here, so it can open every EDEK", user,
		request, len(list))
	c.Cure = fmt.Sprintf("the server needs that right at the source alone: take %s out of whitelist.key.acl.%s in "+
		"this server's kms-acls.xml; claviger acl explain %s %s KEY shows which rule grants it",
		user, request, user, request)
	return c
}

// try applies the rules to each key, and compares the result with the source's.
func (n userRequest) try(list []*trial, decide Decide) Check {
	c := Check{Name: n.check, Needed: n.bad == Failure}
	may, atSource, unknown := 0, 0, 0
	var names []string // of keys where the user lacks the right
	decided, change := "", ""
	for _, t := range list {
		ok, by, cure := decide(n.user, n.request, t.aclName)
		switch err := n.source(t); {
		case ok:
			may++
			continue
		case err == nil: // the user has it at the source
			atSource++
		case refused(err) && !impersonation(err):
			continue // the user does not have it at the source
		default:
			unknown++
			if n.someKeys {
				continue
			}
		}
		names = append(names, claviger.Printable(t.key))
		if decided == "" {
			decided, change = by, cure
		}
	}
	if len(list) == 0 {
		c.Status, c.Measured, c.Needed = NotTried, "the source has no key that we can read and try", false
		return c
	}
	c.Measured = fmt.Sprintf("%s, may %s on %d of %d keys", n.who, n.request, may, len(list))
	if n.someKeys && may == 0 && len(names) == 0 {
		c.Status = n.bad
		c.Cure = fmt.Sprintf("see which rule decides: claviger acl explain %s %s %s", n.user, n.request,
			shellword.Quote(list[0].key))
		return c
	}
	if len(names) == 0 {
		if may < len(list) && !n.someKeys {
			c.Measured += "; the source refuses the others too"
		}
		return c
	}
	c.Status = n.bad
	c.Measured += "; not on " + claviger.FirstNames(names, namedKeys)
	switch {
	case atSource > 0 && unknown == 0:
		c.Measured += ", which the source grants"
	case unknown > 0 && !n.someKeys && n.bad == Failure:
		c.Measured += ", for which the source's decision is not known"
	}
	c.Measured += " (decided by " + decided + ")"
	c.Cure = fmt.Sprintf("in this server's kms-acls.xml, %s, who needs it %s; claviger acl explain %s %s KEY shows "+
		"the rules%s", change, n.purpose, n.user, n.request, n.cure)
	return c
}
