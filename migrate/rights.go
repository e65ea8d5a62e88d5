package migrate

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"claviger"
	"claviger/provider"
)

const (
	// rightsTime is the time limit for all trials of EDEKs at the source, however many keys it has.
	rightsTime = 30 * time.Second
	// rightsParallel is the number of keys that are tried concurrently.
	rightsParallel = 8
	// namedKeys is the number of keys that a check names.
	namedKeys = 3
)

// trial is the result of trying one key's EDEKs at the source. At a source that is not a KMS, none is tried.
type trial struct {
	key     string
	aclName string // the name under which the ACLs guard the key
	guess   bool   // the source made no EDEK, and the version's name in the tried EDEK is a guess
	own     error  // of opening the EDEK in our own name
	as      error  // of opening the EDEK on behalf of Probes.AsUser
	made    error  // of making an EDEK on behalf of the NameNode's user
	done    bool   // the trial ended before the time limit
}

// errNotTried means that the source was not tried.
var errNotTried = errors.New("not tried at the source")

// tryRights makes an EDEK of each key and opens it at the source: in our own name, as a re-encryption does; on behalf
// of a user who reads files; and on behalf of the NameNode's user. If the source does not make an EDEK for
// us, tryRights uses random bytes under the newest version. A KMS opens any bytes, and no file has these.
func (e *Engine) tryRights(ctx context.Context, sv *survey) []*trial {
	svc, isKMS := e.cfg.Source.(provider.EDEKService)
	var list []*trial
	limited, cancel := context.WithTimeout(ctx, rightsTime)
	defer cancel()
	var g errgroup.Group
	g.SetLimit(rightsParallel)
	for i, it := range sv.items {
		m := sv.atSource[i]
		if m == nil || m.BitLength <= 0 {
			continue
		}
		t := &trial{key: it.Key, aclName: m.ACLName(), own: errNotTried, as: errNotTried, made: errNotTried}
		list = append(list, t)
		if !isKMS {
			continue
		}
		g.Go(func() error {
			if limited.Err() == nil {
				t.try(limited, svc, it, m, &e.cfg.Probes)
				t.done = limited.Err() == nil
			}
			return nil
		})
	}
	_ = g.Wait() // the errors are in list
	return list
}

// rights checks which requests the source permits.
func (e *Engine) rights(ctx context.Context, list []*trial) []Check {
	if _, ok := e.cfg.Source.(provider.EDEKService); !ok {
		return nil // the source is not a KMS, so its keys are used here, without a request
	}
	return []Check{e.ownRight(ctx, list), e.usersRight(ctx, list, e.cfg.Probes.AsUser)}
}

// try makes the EDEKs of one key and opens them.
func (t *trial) try(ctx context.Context, svc provider.EDEKService, it Item, m *claviger.Metadata, p *Probes) {
	var edek claviger.EDEK
	made, err := svc.Generate(ctx, it.Key, 1)
	if err == nil && len(made) == 1 {
		edek = made[0]
	} else {
		edek = claviger.EDEK{IV: make([]byte, claviger.IVSize), Material: make([]byte, m.BitLength/8)}
		_, _ = rand.Read(edek.IV) // never fails
		_, _ = rand.Read(edek.Material)
		if n := len(it.SourceVersions); n > 0 {
			edek.Version = it.SourceVersions[n-1]
		} else { // the name that Hadoop's own KMS would give
			t.guess = true
			edek.Version = fmt.Sprintf("%s@%d", it.Key, max(m.Versions-1, 0))
		}
	}
	open := func(as string) error {
		deks, err := svc.Unwrap(ctx, it.Key, as, []claviger.EDEK{edek})
		for _, d := range deks {
			d.Wipe()
		}
		return err
	}
	t.own = open("")
	if p.AsUser != "" {
		t.as = open(p.AsUser)
	}
	if s, ok := svc.(generatesAs); ok && p.NameNode.User != "" {
		_, t.made = s.GenerateAs(ctx, it.Key, p.NameNode.User, 1)
	}
}

// generatesAs is a source that makes EDEKs on behalf of a user, as package kmsclient does.
type generatesAs interface {
	GenerateAs(ctx context.Context, key, as string, n int) ([]claviger.EDEK, error)
}

// unproved reports whether the source neither refused nor opened the EDEK, because the name of its version was
// a guess.
func (t *trial) unproved(err error) bool {
	return t.guess && (claviger.Is(err, claviger.VersionNotFound) || claviger.Is(err, claviger.KeyNotFound))
}

// ownRight checks that we may open EDEKs at the source in our own name, as a re-encryption does.
func (e *Engine) ownRight(ctx context.Context, list []*trial) Check {
	c := Check{Name: "re-encryption at the source", Needed: true}
	n := countOutcomes(list, func(t *trial) error { return t.own })
	c.measure(n, fmt.Sprintf("as %s", e.ownUser()))
	switch {
	case n.failed > 0:
		c.Status, c.Cure = Failure, e.decryptCure(ctx, n.first)
	case n.unproved > 0:
		c.Cure = e.generateCure(ctx)
	}
	return c
}

