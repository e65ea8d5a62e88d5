package storetest

import (
	"bytes"
	"errors"
	"slices"
	"sync"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"claviger/metastore"
	"claviger/secret"
)

// Delegations is the suite of metastore.Delegations. open makes an empty store and returns it as two nodes open it.
func Delegations(t *testing.T, open func(t *testing.T) (a, b metastore.Delegations)) {
	for _, tt := range []struct {
		name string
		test func(t *testing.T, a, b metastore.Delegations)
	}{
		{"Sequences", testSequences},
		{"KeyIDs", testKeyIDs},
		{"MasterKeys", testMasterKeys},
		{"Tokens", testTokens},
		{"RenewCancelled", testRenewCancelled},
		{"RenewTogether", testRenewTogether},
		{"Expiry", testExpiry},
		{"Identifiers", testIdentifiers},
		{"Clocks", func(t *testing.T, a, _ metastore.Delegations) { checkClocks(t, a) }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			a, b := open(t)
			tt.test(t, a, b)
		})
	}
}

func testSequences(t *testing.T, a, b metastore.Delegations) {
	ctx := t.Context()
	const batches, size = 10, 7
	var mu sync.Mutex
	given := make(map[int32]bool)
	var group errgroup.Group
	for _, node := range []metastore.Delegations{a, a, b, b} {
		group.Go(func() error {
			for range batches {
				first, err := node.NextSequences(ctx, size)
				if err != nil {
					return err
				}
				mu.Lock()
				for n := first; n < first+size; n++ {
					if given[n] || n <= 0 {
						t.Errorf("sequence number %d was given twice, or is not positive", n)
					}
					given[n] = true
				}
				mu.Unlock()
			}
			return nil
		})
	}
	if err := group.Wait(); err != nil {
		t.Fatal(err)
	}
	for _, n := range []int32{0, -1} {
		if first, err := a.NextSequences(ctx, n); err == nil {
			t.Errorf("NextSequences(%d) returned %d, want an error", n, first)
		}
	}
}

