package nodes

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"claviger"
	"claviger/metastore/postgres"
	"claviger/provider"
	"claviger/provider/kmsclient"
	"claviger/secret"
	"claviger/test/hadoop"
)

// worker changes and uses its own key, at any node that answers, and records the acknowledged changes.
type worker struct {
	key    string
	t      *testing.T
	nodes  []*kmsclient.Provider
	exists bool
	acked  []string // versions that a node has acknowledged, oldest first
	sealed []claviger.EDEK
	opened []secret.Bytes
	unsure bool // the last change failed, and may or may not have been made
	failed int  // calls with an error or without an answer
}

// randomNode returns a random node.
func (w *worker) randomNode() *kmsclient.Provider { return w.nodes[rand.N(len(w.nodes))] } //nolint:gosec // a test

// step makes one random change or use of the key.
func (w *worker) step(ctx context.Context) {
	if !w.exists || w.unsure {
		w.create(ctx)
		return
	}
	switch rand.N(10) { //nolint:gosec // a test
	case 0:
		if err := w.randomNode().Delete(ctx, w.key); err != nil {
			w.failed, w.unsure = w.failed+1, true
			return
		}
		w.forgetKey()
	case 1, 2, 3:
		v, err := w.randomNode().Roll(ctx, w.key, nil)
		if err != nil {
			w.failed, w.unsure = w.failed+1, true
			return
		}
		w.acked = append(w.acked, v.Name)
	default:
		w.use(ctx)
	}
}

// forgetKey records that the key was deleted.
func (w *worker) forgetKey() {
	w.exists, w.unsure, w.acked, w.sealed, w.opened = false, false, nil, nil, nil
}

// create creates the key. If the outcome of a change is unknown, it first finds out.
func (w *worker) create(ctx context.Context) {
	if w.unsure {
		vs, err := w.randomNode().Versions(ctx, w.key)
		if err != nil {
			w.failed++
			return
		}
		if len(vs) == 0 {
			w.forgetKey()
			return
		}
		names := make([]string, len(vs))
		for i, v := range vs {
			names[i] = v.Name
		}
		if len(names) < len(w.acked) || !slices.Equal(names[:len(w.acked)], w.acked) {
			w.t.Errorf("key %s: versions %v were acknowledged, but it has %v", w.key, w.acked, names)
		}
		w.exists, w.unsure, w.acked = true, false, names
		return
	}
	v, err := w.randomNode().Create(ctx, provider.Spec{Name: w.key, Cipher: claviger.DefaultCipher, BitLength: 128})
	if err != nil {
		w.failed, w.unsure = w.failed+1, true
		return
	}
	w.exists, w.acked = true, []string{v.Name}
}

// use makes an EDEK at one node, which must use the last acknowledged version, and decrypts it at another node.
func (w *worker) use(ctx context.Context) {
	e, err := w.randomNode().Generate(ctx, w.key, 1)
	if err != nil {
		w.failed++
		return
	}
	if want := w.acked[len(w.acked)-1]; e[0].Version != want {
		w.t.Errorf("generated under %s after %s was acknowledged", e[0].Version, want)
	}
	dek, err := w.randomNode().Unwrap(ctx, w.key, "", e)
	if err != nil {
		w.failed++
		return
	}
	w.sealed, w.opened = append(w.sealed, e[0]), append(w.opened, dek[0])
}

// check decrypts all EDEKs at each node.
func (w *worker) check(ctx context.Context) {
	if w.unsure {
		w.create(ctx)
	}
	for _, n := range w.nodes {
		vs, err := n.Versions(ctx, w.key)
		if err != nil {
			w.t.Error(err)
			continue
		}
		names := make([]string, 0, len(vs))
		for _, v := range vs {
			names = append(names, v.Name)
		}
		if !slices.Equal(names, w.acked) {
			w.t.Errorf("key %s has versions %v, want %v", w.key, names, w.acked)
		}
		if len(w.sealed) == 0 {
			continue
		}
		deks, err := n.Unwrap(ctx, w.key, "", w.sealed)
		if err != nil {
			w.t.Errorf("key %s: %v", w.key, err)
			continue
		}
		for i := range deks {
			if !bytes.Equal(deks[i], w.opened[i]) {
				w.t.Errorf("key %s: the DEK decrypted from an EDEK of %s has changed", w.key, w.sealed[i].Version)
			}
		}
	}
}

