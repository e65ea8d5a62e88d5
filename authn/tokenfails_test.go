package authn

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"claviger/metastore"
)

// storeCalls are the names of the calls that an operation makes to a store. The call with the number fail fails.
type storeCalls struct {
	list []string
	fail int // from 1; 0: none
}

var errStore = errors.New("the store is down")

func (c *storeCalls) called(name string) error {
	if c.list = append(c.list, name); len(c.list) == c.fail {
		return errStore
	}
	return nil
}

// callsTokens is a token store in memory that records its calls, and lets one fail. Its clock is that of the test.
type callsTokens struct {
	*memoryTokens
	*storeCalls
}

func (s callsTokens) NextSequences(ctx context.Context, n int32) (int32, error) {
	if err := s.called("NextSequences"); err != nil {
		return 0, err
	}
	return s.memoryTokens.NextSequences(ctx, n)
}

func (s callsTokens) NextKeyID(ctx context.Context) (int32, error) {
	if err := s.called("NextKeyID"); err != nil {
		return 0, err
	}
	return s.memoryTokens.NextKeyID(ctx)
}

func (s callsTokens) PutMasterKey(ctx context.Context, k metastore.MasterKey) error {
	if err := s.called("PutMasterKey"); err != nil {
		return err
	}
	return s.memoryTokens.PutMasterKey(ctx, k)
}

func (s callsTokens) MasterKeys(ctx context.Context) ([]metastore.MasterKey, error) {
	if err := s.called("MasterKeys"); err != nil {
		return nil, err
	}
	return s.memoryTokens.MasterKeys(ctx)
}

func (s callsTokens) RemoveMasterKey(ctx context.Context, id int32) error {
	if err := s.called("RemoveMasterKey"); err != nil {
		return err
	}
	return s.memoryTokens.RemoveMasterKey(ctx, id)
}

func (s callsTokens) PutDelegation(ctx context.Context, d metastore.Delegation) error {
	if err := s.called("PutDelegation"); err != nil {
		return err
	}
	return s.memoryTokens.PutDelegation(ctx, d)
}

func (s callsTokens) RenewDelegation(ctx context.Context, sequence int32, renew time.Time) (bool, error) {
	if err := s.called("RenewDelegation"); err != nil {
		return false, err
	}
	return s.memoryTokens.RenewDelegation(ctx, sequence, renew)
}

func (s callsTokens) Delegation(ctx context.Context, sequence int32) (metastore.Delegation, bool, error) {
	if err := s.called("Delegation"); err != nil {
		return metastore.Delegation{}, false, err
	}
	return s.memoryTokens.Delegation(ctx, sequence)
}

func (s callsTokens) RemoveDelegation(ctx context.Context, sequence int32) (bool, error) {
	if err := s.called("RemoveDelegation"); err != nil {
		return false, err
	}
	return s.memoryTokens.RemoveDelegation(ctx, sequence)
}

func (s callsTokens) RemoveExpired(ctx context.Context, before time.Time) (int, error) {
	if err := s.called("RemoveExpired"); err != nil {
		return 0, err
	}
	return s.memoryTokens.RemoveExpired(ctx, before)
}

func (s callsTokens) Identifiers(ctx context.Context, fn func(identifier []byte)) error {
	if err := s.called("Identifiers"); err != nil {
		return err
	}
	return s.memoryTokens.Identifiers(ctx, fn)
}

func (s callsTokens) Clocks(ctx context.Context) (metastore.Clocks, error) {
	if err := s.called("Clocks"); err != nil {
		return metastore.Clocks{}, err
	}
	return s.memoryTokens.Clocks(ctx)
}

// tokenNode is a node with one token of alice, whose renewer is yarn, and with an old master key in its store.
type tokenNode struct {
	*Delegations
	calls *storeCalls
	now   time.Time
	token string
}

func newTokenNode(t *testing.T) *tokenNode {
	t.Helper()
	n := &tokenNode{calls: &storeCalls{}, now: time.UnixMilli(1795442630957)}
	clock := func() time.Time { return n.now }
	var err error
	if n.Delegations, err = NewDelegations(DelegationConfig{KeyUpdate: time.Hour, MaxLife: 48 * time.Hour,
		Renewal: time.Hour, Scan: time.Hour, Batch: 1, Now: clock,
		Store: callsTokens{newMemoryTokens(clock), n.calls}}); err != nil {
		t.Fatal(err)
	}
	if n.token, err = n.issue(t.Context(), "alice", "yarn", "", ""); err != nil {
		t.Fatal(err)
	}
	old := metastore.MasterKey{ID: 77, Expires: n.now.Add(-1000 * time.Hour), Key: make([]byte, 32)}
	if err := n.conf.Store.PutMasterKey(t.Context(), old); err != nil {
		t.Fatal(err)
	}
	n.clock.at = time.Time{} // so that the next operation compares the clocks again
	return n
}

