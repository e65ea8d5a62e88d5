package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"claviger/trustee"
	"claviger/trustee/location"
	"claviger/trustee/replica"
)

// TestActiveStoreLost: the store of the active trustee is lost and made again, and its server is started as before. The
// passive trustee loses nothing, status reports it on both hosts with exit status 3, and promote on the passive host
// repairs the pair.
func TestActiveStoreLost(t *testing.T) {
	a, b, id, c := twoWithClient(t)
	uuid, err := c.Put(t.Context(), trustee.Deposit{Label: "key/web", Content: []byte("x")}, "")
	if err != nil {
		t.Fatal(err)
	}
	a.awaitEqual("the deposit")
	a.kill()
	for _, end := range []string{"", "-wal", "-shm"} {
		if err := os.Remove(filepath.Join(a.dir, location.FileName+end)); err != nil && !os.IsNotExist(err) {
			t.Fatal(err)
		}
	}
	if out, err := command(t, "trustee", "init", "--confdir", a.dir, "--hostname", "127.0.0.1"); err == nil ||
		!strings.Contains(out, "keytrustee.db.lock") || !strings.Contains(out, "--empty-store") {
		t.Errorf("init in the place of a store that was served: %v, %s", err, out)
	}
	if out, err := command(t, "trustee", "init", "--confdir", a.dir, "--hostname", "127.0.0.1",
		"--empty-store"); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	a.start()
	loss := "1 organizations, 1 clients and 1 deposits"
	a.await("the refusal", false, func(r *replica.StatusReport) bool { return strings.Contains(r.Why, loss) })
	a.refused(exitRefused, loss, "status")
	b.refused(exitRefused, "claviger trustee promote here", "status")
	a.refused(exitRefused, loss, "resync")
	if d, err := c.Get(t.Context(), uuid); err != nil || d.Label != "key/web" {
		t.Errorf("a client of both: %+v, %v", d, err)
	}
	b.must("promote")
	b.awaitEqual("the way back")
	if d, err := clientOfHosts(t, id, a).Get(t.Context(), uuid); err != nil || d.Label != "key/web" {
		t.Errorf("of the trustee that had lost its store: %+v, %v", d, err)
	}
	// The message of the trustee that starts without the other one names the next command.
	b.kill()
	a.kill()
	if out, err := command(t, "trustee", "serve", "--confdir", a.dir, "--listen", a.addr); err == nil ||
		!strings.Contains(out, "with both options anyway, and then: claviger trustee promote "+
			"--force, claviger trustee alone on") {
		t.Errorf("without --peer: %v, %s", err, out)
	}
	a.start()
	a.must("promote", "--force")
	a.must("alone", "on")
	if _, err := clientOfHosts(t, id, a).Put(t.Context(), trustee.Deposit{Label: "key/late", Content: []byte("y")},
		""); err != nil {
		t.Error(err)
	}
}