// decryptCure names the rules at the source that would let us open EDEKs in our own name.
func (e *Engine) decryptCure(ctx context.Context, err error) string {
	if e.ranger(ctx) {
		return fmt.Sprintf("the source is a Ranger KMS: in Ranger Admin, a policy of its service must allow %s "+
			"Decrypt EEK (decrypteek) on key *, and hadoop.kms.blacklist.DECRYPT_EEK in its dbks-site.xml must not "+
			"name it", e.admitted(err))
	}
	return fmt.Sprintf("at the source, in kms-acls.xml: let hadoop.kms.acl.DECRYPT_EEK and "+
		"whitelist.key.acl.DECRYPT_EEK admit %s, and hadoop.kms.blacklist.DECRYPT_EEK not name it", e.admitted(err))
}

// generateCure names the rules at the source that would let us make an EDEK for the check.
func (e *Engine) generateCure(ctx context.Context) string {
	if e.ranger(ctx) {
		return fmt.Sprintf("in Ranger Admin, allow %s Generate EEK (generateeek) on key * while you plan, "+
			"and plan again", e.admitted(nil))
	}
	return fmt.Sprintf("at the source, in kms-acls.xml, while you plan: let hadoop.kms.acl.GENERATE_EEK and "+
		"whitelist.key.acl.GENERATE_EEK admit %s, and plan again", e.admitted(nil))
}

// usersRight checks that we may open old files' EDEKs at the source on behalf of users. That needs a rule for proxy
// users there.
func (e *Engine) usersRight(ctx context.Context, list []*trial, user string) Check {
	c := Check{Name: "old files of users", Needed: true}
	if user == "" {
		c.Status, c.Measured = NotTried, "no user was given"
		c.Cure = "give the short name of a user who reads files of encryption zones: --as-user USER"
		return c
	}
	n := countOutcomes(list, func(t *trial) error { return t.as })
	c.measure(n, "on behalf of "+user)
	switch {
	case n.failed > 0 && impersonation(n.first):
		c.Status = Failure
		proxy, hint := e.seenAs(n.first), ""
		if proxy == "root" {
			proxy, hint = "USER", ", where USER is "+e.admitted(n.first)
		}
		c.Cure = fmt.Sprintf("at the source, in kms-site.xml: hadoop.kms.proxyuser.%s.users (or .groups) must admit "+
			"%s, and hadoop.kms.proxyuser.%s.hosts this host%s; restart it", proxy, user, proxy, hint)
	case n.failed > 0 && n.opened == 0:
		c.Status = Failure
		c.Cure = fmt.Sprintf("name, by --as-user, a user who may open files there; if %s may, check the source's "+
			"rules for that user", user)
	case n.failed > 0:
		c.Status = OK // no user may use all keys
	case n.unproved > 0:
		c.Cure = e.generateCure(ctx)
	}
	return c
}

// impersonation reports whether the source refused the impersonation: of all users, of this user, or from this host.
// The texts are those of Hadoop's ProxyUsers.
func impersonation(err error) bool {
	return strings.Contains(err.Error(), "is not allowed to impersonate") ||
		strings.Contains(err.Error(), "Unauthorized connection for super-user")
}

// outcome counts the results of the trials.
type outcome struct {
	opened, failed, unproved, untried int
	names                             []string // of keys that failed
	first                             error
}

func countOutcomes(list []*trial, errOf func(*trial) error) outcome {
	var n outcome
	for _, t := range list {
		err := errOf(t)
		switch {
		case !t.done:
			n.untried++
		case err == nil:
			n.opened++
		case t.unproved(err):
			n.unproved++
		default:
			n.failed++
			if n.first == nil {
				n.first = err
			}
			n.names = append(n.names, claviger.Printable(t.key))
		}
	}
	return n
}

// measure writes the outcome into the check.
func (c *Check) measure(n outcome, who string) {
	total := n.opened + n.failed + n.unproved + n.untried
	if total == 0 {
		c.Status, c.Measured, c.Needed = NotTried, "the source has no key that we can read and try", false
		return
	}
	c.Measured = fmt.Sprintf("%s, an EDEK was opened for %d of %d keys", who, n.opened, total)
	if n.failed > 0 {
		c.Measured += "; not for " + claviger.FirstNames(n.names, namedKeys) + ": " + claviger.Reason(n.first)
	}
	if n.unproved > 0 {
		c.Status = NotTried
		c.Measured += fmt.Sprintf("; for %d keys the source admitted the request, but did not try the key's own "+
			"rules: it makes no EDEK for us, and does not show us the names of versions", n.unproved)
	}
	if n.untried > 0 {
		c.Status = NotTried
		c.Measured += fmt.Sprintf("; %d were not tried within %v", n.untried, rightsTime)
	}
}