func testKeyIDs(t *testing.T, a, b metastore.Delegations) {
	given := make(map[int32]bool)
	for range 3 {
		for _, node := range []metastore.Delegations{a, b} {
			id, err := node.NextKeyID(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			if given[id] || id <= 0 {
				t.Errorf("key id %d was given twice, or is not positive", id)
			}
			given[id] = true
		}
	}
}

// inDays returns the time n days from now, in whole milliseconds, as stores keep it.
func inDays(n int) time.Time {
	return time.UnixMilli(time.Now().Add(time.Duration(n) * 24 * time.Hour).UnixMilli())
}

func testMasterKeys(t *testing.T, a, b metastore.Delegations) {
	ctx := t.Context()
	none, err := b.MasterKeys(ctx)
	if err != nil || len(none) != 0 {
		t.Fatalf("an empty store has keys %v (%v)", none, err)
	}
	want := []metastore.MasterKey{
		{ID: 2, Expires: inDays(1), Key: secret.Bytes("eight by")},
		{ID: 10, Expires: inDays(2), Key: bytes.Repeat([]byte{0, 255}, 32)},
		{ID: 300, Expires: inDays(3), Key: secret.Bytes("x")},
	}
	for _, i := range []int{2, 0, 1} {
		if err := a.PutMasterKey(ctx, want[i]); err != nil {
			t.Fatal(err)
		}
	}
	want[1].Expires = inDays(5)
	if err := b.PutMasterKey(ctx, want[1]); err != nil {
		t.Fatal(err)
	}
	check := func(node metastore.Delegations) {
		t.Helper()
		got, err := node.MasterKeys(ctx)
		if err != nil {
			t.Fatal(err)
		}
		same := func(x, y metastore.MasterKey) bool {
			return x.ID == y.ID && x.Expires.Equal(y.Expires) && bytes.Equal(x.Key, y.Key)
		}
		if !slices.EqualFunc(got, want, same) {
			t.Errorf("keys %v, want %v", got, want)
		}
	}
	check(a)
	check(b)
	for range 2 { // the second call finds no key
		if err := b.RemoveMasterKey(ctx, 10); err != nil {
			t.Fatal(err)
		}
	}
	want = slices.Delete(want, 1, 2)
	check(a)
}

// token returns a token whose identifier has Hadoop's format.
func token(sequence int32, renew time.Time) metastore.Delegation {
	return metastore.Delegation{
		Sequence:   sequence,
		Identifier: []byte{0, 5, 'a', 'l', 'i', 'c', 'e', 4, 'y', 'a', 'r', 'n', 0, 1, 2, byte(sequence), 1},
		Password:   bytes.Repeat([]byte{byte(sequence)}, 20),
		Renew:      renew,
	}
}

func checkToken(t *testing.T, node metastore.Delegations, want metastore.Delegation) {
	t.Helper()
	got, ok, err := node.Delegation(t.Context(), want.Sequence)
	if err != nil {
		t.Fatal(err)
	}
	if !ok || got.Sequence != want.Sequence || !bytes.Equal(got.Identifier, want.Identifier) ||
		!bytes.Equal(got.Password, want.Password) || !got.Renew.Equal(want.Renew) {
		t.Errorf("token %+v (%v), want %+v", got, ok, want)
	}
}

func checkNoToken(t *testing.T, node metastore.Delegations, sequence int32) {
	t.Helper()
	if got, ok, err := node.Delegation(t.Context(), sequence); err != nil || ok {
		t.Errorf("token %d exists: %+v, %v", sequence, got, err)
	}
}

func checkCount(t *testing.T, node metastore.Delegations, want int) {
	t.Helper()
	if n, err := node.CountDelegations(t.Context()); err != nil || n != want {
		t.Errorf("CountDelegations returned %d, want %d (%v)", n, want, err)
	}
}

func testTokens(t *testing.T, a, b metastore.Delegations) {
	ctx := t.Context()
	checkNoToken(t, a, 1)
	checkCount(t, a, 0)
	one, two := token(1, inDays(1)), token(2, inDays(2))
	for _, d := range []metastore.Delegation{one, two} {
		if err := a.PutDelegation(ctx, d); err != nil {
			t.Fatal(err)
		}
	}
	checkToken(t, a, one)
	checkToken(t, b, one)
	checkToken(t, b, two)
	checkCount(t, a, 2)
	checkCount(t, b, 2)

	one.Renew = inDays(4)
	if ok, err := b.RenewDelegation(ctx, 1, one.Renew); err != nil || !ok {
		t.Fatalf("renew: %v, %v", ok, err)
	}
	checkToken(t, a, one)
	checkToken(t, b, one)
	two.Renew, two.Password = inDays(3), secret.Bytes("another")
	if err := b.PutDelegation(ctx, two); err != nil {
		t.Fatal(err)
	}
	checkToken(t, a, two)

	if ok, err := b.RemoveDelegation(ctx, 1); err != nil || !ok {
		t.Fatalf("remove: %v, %v", ok, err)
	}
	checkNoToken(t, a, 1)
	checkNoToken(t, b, 1)
	if ok, err := a.RemoveDelegation(ctx, 1); err != nil || ok {
		t.Errorf("removed twice: %v, %v", ok, err)
	}
	checkToken(t, a, two)
	checkCount(t, a, 1)
}

func testRenewCancelled(t *testing.T, a, b metastore.Delegations) {
	ctx := t.Context()
	for sequence := int32(1); sequence <= 20; sequence++ {
		d := token(sequence, inDays(1))
		if err := a.PutDelegation(ctx, d); err != nil {
			t.Fatal(err)
		}
		checkToken(t, a, d)
		var group errgroup.Group
		group.Go(func() error {
			for { // until the token is removed
				ok, err := a.RenewDelegation(ctx, sequence, inDays(2))
				if err != nil || !ok {
					return err
				}
			}
		})
		if ok, err := b.RemoveDelegation(ctx, sequence); err != nil || !ok {
			t.Errorf("remove: %v, %v", ok, err)
		}
		checkNoToken(t, a, sequence)
		if err := group.Wait(); err != nil {
			t.Fatal(err)
		}
		checkNoToken(t, b, sequence)
	}
}

func testRenewTogether(t *testing.T, a, b metastore.Delegations) {
	ctx := t.Context()
	want := token(1, inDays(1))
	if err := a.PutDelegation(ctx, want); err != nil {
		t.Fatal(err)
	}
	want.Renew = inDays(2)
	var group errgroup.Group
	for _, node := range []metastore.Delegations{a, b, a, b, a, b} {
		group.Go(func() error {
			for range 5 {
				if ok, err := node.RenewDelegation(ctx, 1, want.Renew); err != nil || !ok {
					return errors.Join(err, errors.New("a renewal found no token"))
				}
			}
			return nil
		})
	}
	if err := group.Wait(); err != nil {
		t.Fatal(err)
	}
	checkToken(t, a, want)
}

func testExpiry(t *testing.T, a, b metastore.Delegations) {
	ctx := t.Context()
	if n, err := a.RemoveExpired(ctx, inDays(0)); err != nil || n != 0 {
		t.Fatalf("RemoveExpired removed %d tokens from an empty store (%v)", n, err)
	}
	const each = 20
	edge := inDays(0)
	for i := range int32(each) {
		for j, renew := range []time.Time{edge.Add(-time.Millisecond), edge} {
			if err := a.PutDelegation(ctx, token(2*i+int32(j)+1, renew)); err != nil {
				t.Fatal(err)
			}
		}
	}
	var group errgroup.Group
	counts := make([]int, 4)
	for i, node := range []metastore.Delegations{a, b, a, b} {
		group.Go(func() (err error) {
			counts[i], err = node.RemoveExpired(ctx, edge)
			return err
		})
	}
	if err := group.Wait(); err != nil {
		t.Fatal(err)
	}
	if sum := counts[0] + counts[1] + counts[2] + counts[3]; sum != each {
		t.Errorf("%v tokens were removed, %d in total, want %d", counts, sum, each)
	}
	for i := range int32(each) {
		checkNoToken(t, b, 2*i+1)
		checkToken(t, b, token(2*i+2, edge))
	}
}

func testIdentifiers(t *testing.T, a, b metastore.Delegations) {
	ctx := t.Context()
	identifiers := func(of metastore.Delegations) []string {
		t.Helper()
		var all []string
		if err := of.Identifiers(ctx, func(id []byte) { all = append(all, string(id)) }); err != nil {
			t.Fatal(err)
		}
		slices.Sort(all)
		return all
	}
	if got := identifiers(a); len(got) != 0 {
		t.Fatalf("an empty store has %q", got)
	}
	var want []string
	for i := range int32(40) {
		d := token(i+1, inDays(1))
		if err := a.PutDelegation(ctx, d); err != nil {
			t.Fatal(err)
		}
		want = append(want, string(d.Identifier))
	}
	slices.Sort(want)
	if got := identifiers(b); !slices.Equal(got, want) {
		t.Errorf("another node lists %q, want %q", got, want)
	}
	if ok, err := b.RemoveDelegation(ctx, 7); err != nil || !ok {
		t.Fatal(ok, err)
	}
	cancelled := string(token(7, inDays(1)).Identifier)
	if got := identifiers(a); len(got) != len(want)-1 || slices.Contains(got, cancelled) {
		t.Errorf("after another node cancelled a token: %d tokens; the cancelled one is listed: %v", len(got),
			slices.Contains(got, cancelled))
	}
}

// Signers is the suite of metastore.Signers. open makes an empty store and returns it as two nodes open it.
func Signers(t *testing.T, open func(t *testing.T) (a, b metastore.Signers)) {
	t.Run("Swap", func(t *testing.T) {
		a, b := open(t)
		testSwap(t, a, b)
	})
	t.Run("OneWins", func(t *testing.T) {
		a, b := open(t)
		testOneWins(t, a, b)
	})
}

func testSwap(t *testing.T, a, b metastore.Signers) {
	ctx := t.Context()
	if s, ok, err := a.SignerSecrets(ctx); err != nil || ok {
		t.Fatalf("an empty store has secrets: %v, %v", s, err)
	}
	if ok, err := a.SwapSignerSecrets(ctx, metastore.SignerSecrets{Next: secret.Bytes("n"), Current: secret.Bytes("c"),
		Rollover: inDays(1), Version: 1}); err != nil || ok {
		t.Errorf("SwapSignerSecrets replaced secrets that do not exist (%v)", err)
	}
	want := metastore.SignerSecrets{Next: bytes.Repeat([]byte{0, 1}, 16), Current: bytes.Repeat([]byte{255}, 32),
		Rollover: inDays(1)}
	swap := func(node metastore.Signers) {
		t.Helper()
		if ok, err := node.SwapSignerSecrets(ctx, want); err != nil || !ok {
			t.Fatalf("swap: %v, %v", ok, err)
		}
		for _, reader := range []metastore.Signers{a, b} {
			got, ok, err := reader.SignerSecrets(ctx)
			if err != nil || !ok {
				t.Fatalf("secrets: %v, %v", ok, err)
			}
			if !bytes.Equal(got.Next, want.Next) || !bytes.Equal(got.Current, want.Current) ||
				!bytes.Equal(got.Previous, want.Previous) ||
				(got.Previous == nil) != (want.Previous == nil) || !got.Rollover.Equal(want.Rollover) {
				t.Errorf("secrets %+v, want %+v", got, want)
			}
			if got.Version == 0 || got.Version == want.Version {
				t.Errorf("version %d after a write over version %d", got.Version, want.Version)
			}
			if reader == b { // the last reader
				want.Version = got.Version
			}
		}
	}
	swap(a)
	stale := want
	want.Next, want.Current, want.Previous = secret.Bytes("third secret"), want.Next, want.Current
	want.Rollover = inDays(2)
	swap(b)
	swap(a)
	for _, version := range []int64{0, stale.Version} {
		stale.Version = version
		if ok, err := b.SwapSignerSecrets(ctx, stale); err != nil || ok {
			t.Errorf("SwapSignerSecrets accepted the old version %d (%v)", version, err)
		}
	}
}

func testOneWins(t *testing.T, a, b metastore.Signers) {
	ctx := t.Context()
	var version int64
	for round := range 10 {
		var group errgroup.Group
		won := make([]bool, 6)
		for i, node := range []metastore.Signers{a, b, a, b, a, b} {
			group.Go(func() (err error) {
				one := byte(round*len(won) + i)
				won[i], err = node.SwapSignerSecrets(ctx,
					metastore.SignerSecrets{Next: secret.Bytes{one}, Current: secret.Bytes{one}, Rollover: inDays(1),
						Version: version})
				return err
			})
		}
		if err := group.Wait(); err != nil {
			t.Fatal(err)
		}
		s, ok, err := b.SignerSecrets(ctx)
		if err != nil || !ok {
			t.Fatalf("secrets: %v, %v", ok, err)
		}
		var winners []int
		for i := range won {
			if won[i] {
				winners = append(winners, i)
			}
		}
		if len(winners) != 1 || s.Current[0] != byte(round*len(won)+winners[0]) {
			t.Fatalf("round %d: the calls %v won, and the secret is that of call %d", round, winners,
				int(s.Current[0])-round*len(won))
		}
		version = s.Version
	}
}
