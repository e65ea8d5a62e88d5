package nodes

import (
	"context"
	"fmt"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"claviger"
	"claviger/provider"
	"claviger/provider/kmsclient"
	"claviger/test/hadoop"
)

// rolling is a site whose two nodes have one port, at two addresses, and are upgraded one after the other.
type rolling struct {
	t      *testing.T
	sites  [2]*site // they differ in their addresses
	nodes  [2]*node
	port   int
	client *kmsclient.Provider // of both nodes, as kms://http@127.0.0.1;127.0.0.2:PORT
	opened atomic.Int64        // EDEKs
	rolled atomic.Int64        // versions
}

func newRolling(t *testing.T) *rolling {
	t.Helper()
	r := &rolling{t: t, port: hadoop.FreePorts(t, 1)[0]}
	r.sites[0] = newSite(t, nil)
	r.sites[1] = &site{conf: t.TempDir(), hsm: r.sites[0].hsm, store: r.sites[0].store}
	r.sites[1].write(t, hadoop.Conf{"hadoop.kms.http.host": "127.0.0.2"})
	for i := range r.nodes {
		r.start(i)
	}
	var err error
	if r.client, err = kmsclient.New(fmt.Sprintf("kms://http@127.0.0.1;127.0.0.2:%d/kms", r.port),
		kmsclient.Options{User: "nn", Timeout: 30 * time.Second}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = r.client.Close() })
	return r
}

func (r *rolling) start(i int) { r.nodes[i] = r.sites[i].startAt(r.t, r.port) }

// stop stops a node as systemd does.
func (r *rolling) stop(i int) {
	r.t.Helper()
	if status := r.nodes[i].Stop(); status != 0 {
		r.t.Errorf("node %d ended with status %d", i+1, status)
	}
}

// use makes and opens EDEKs of a key, rolls it, and makes further keys, until ctx ends. No call may fail.
func (r *rolling) use(ctx context.Context, key string) error {
	background := context.WithoutCancel(ctx)
	for n := 0; ctx.Err() == nil; n++ {
		made, err := r.client.Generate(background, key, 3)
		if err != nil {
			return fmt.Errorf("generate: %w", err)
		}
		deks, err := r.client.Unwrap(background, key, "", made)
		if err != nil || len(deks) != len(made) {
			return fmt.Errorf("decrypt: %d, %w", len(deks), err)
		}
		r.opened.Add(int64(len(deks)))
		switch n % 10 {
		case 3:
			if _, err := r.client.Roll(background, key, nil); err != nil {
				return fmt.Errorf("roll: %w", err)
			}
			r.rolled.Add(1)
		case 7:
			if _, err := r.client.Create(background, provider.Spec{Name: fmt.Sprintf("%s-%d", key, n),
				Cipher: claviger.DefaultCipher, BitLength: 128}); err != nil {
				return fmt.Errorf("create: %w", err)
			}
		}
	}
	return nil
}

// goesOn waits until the clients have done some more.
func (r *rolling) goesOn(step string) {
	r.t.Helper()
	opened, rolled := r.opened.Load(), r.rolled.Load()
	for deadline := time.Now().Add(time.Minute); r.opened.Load() < opened+60 || r.rolled.Load() < rolled+2; {
		if r.t.Failed() || time.Now().After(deadline) {
			r.t.Fatalf("%s: the clients do not go on", step)
		}
		time.Sleep(5 * time.Millisecond)
	}
	r.t.Logf("%s: %d EDEKs were opened and %d versions made so far, without an error", step, r.opened.Load(),
		r.rolled.Load())
}

// TestRollingUpgrade plays "Upgrade" of docs/install.md for two nodes on one metastore, under load, to a release with
// another schema. Clients see no error: not while a node is down, nor while both releases serve, nor when the node of
// the old release is restarted meanwhile. Both releases see each change.
func TestRollingUpgrade(t *testing.T) {
	next, schema := hadoop.NextBinary(t)
	r := newRolling(t)
	ctx, stop := context.WithCancel(t.Context())
	var clients sync.WaitGroup
	for i := range 3 {
		key := fmt.Sprintf("zone%d", i)
		if _, err := r.client.Create(ctx, provider.Spec{Name: key, Cipher: claviger.DefaultCipher,
			BitLength: 128}); err != nil {
			t.Fatal(err)
		}
		clients.Go(func() {
			if err := r.use(ctx, key); err != nil {
				t.Errorf("a client: %v", err)
			}
		})
	}
	defer clients.Wait()
	defer stop()
	r.goesOn("both nodes are of the old release")
	r.stop(0)
	r.goesOn("node 1 is down, node 2 of the old release")
	r.sites[0].binary = next
	r.start(0)
	r.goesOn("node 1 is of the new release, and has upgraded the metastore; node 2 is of the old one")
	r.stop(1)
	r.goesOn("node 2 is down")
	r.start(1)
	log, err := os.ReadFile(r.nodes[1].Log)
	if want := fmt.Sprintf("schema=%d known=%d", schema, schema-1); err != nil || !strings.Contains(string(log), want) {
		t.Errorf("the log of node 2 does not say %q: %v\n%s", want, err, log)
	}
	r.goesOn("node 2 was restarted with the old release")
	r.stop(1)
	r.sites[1].binary = next
	r.start(1)
	r.goesOn("both nodes are of the new release")
	r.stop(0)
	r.sites[0].binary = ""
	r.start(0)
	r.goesOn("node 1 has gone back to the old release")
	stop()
	clients.Wait()
	r.agree(t.Context())
}

// agree fails the test unless both nodes show the same versions of the keys.
func (r *rolling) agree(ctx context.Context) {
	r.t.Helper()
	var of [2]string
	for i, n := range r.nodes {
		c := n.client(r.t)
		for _, key := range []string{"zone0", "zone1", "zone2"} {
			versions, err := c.Versions(ctx, key)
			if err != nil {
				r.t.Fatal(err)
			}
			for _, v := range versions {
				of[i] += v.Name + " "
			}
		}
	}
	if of[0] != of[1] || strings.Count(of[0], "@") < 10 {
		r.t.Errorf("node 1 has %s, node 2 %s", of[0], of[1])
	}
}
