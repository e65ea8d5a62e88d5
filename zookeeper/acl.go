package zookeeper

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/go-zookeeper/zk"

	"claviger"
)

// With SASL, the content of our nodes is accepted only if no other user could have written it: a user who reads or
// writes the secrets of cookies or the passwords of tokens can act as any user. ZooKeeper checks the ACL of a node
// when it is read or written, and the ACL of its parent when it is made or removed. So this file checks both. The
// chroot and the nodes above it belong to the operator.

const (
	// aclBelieved is the time for which a checked ACL of a parent is not read again.
	aclBelieved = time.Minute
	// maxACLs is the largest number of nodes whose ACL is remembered. The ACL of a token that was dropped is read
	// again.
	maxACLs = 1 << 14
)

// acls remembers the nodes that only this user can change.
type acls struct {
	mu   sync.Mutex
	good map[string]seenACL
}

// seenACL records when an ACL was found good. The ACL is unchanged if the node is still the same and its ACL
// version is equal.
type seenACL struct {
	created  int64
	aversion int32
	at       time.Time
}

func (a *acls) seen(path string) seenACL {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.good[path]
}

func (a *acls) keep(path string, s seenACL) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if len(a.good) >= maxACLs || a.good == nil {
		a.good = make(map[string]seenACL)
	}
	a.good[path] = s
}

// ours returns an error if the ACL of a node that was read, or of a node above it, admits everybody.
func (c *Client) ours(ctx context.Context, op, path string, n node) error {
	if c.conf.Owner == "" {
		return nil
	}
	if s := c.acls.seen(path); s.at.IsZero() || s.created != n.created || s.aversion != n.aversion {
		acl, err := c.aclOf(ctx, op, path)
		if err != nil {
			return err
		}
		if admitsAll(acl, zk.PermAll) {
			return c.isOpen(op, path)
		}
		c.acls.keep(path, seenACL{n.created, n.aversion, time.Now()})
	}
	return c.parentsOurs(ctx, op, path)
}

// parentsOurs returns an error if a node above path lets everybody make or remove its children.
func (c *Client) parentsOurs(ctx context.Context, op, path string) error {
	if c.conf.Owner == "" {
		return nil
	}
	for i := 1; i < len(path); i++ {
		if path[i] != '/' {
			continue
		}
		parent := path[:i]
		if time.Since(c.acls.seen(parent).at) < aclBelieved {
			continue
		}
		acl, err := c.aclOf(ctx, op, parent)
		switch {
		case errors.Is(err, zk.ErrNoNode): // we make it, with our ACL
			return nil
		case errors.Is(err, zk.ErrNoAuth): // then everybody may not read it either
		case err != nil:
			return err
		case admitsAll(acl, zk.PermCreate|zk.PermDelete|zk.PermAdmin):
			return c.isOpen(op, parent)
		}
		c.acls.keep(parent, seenACL{at: time.Now()})
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

func (c *Client) isOpen(op, path string) error {
	return claviger.Errorf(op, claviger.Unavailable, "",
		"ZooKeeper at %s (%s): the ACL of %s%s admits everybody, so what is there is not believed: whoever reads or "+
			"writes it can be any user. Stop every KMS, remove the node with deleteall, and start them with SASL; "+
			"they make it again, for sasl:%s alone",
		c.conf.Ensemble, c.conf.Property, c.conf.Ensemble.Chroot, path, c.conf.Owner)
}
