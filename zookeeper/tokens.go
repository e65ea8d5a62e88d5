package zookeeper

import (
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"log/slog"
	"math"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/go-zookeeper/zk"
	"golang.org/x/sync/errgroup"

	"claviger"
	"claviger/metastore"
)

// Tokens stores delegation tokens and their keys as Hadoop's ZKDelegationTokenSecretManager does, under
// <working path>/ZKDTSMRoot:
//
//	ZKDTSMSeqNumRoot, ZKDTSMKeyIdRoot   counters: int32
//	ZKDTSMMasterKeyRoot/DK_<key id>     VInt id | VLong expiry | VInt length (-1: none), key
//	ZKDTSMTokensRoot/DT_<sequence>      identifier | int64 expiry | int32 length, password
//
// int is big-endian, VInt and VLong are those of package writable, and dates are milliseconds since the epoch.
//
// Hadoop's class answers from a copy that watches update. Here each use of a token reads it, after a sync with the
// leader. So when one node has cancelled a token, the other nodes refuse the next request with it. Concurrent requests
// with one token share a read.
type Tokens struct {
	client *Client
	root   string
	log    *slog.Logger
	syncs  flights[string, struct{}]
	reads  flights[int32, node]
}

var _ metastore.Delegations = (*Tokens)(nil)

// Names of the nodes.
const (
	rootNode     = "ZKDTSMRoot"
	sequenceNode = "/ZKDTSMSeqNumRoot"
	keyIDNode    = "/ZKDTSMKeyIdRoot"
	keysNode     = "/ZKDTSMMasterKeyRoot"
	tokensNode   = "/ZKDTSMTokensRoot"
	keyPrefix    = "DK_"
	tokenPrefix  = "DT_"
)

// NewTokens makes a Tokens for a working path such as "zkdtsm". Slashes at its ends are ignored. The error is of
// kind Invalid if it is not a valid path.
func NewTokens(c *Client, workingPath string) (*Tokens, error) {
	root := join(workingPath, rootNode)
	if err := checkPath(root); err != nil {
		return nil, claviger.E("zookeeper.NewTokens", claviger.Invalid, "", err)
	}
	return &Tokens{client: c, root: root, log: c.conf.Log}, nil
}

func (t *Tokens) token(sequence int32) string {
	return t.root + tokensNode + "/" + tokenPrefix + strconv.Itoa(int(sequence))
}

func (t *Tokens) key(id int32) string {
	return t.root + keysNode + "/" + keyPrefix + strconv.Itoa(int(id))
}

// counterSize is the size of a counter, an int32.
const counterSize = 4

// NextSequences implements metastore.Delegations. The counter is the last number that is in use.
func (t *Tokens) NextSequences(ctx context.Context, n int32) (first int32, err error) {
	const op = "zookeeper.NextSequences"
	if n <= 0 {
		return 0, claviger.Errorf(op, claviger.Invalid, "",
			"%d sequence numbers were requested; the count must be positive", n)
	}
	last, _, err := t.addToCounter(ctx, op, t.root+sequenceNode, n)
	return last + 1, err
}

// NextKeyID implements metastore.Delegations.
func (t *Tokens) NextKeyID(ctx context.Context) (int32, error) {
	last, _, err := t.addToCounter(ctx, "zookeeper.NextKeyID", t.root+keyIDNode, 1)
	return last + 1, err
}

// Clocks implements metastore.Clock. ZooKeeper returns its leader's time only for a write. So Clocks writes the
// counter of keys with the same value. If a Java KMS changes the counter at that moment, that KMS retries.
func (t *Tokens) Clocks(ctx context.Context) (metastore.Clocks, error) {
	_, written, err := t.addToCounter(ctx, "zookeeper.Clocks", t.root+keyIDNode, 0)
	if err != nil {
		return metastore.Clocks{}, err
	}
	return metastore.Compare(written.sent.Truncate(time.Millisecond), written.at, written.answered, "ZooKeeper's"), nil
}

// write is the time of a write: by our clock before and after it, and by the leader's clock.
type write struct{ sent, at, answered time.Time }

