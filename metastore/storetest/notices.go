package storetest

import (
	"context"
	"slices"
	"sync"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"claviger"
	"claviger/metastore"
)

// NoticeStore has the methods that the suite of notices calls: the changes of keys, and the notices of them.
type NoticeStore interface {
	metastore.Keys
	metastore.Intents
	metastore.DeletedKeys
	metastore.Delegations
	metastore.Notices
}

// received collects the notices that one Watch has passed on.
type received struct {
	mu  sync.Mutex
	all []metastore.Notice
}

func (r *received) add(n metastore.Notice) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.all = append(r.all, n)
}

func (r *received) list() []metastore.Notice {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.all)
}

// noticeTimeout is the longest time that a notice may take on a busy machine.
const noticeTimeout = 15 * time.Second

func (r *received) wait(t *testing.T, want metastore.Notice) {
	t.Helper()
	for deadline := time.Now().Add(noticeTimeout); !slices.Contains(r.list(), want); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("no notice %+v within %v; received %+v", want, noticeTimeout, r.list())
		}
	}
}

// watch calls Watch until the test ends. It returns after the first notice has arrived, so later ones are not missed.
func watch(t *testing.T, s NoticeStore) *received {
	t.Helper()
	r := new(received)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- s.Watch(ctx, r.add) }()
	t.Cleanup(func() {
		cancel()
		select {
		case err := <-done:
			if err != nil {
				t.Errorf("Watch: %v", err)
			}
		case <-time.After(noticeTimeout):
			t.Error("Watch did not end with its context")
		}
	})
	hello := metastore.Notice{Key: "hello", Change: metastore.Invalidated}
	for deadline := time.Now().Add(noticeTimeout); !slices.Contains(r.list(), hello); {
		if time.Now().After(deadline) {
			t.Fatal("Watch passes on no notice")
		}
		must(t, s.Announce(t.Context(), hello))
		time.Sleep(20 * time.Millisecond)
	}
	return r
}

// Notices is the suite of metastore.Notices, for a store that announces its changes of keys itself. open makes an empty
// store and returns it as two nodes open it.
func Notices(t *testing.T, open func(t *testing.T) (a, b NoticeStore)) {
	for _, tt := range []struct {
		name string
		test func(t *testing.T, a, b NoticeStore)
	}{
		{"Changes", testNoticeChanges},
		{"FailedChanges", testNoticeFailed},
		{"OneAtATime", testNoticeOrder},
		{"EndOfWatch", testNoticeEnds},
	} {
		t.Run(tt.name, func(t *testing.T) {
			a, b := open(t)
			tt.test(t, a, b)
		})
	}
}

func testNoticeChanges(t *testing.T, a, b NoticeStore) {
	ctx := t.Context()
	ofA, ofB := watch(t, a), watch(t, b)
	both := func(n metastore.Notice) {
		t.Helper()
		ofA.wait(t, n)
		ofB.wait(t, n)
	}
	const name = "zone \"é\" \x01/'\\"
	must(t, a.Insert(ctx, key(name, "aa")))
	both(metastore.Notice{Key: name, Change: metastore.Created})
	must(t, b.Append(ctx, name, version("bb", 1)))
	both(metastore.Notice{Key: name, Change: metastore.Rolled})
	must(t, b.Amend(ctx, key(name, "aa").Metadata))
	both(metastore.Notice{Key: name, Change: metastore.Invalidated})
	_, err := b.RemoveVersion(ctx, name, "aa")
	must(t, err)
	both(metastore.Notice{Key: name, Change: metastore.Invalidated})
	must(t, b.Drop(ctx, name))
	must(t, b.Announce(ctx, metastore.Notice{Key: "other", Change: metastore.Invalidated}))
	both(metastore.Notice{Key: "other", Change: metastore.Invalidated})
	must(t, a.SoftDelete(ctx, name))
	both(metastore.Notice{Key: name, Change: metastore.Deleted})
	must(t, b.Undelete(ctx, name, "bb"))
	both(metastore.Notice{Key: name, Change: metastore.Created})
	_, err = a.Remove(ctx, name)
	must(t, err)
	both(metastore.Notice{Key: name, Change: metastore.Deleted})
	must(t, a.Announce(ctx, metastore.Notice{Change: metastore.Invalidated}))
	both(metastore.Notice{Change: metastore.Invalidated})
	create, err := a.Begin(ctx, metastore.Intent{Key: "step", Op: "create", Refs: refs("50")})
	must(t, err)
	must(t, a.FinishCreate(ctx, create, key("step", "50")))
	both(metastore.Notice{Key: "step", Change: metastore.Created})
	roll, err := b.Begin(ctx, metastore.Intent{Key: "step", Op: "roll", Refs: refs("51")})
	must(t, err)
	must(t, b.FinishRoll(ctx, roll, version("51", 1)))
	both(metastore.Notice{Key: "step", Change: metastore.Rolled})
	must(t, a.PutDelegation(ctx, token(7, inDays(1))))
	_, err = b.RemoveDelegation(ctx, 7)
	must(t, err)
	both(metastore.Notice{Change: metastore.TokenRemoved, Token: 7})
}

func testNoticeFailed(t *testing.T, a, b NoticeStore) {
	ctx := t.Context()
	must(t, a.Insert(ctx, key("k", "aa")))
	r := watch(t, b)
	wantKind(t, a.Insert(ctx, key("k", "bb")), claviger.KeyExists)
	wantKind(t, a.Append(ctx, "none", version("cc", 1)), claviger.KeyNotFound)
	_, err := a.Remove(ctx, "none")
	wantKind(t, err, claviger.KeyNotFound)
	end := metastore.Notice{Key: "end", Change: metastore.Invalidated}
	must(t, a.Announce(ctx, end))
	r.wait(t, end)
	for _, n := range r.list() {
		if n.Key == "none" || n.Key == "k" {
			t.Errorf("notice %+v of a change that failed", n)
		}
	}
}

func testNoticeOrder(t *testing.T, a, b NoticeStore) {
	ctx := t.Context()
	var mu sync.Mutex
	var running, count int
	watching, cancel := context.WithCancel(ctx)
	defer cancel()
	done := make(chan error, 1)
	go func() {
		done <- b.Watch(watching, func(metastore.Notice) {
			mu.Lock()
			running, count = running+1, count+1
			if running > 1 {
				t.Error("Watch passed on two notices at the same time")
			}
			mu.Unlock()
			time.Sleep(time.Millisecond)
			mu.Lock()
			running--
			mu.Unlock()
		})
	}()
	for deadline := time.Now().Add(noticeTimeout); ; {
		var group errgroup.Group
		for _, s := range []NoticeStore{a, b, a, b} {
			group.Go(func() error { return s.Announce(ctx, metastore.Notice{Key: "k", Change: metastore.Rolled}) })
		}
		must(t, group.Wait())
		mu.Lock()
		enough := count >= 8
		mu.Unlock()
		if enough {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("too few notices")
		}
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func testNoticeEnds(t *testing.T, a, _ NoticeStore) {
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	done := make(chan error, 1)
	go func() { done <- a.Watch(ended, func(metastore.Notice) {}) }()
	select {
	case err := <-done:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(noticeTimeout):
		t.Error("Watch did not end with its context")
	}
}