// tokenOperations are the operations on tokens, and the calls that each makes to the store.
var tokenOperations = []struct {
	name, calls string
	run         func(ctx context.Context, n *tokenNode) error
}{
	{"issue", "Clocks NextSequences PutDelegation", func(ctx context.Context, n *tokenNode) error {
		_, err := n.issue(ctx, "alice", "yarn", "", "")
		return err
	}},
	{"issue with a new key", "Clocks NextKeyID PutMasterKey NextSequences PutDelegation",
		func(ctx context.Context, n *tokenNode) error {
			n.now = n.now.Add(2 * time.Hour)
			_, err := n.issue(ctx, "alice", "yarn", "", "")
			return err
		}},
	{"issue the first", "Clocks RemoveExpired Identifiers NextSequences PutDelegation",
		func(ctx context.Context, n *tokenNode) error {
			n.quota.next = time.Time{}
			_, err := n.issue(ctx, "alice", "yarn", "", "")
			return err
		}},
	{"renew", "Delegation Clocks RenewDelegation", func(ctx context.Context, n *tokenNode) error {
		_, err := n.renew(ctx, n.token, "yarn")
		return err
	}},
	{"cancel", "Delegation RemoveDelegation", func(ctx context.Context, n *tokenNode) error {
		return n.cancel(ctx, n.token, nil)
	}},
	{"verify", "Delegation", func(ctx context.Context, n *tokenNode) error {
		_, _, err := n.verify(ctx, n.token)
		return err
	}},
	{"scan", "Clocks RemoveExpired MasterKeys RemoveMasterKey", func(ctx context.Context, n *tokenNode) error {
		return n.scan(ctx)
	}},
	{"recount", "Clocks RemoveExpired Identifiers", func(ctx context.Context, n *tokenNode) error {
		n.now = n.now.Add(recountAge)
		return n.quota.recountIfOld(ctx)
	}},
	{"count of owners", "Clocks RemoveExpired Identifiers", func(ctx context.Context, n *tokenNode) error {
		return n.owners(ctx, func(string) {})
	}},
}

// TestEachTokenCallFails: if one call to the store fails, the operation fails with that error. A token that was not
// stored does not count against its owner.
func TestEachTokenCallFails(t *testing.T) {
	for _, o := range tokenOperations {
		t.Run(o.name, func(t *testing.T) {
			calls := strings.Fields(o.calls)
			for fail := range len(calls) + 1 {
				n := newTokenNode(t)
				n.calls.list, n.calls.fail = nil, fail
				err := o.run(t.Context(), n)
				switch {
				case fail == 0 && (err != nil || !slices.Equal(n.calls.list, calls)):
					t.Fatalf("without a failure: %v; calls %q", err, n.calls.list)
				case fail > 0 && !errors.Is(err, errStore):
					t.Errorf("%s fails: %v", calls[fail-1], err)
				}
				if total := n.Stats().Total; fail > 0 && total != 1 {
					t.Errorf("%s fails: %d tokens are counted, want 1", calls[fail-1], total)
				}
			}
		})
	}
}

// TestExpiredWithoutClock: if the clocks cannot be compared, no token is refused as expired.
func TestExpiredWithoutClock(t *testing.T) {
	for name, run := range map[string]func(n *tokenNode) error{
		"verify": func(n *tokenNode) error { _, _, err := n.verify(t.Context(), n.token); return err },
		"renew":  func(n *tokenNode) error { _, err := n.renew(t.Context(), n.token, "yarn"); return err },
	} {
		n := newTokenNode(t)
		n.now = n.now.Add(1000 * time.Hour)
		n.calls.list, n.calls.fail = nil, map[string]int{"verify": 2, "renew": 1}[name]
		if err := run(n); !errors.Is(err, errStore) || !slices.Contains(n.calls.list, "Clocks") {
			t.Errorf("%s: %v; calls %q", name, err, n.calls.list)
		}
	}
}

// TestRefusedWithoutCount: if a new count of the store fails, an owner at the limit is refused with that error, since
// other nodes may have cancelled tokens.
func TestRefusedWithoutCount(t *testing.T) {
	n := newTokenNode(t)
	n.quota.limits.PerOwner = 1
	n.now = n.now.Add(recountPause)
	n.calls.list, n.calls.fail = nil, 1
	if _, err := n.issue(t.Context(), "alice", "yarn", "", ""); !errors.Is(err, errStore) {
		t.Errorf("the count fails: %v", err)
	}
}

// TestCancelledMeanwhile: a token that another node removes between the check and the write is not renewed and not
// cancelled a second time.
func TestCancelledMeanwhile(t *testing.T) {
	n := newTokenNode(t)
	n.conf.Store = lateTokens{n.conf.Store}
	if _, err := n.renew(t.Context(), n.token, "yarn"); err == nil ||
		!strings.Contains(err.Error(), "Renewal request for unknown token") {
		t.Errorf("renew: %v", err)
	}
	if err := n.cancel(t.Context(), n.token, nil); err == nil || !strings.Contains(err.Error(), "Token not found") {
		t.Errorf("cancel: %v", err)
	}
	if total := n.Stats().Total; total != 1 {
		t.Errorf("%d tokens are counted, want 1", total)
	}
}

// lateTokens is a store whose tokens are all removed after they are read.
type lateTokens struct{ metastore.Delegations }

func (lateTokens) RenewDelegation(context.Context, int32, time.Time) (bool, error) { return false, nil }
func (lateTokens) RemoveDelegation(context.Context, int32) (bool, error)           { return false, nil }

// TestTokenWaitsEnd: a caller whose context ends stops waiting for another caller, with an error.
func TestTokenWaitsEnd(t *testing.T) {
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(errStore)
	for name, wait := range map[string]func(n *tokenNode) error{
		"key": func(n *tokenNode) error {
			<-n.lock
			_, _, err := n.nextKeyAndNumber(ctx, n.now)
			return err
		},
		"clock": func(n *tokenNode) error {
			<-n.clock.lock
			return n.clock.checkAgreement(ctx)
		},
		"count": func(n *tokenNode) error {
			<-n.quota.countLock
			n.quota.next = time.Time{}
			return n.quota.ensureCounted(ctx, false)
		},
	} {
		if err := wait(newTokenNode(t)); !errors.Is(err, errStore) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