// addToCounter adds n to a counter. It returns the earlier value, and the time of the write. If the answer to an
// attempt was lost, it adds n again, so some numbers are never used.
func (t *Tokens) addToCounter(ctx context.Context, op, path string, n int32) (before int32, written write, err error) {
	for {
		now, err := t.client.get(ctx, op, path)
		if errors.Is(err, zk.ErrNoNode) {
			if _, err := t.client.create(ctx, op, path, make([]byte, counterSize)); err != nil &&
				!errors.Is(err, zk.ErrNodeExists) {
				return 0, written, wrap(op, err)
			}
			continue
		}
		if err == nil {
			err = t.client.checkACL(ctx, op, path, now)
		}
		if err != nil {
			return 0, written, wrap(op, err)
		}
		if len(now.data) != counterSize {
			return 0, written, claviger.Errorf(op, claviger.Unavailable, "",
				"ZooKeeper node %s has %d bytes, and a counter has %d", path, len(now.data), counterSize)
		}
		before = int32(binary.BigEndian.Uint32(now.data)) //nolint:gosec // a signed number
		if before > math.MaxInt32-n {
			return 0, written, claviger.Errorf(op, claviger.Unavailable, "",
				"ZooKeeper node %s has the value %d, and no numbers are left; stop every KMS and remove %s",
				path, before, t.root)
		}
		data := binary.BigEndian.AppendUint32(nil, uint32(before+n)) //nolint:gosec // a signed number
		written, err = t.client.setTimed(ctx, op, path, data, now.version)
		switch {
		case err == nil:
			return before, written, nil
		case !errors.Is(err, zk.ErrBadVersion) && !errors.Is(err, zk.ErrNoNode):
			return 0, written, err
		}
		if err := ctx.Err(); err != nil {
			return 0, written, claviger.E(op, claviger.Unavailable, "", err)
		}
	}
}

// put writes a node, and makes it if it does not exist.
func (t *Tokens) put(ctx context.Context, op, path string, data []byte) error {
	for {
		_, err := t.client.create(ctx, op, path, data)
		if !errors.Is(err, zk.ErrNodeExists) {
			return wrap(op, err)
		}
		if _, err = t.client.set(ctx, op, path, data, -1); !errors.Is(err, zk.ErrNoNode) {
			return wrap(op, err)
		}
		if err := ctx.Err(); err != nil {
			return claviger.E(op, claviger.Unavailable, "", err)
		}
	}
}

// PutMasterKey implements metastore.Delegations.
func (t *Tokens) PutMasterKey(ctx context.Context, k metastore.MasterKey) error {
	const op = "zookeeper.PutMasterKey"
	if err := t.client.checkParentACLs(ctx, op, t.key(k.ID)); err != nil {
		return wrap(op, err)
	}
	return t.put(ctx, op, t.key(k.ID), appendMasterKey(k))
}

// RemoveMasterKey implements metastore.Delegations.
func (t *Tokens) RemoveMasterKey(ctx context.Context, id int32) error {
	const op = "zookeeper.RemoveMasterKey"
	if _, err := t.client.remove(ctx, op, t.key(id), -1); !errors.Is(err, zk.ErrNoNode) {
		return wrap(op, err)
	}
	return nil
}

// MasterKeys implements metastore.Delegations. As in Hadoop, a node that cannot be parsed is left out and logged.
func (t *Tokens) MasterKeys(ctx context.Context) ([]metastore.MasterKey, error) {
	const op = "zookeeper.MasterKeys"
	var keys []metastore.MasterKey
	err := t.each(ctx, op, t.root+keysNode, keyPrefix, func(path string, n node) error {
		k, err := parseMasterKey(n.data)
		if err != nil {
			t.log.Warn("a ZooKeeper node is not a master key of delegation tokens", "path", path, "err", err)
			return nil
		}
		keys = append(keys, k)
		return nil
	})
	slices.SortFunc(keys, func(a, b metastore.MasterKey) int { return cmp.Compare(a.ID, b.ID) })
	return keys, err
}

// parallelReads is the number of nodes that are read at the same time.
const parallelReads = 16

// each reads the children of a node whose names are prefix and a number, and calls fn for one after the other. A
// node that is removed meanwhile is left out.
func (t *Tokens) each(ctx context.Context, op, parent, prefix string, fn func(path string, n node) error) error {
	if err := t.sync(ctx); err != nil {
		return wrap(op, err)
	}
	names, err := t.client.children(ctx, op, parent)
	if errors.Is(err, zk.ErrNoNode) {
		return nil
	}
	if err != nil {
		return wrap(op, err)
	}
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(parallelReads)
	var mu sync.Mutex
	for _, name := range names {
		number, ok := strings.CutPrefix(name, prefix)
		if _, err := strconv.ParseInt(number, 10, 32); !ok || err != nil {
			continue // another program's node
		}
		group.Go(func() error {
			path := parent + "/" + name
			n, err := t.client.get(ctx, op, path)
			if errors.Is(err, zk.ErrNoNode) {
				return nil
			}
			if err != nil {
				return wrap(op, err)
			}
			mu.Lock()
			defer mu.Unlock()
			return fn(path, n)
		})
	}
	return group.Wait()
}

// sync waits until our ZooKeeper server has all changes until now. All callers that wait for a sync share the next
// one.
func (t *Tokens) sync(ctx context.Context) error {
	_, err := t.syncs.do(ctx, "", func() (struct{}, error) {
		return struct{}{}, t.client.sync(context.WithoutCancel(ctx), "zookeeper.Sync", t.root)
	})
	return err
}

