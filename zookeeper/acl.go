package zookeeper

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/go-zookeeper/zk"

	"claviger"
)

// With SASL, the content of our nodes is accepted only if no other user could have written it. If another user could
// read or write the secrets of cookies or the passwords of tokens, that user could act as any user. ZooKeeper checks
// the ACL of a node when the node is read or written, and the ACL of its parent when the node is made or removed. So
// this file checks both. The chroot and the nodes above it belong to the operator.

const (
	// aclTTL is the time for which a checked ACL of a parent is not read again.
	aclTTL = time.Minute
	// maxACLs is the largest number of nodes whose ACL is remembered. The ACL of a token that was dropped is read
	// again.
	maxACLs = 1 << 14
)

// acls remembers nodes whose ACL was checked: only this user can change them.
type acls struct {
	mu      sync.Mutex
	checked map[string]checkedACL
}

// checkedACL records when an ACL was checked. The ACL is unchanged if created and aversion are unchanged.
type checkedACL struct {
	created  int64
	aversion int32
	at       time.Time
}

func (a *acls) get(path string) checkedACL {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.checked[path]
}

func (a *acls) store(path string, s checkedACL) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if len(a.checked) >= maxACLs || a.checked == nil {
		a.checked = make(map[string]checkedACL)
	}
	a.checked[path] = s
}

// checkACL returns an error if the ACL of a node that was read, or of a node above it, admits everybody.
func (c *Client) checkACL(ctx context.Context, op, path string, n node) error {
	if c.conf.Owner == "" {
		return nil
	}
	if s := c.acls.get(path); s.at.IsZero() || s.created != n.created || s.aversion != n.aversion {
		acl, err := c.aclOf(ctx, op, path)
		if err != nil {
			return err
		}
		if admitsAll(acl, zk.PermAll) {
			return c.openACLError(op, path)
		}
		c.acls.store(path, checkedACL{n.created, n.aversion, time.Now()})
	}
	return c.checkParentACLs(ctx, op, path)
}

// checkParentACLs returns an error if a node above path lets everybody make or remove its children.
func (c *Client) checkParentACLs(ctx context.Context, op, path string) error {
	if c.conf.Owner == "" {
		return nil
	}
	for i := 1; i < len(path); i++ {
		if path[i] != '/' {
			continue
		}
		parent := path[:i]
		if time.Since(c.acls.get(parent).at) < aclTTL {
			continue
		}
		acl, err := c.aclOf(ctx, op, parent)
		switch {
		case errors.Is(err, zk.ErrNoNode): // create will make it, with our ACL
			return nil
		case errors.Is(err, zk.ErrNoAuth): // we may not read the ACL, so it does not let everybody read it either
		case err != nil:
			return err
		case admitsAll(acl, zk.PermCreate|zk.PermDelete|zk.PermAdmin):
			return c.openACLError(op, parent)
		}
		c.acls.store(parent, checkedACL{at: time.Now()})
	}
	return nil
}

// aclOf reads a node's ACL.
func (c *Client) aclOf(ctx context.Context, op, path string) ([]zk.ACL, error) {
	acl, _, err := do(ctx, c, op, path, func(path string) ([]zk.ACL, error) {
		acl, _, err := c.zk.GetACL(path)
		return acl, err
	})
	return acl, err
}

// admitsAll reports whether an ACL gives one of these rights to unauthenticated users: to the world, or to an
// address.
func admitsAll(acl []zk.ACL, rights int32) bool {
	for _, a := range acl {
		if (a.Scheme == "world" || a.Scheme == "ip") && a.Perms&rights != 0 {
			return true
		}
	}
	return false
}

func (c *Client) openACLError(op, path string) error {
	return claviger.Errorf(op, claviger.Unavailable, "",
		"ZooKeeper at %s (%s): the ACL of %s%s admits everybody, so its content is not used: a user who can read or "+
			"write it could act as any user. Stop every KMS, remove the node with deleteall, and start them with "+
			"SASL; they make it again, only for sasl:%s",
		c.conf.Ensemble, c.conf.Property, c.conf.Ensemble.Chroot, path, c.conf.Owner)
}