// TestKill: two nodes under load are killed at random moments and started again, several times. Both nodes have all
// acknowledged changes. The token has exactly one key for each version.
func TestKill(t *testing.T) {
	const workers, rounds = 6, 8
	s := newSite(t, nil)
	s.start(t).Kill() // it makes the schema; another test has two nodes make it at the same time
	ports := hadoop.FreePorts(t, 2)
	nodes := []*node{s.startAt(t, ports[0]), s.startAt(t, ports[1])}
	clients := []*kmsclient.Provider{nodes[0].client(t), nodes[1].client(t)}
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	load, stop := context.WithCancel(ctx)
	var group sync.WaitGroup
	all := make([]*worker, workers)
	for i := range all {
		w := &worker{key: fmt.Sprintf("zone%d", i), t: t, nodes: clients}
		all[i] = w
		group.Go(func() {
			for load.Err() == nil {
				w.step(ctx) // a step is always completed
			}
		})
	}
	for round := range rounds {
		time.Sleep(300*time.Millisecond + rand.N(700*time.Millisecond)) //nolint:gosec // a test
		victim := round % 2
		nodes[victim].Kill()
		nodes[victim] = s.startAt(t, ports[victim])
	}
	stop()
	group.Wait()
	versions, failed, used := 0, 0, 0
	for _, w := range all {
		w.check(ctx)
		versions += len(w.acked)
		failed += w.failed
		used += len(w.sealed)
	}
	if failed == 0 || used == 0 {
		t.Errorf("%d calls failed and %d EDEKs were made: nothing was tested", failed, used)
	}
	for _, n := range nodes {
		n.Stop()
	}
	s.checkConsistent(ctx, t, all)
	t.Logf("%d calls failed, %d EDEKs held, %d versions", failed, used, versions)
}

// checkConsistent completes each unfinished step, and compares the token with the metastore.
func (s *site) checkConsistent(ctx context.Context, t *testing.T, all []*worker) {
	t.Helper()
	n := s.start(t) // it completes interrupted deletes
	c := n.client(t)
	for _, w := range all { // the delete of all keys completes the rest
		if w.exists {
			if err := c.Delete(ctx, w.key); err != nil {
				t.Error(err)
			}
			continue
		}
		// The same create completes an interrupted create.
		if _, err := c.Create(ctx, provider.Spec{Name: w.key, Cipher: claviger.DefaultCipher,
			BitLength: 128}); err != nil {
			t.Error(err)
		}
		if err := c.Delete(ctx, w.key); err != nil {
			t.Error(err)
		}
	}
	n.Stop()
	store, err := postgres.Open(ctx, postgres.Config{URI: s.store})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = store.Close() }() // it was only read
	names, err := store.Names(ctx)
	if err != nil || len(names) > 0 {
		t.Errorf("keys %v are left (%v)", names, err)
	}
	pending, err := store.Pending(ctx)
	if err != nil || len(pending) > 0 {
		t.Errorf("steps %+v are left (%v)", pending, err)
	}
	s.checkToken(t)
}

// checkToken fails the test if the token has keys that SoftHSM does not hide. If two processes make an object at
// the same moment, both count the generation of the token up to the same number, so neither sees the object of the
// other before the next object is made. A delete in that time finds nothing to destroy. An HSM has no such gap.
func (s *site) checkToken(t *testing.T) {
	t.Helper()
	const hidden = 3
	out := hadoop.Claviger(t, s.hsm.Env, "hsm", "list", "--conf", s.conf)
	left := 0
	for line := range strings.Lines(out) {
		f := strings.Fields(line)
		switch {
		case !strings.Contains(line, "zone"):
		case len(f) == 4 && f[3] == "orphan" && left < hidden:
			left++
			t.Logf("%s was deleted while SoftHSM hid it", f[1])
		default:
			t.Errorf("keys are left on the token:\n%s", out)
			return
		}
	}
}