// read returns the current state of a token's node. All callers that wait for a read share the next one, because
// the executors of a job use the same token at the same time.
func (t *Tokens) read(ctx context.Context, op string, sequence int32) (node, error) {
	return t.reads.do(ctx, sequence, func() (node, error) {
		ctx := context.WithoutCancel(ctx) // other callers share the read; Config.RetryTimeout limits its time
		if err := t.sync(ctx); err != nil {
			return node{}, err
		}
		n, err := t.client.get(ctx, op, t.token(sequence))
		if err == nil {
			err = t.client.checkACL(ctx, op, t.token(sequence), n)
		}
		return n, err
	})
}

// PutDelegation implements metastore.Delegations.
func (t *Tokens) PutDelegation(ctx context.Context, d metastore.Delegation) error {
	const op = "zookeeper.PutDelegation"
	if n, err := identifierLength(d.Identifier); err != nil || n != len(d.Identifier) {
		return claviger.Errorf(op, claviger.Invalid, "", "token %d: its identifier is not of Hadoop's form", d.Sequence)
	}
	if err := t.client.checkParentACLs(ctx, op, t.token(d.Sequence)); err != nil {
		return wrap(op, err)
	}
	return t.put(ctx, op, t.token(d.Sequence), appendDelegation(d))
}

// Delegation implements metastore.Delegations.
func (t *Tokens) Delegation(ctx context.Context, sequence int32) (metastore.Delegation, bool, error) {
	const op = "zookeeper.Delegation"
	n, err := t.read(ctx, op, sequence)
	if errors.Is(err, zk.ErrNoNode) {
		return metastore.Delegation{}, false, nil
	}
	if err != nil {
		return metastore.Delegation{}, false, wrap(op, err)
	}
	d, err := parseDelegation(n.data)
	if err != nil { // for Hadoop, an empty node means that there is no token
		t.log.Warn("a ZooKeeper node is not a delegation token", "path", t.token(sequence), "err", err)
		return metastore.Delegation{}, false, nil
	}
	d.Sequence = sequence
	return d, true, nil
}

// RenewDelegation implements metastore.Delegations.
func (t *Tokens) RenewDelegation(ctx context.Context, sequence int32, renew time.Time) (bool, error) {
	const op = "zookeeper.RenewDelegation"
	for {
		n, err := t.read(ctx, op, sequence)
		if err == nil {
			var d metastore.Delegation
			if d, err = parseDelegation(n.data); err != nil {
				t.log.Warn("a ZooKeeper node is not a delegation token", "path", t.token(sequence), "err", err)
				return false, nil
			}
			d.Renew = renew
			_, err = t.client.set(ctx, op, t.token(sequence), appendDelegation(d), n.version)
		}
		switch {
		case err == nil:
			return true, nil
		case errors.Is(err, zk.ErrNoNode):
			return false, nil
		case !errors.Is(err, zk.ErrBadVersion):
			return false, wrap(op, err)
		}
		if err := ctx.Err(); err != nil {
			return false, claviger.E(op, claviger.Unavailable, "", err)
		}
	}
}

// RemoveDelegation implements metastore.Delegations.
func (t *Tokens) RemoveDelegation(ctx context.Context, sequence int32) (bool, error) {
	const op = "zookeeper.RemoveDelegation"
	unsure, err := t.client.remove(ctx, op, t.token(sequence), -1)
	if errors.Is(err, zk.ErrNoNode) {
		return unsure, nil // if unsure, our earlier attempt has probably removed it, and its answer was lost
	}
	return err == nil, wrap(op, err)
}

// RemoveExpired implements metastore.Delegations. It keeps a token that is renewed meanwhile.
func (t *Tokens) RemoveExpired(ctx context.Context, before time.Time) (int, error) {
	const op = "zookeeper.RemoveExpired"
	removed := 0
	err := t.each(ctx, op, t.root+tokensNode, tokenPrefix, func(path string, n node) error {
		d, err := parseDelegation(n.data)
		if err != nil {
			t.log.Warn("a ZooKeeper node is not a delegation token", "path", path, "err", err)
			return nil
		}
		if !d.Renew.Before(before) {
			return nil
		}
		switch _, err := t.client.remove(ctx, op, path, n.version); {
		case err == nil:
			removed++
		case !errors.Is(err, zk.ErrNoNode) && !errors.Is(err, zk.ErrBadVersion):
			return err
		}
		return nil
	})
	return removed, err
}

// CountDelegations implements metastore.Delegations.
func (t *Tokens) CountDelegations(ctx context.Context) (int, error) {
	const op = "zookeeper.CountDelegations"
	if err := t.sync(ctx); err != nil {
		return 0, wrap(op, err)
	}
	n, err := t.client.countChildren(ctx, op, t.root+tokensNode)
	return n, wrap(op, err)
}

// Identifiers implements metastore.Delegations. Hadoop's layout has no list of owners, so each token is read.
func (t *Tokens) Identifiers(ctx context.Context, fn func(identifier []byte)) error {
	return t.each(ctx, "zookeeper.Identifiers", t.root+tokensNode, tokenPrefix, func(_ string, n node) error {
		if d, err := parseDelegation(n.data); err == nil {
			fn(d.Identifier)
		}
		return nil
	})
}
