package main

import (
	"context"
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"claviger"
	"claviger/internal/pgtest"
	"claviger/trustee"
	"claviger/trustee/location"
	"claviger/trustee/server"
)

// refused runs a command of the operator that is to fail, with a code and these words.
func (h *host) refused(code int, words string, args ...string) {
	h.t.Helper()
	out, err := h.do(args...)
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.ExitCode() != code || !strings.Contains(out, words) {
		h.t.Errorf("claviger trustee %s: %v, %s; want code %d, %q", args, err, out, code, words)
	}
}

// command runs claviger.
func command(t *testing.T, args ...string) (string, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	out, err := exec.CommandContext(ctx, "claviger", args...).CombinedOutput() //nolint:gosec // this binary
	return string(out), err
}

// TestTrusteesInPostgreSQL: two trustees, one on a primary and one on its synchronous
// standby. The primary is killed under load, the standby promoted; what was
// acknowledged is all there. Then it all goes into a file, and into a third database.
func TestTrusteesInPostgreSQL(t *testing.T) {
	primary := pgtest.StartReplicated(t)
	uri := primary.Database(t)
	id, err := trustee.NewIdentity("keytrustee", "keytrustee Server Key", "keytrustee@h", 2048, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	a := &host{t: t, dir: filepath.Join(t.TempDir(), ".keytrustee"), addr: freeAddr(t), metrics: freeAddr(t)}
	b := &host{t: t, dir: filepath.Join(t.TempDir(), ".keytrustee"), addr: freeAddr(t), metrics: freeAddr(t)}
	if _, err := trustee.NewFolder(a.dir, id); err != nil {
		t.Fatal(err)
	}
	if out, err := command(t, "trustee", "init", "--confdir", a.dir, "--hostname", "127.0.0.1",
		"--store", uri); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	if _, err := os.Stat(filepath.Join(a.dir, location.FileName)); err == nil {
		t.Error("there is a file too")
	}
	if out, err := command(t, "orgtool", "add", "--confdir", a.dir, "-n", "ORG"); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	if out, err := command(t, "orgtool", "set-auth", "--confdir", a.dir, "-n", "ORG", "-s", "walrus"); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	// The other host: the same folder, and a standby.
	standby := primary.Standby(t)
	primary.Exec(t, "postgres", "ALTER SYSTEM SET synchronous_standby_names = '*'", "SELECT pg_reload_conf()")
	if err := os.CopyFS(b.dir, os.DirFS(a.dir)); err != nil {
		t.Fatal(err)
	}
	if out, err := command(t, "trustee", "init", "--confdir", b.dir, "--store",
		pgtest.Shared(t).Database(t)); err == nil || !strings.Contains(out, "no Key Trustee Server's yet") {
		t.Errorf("another database, which holds nothing: %v, %s", err, out)
	}
	standbyURI := standby.URI(pgtest.Superuser, "test1")
	if out, err := command(t, "trustee", "init", "--confdir", b.dir, "--store", standbyURI); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	for _, h := range []*host{a, b} {
		t.Cleanup(h.kill)
		h.start()
	}
	a.refused(exitUsage, "pg_rewind", "alone", "on")
	a.refused(exitUsage, "pg_rewind", "resync")
	a.refused(exitRefused, "is the active one", "promote", "--force")
	b.refused(exitRefused, "--force", "promote")
	if out := a.must("status"); !strings.Contains(out, "this   active   0 deposits") {
		t.Error(out)
	}

	client, err := trustee.NewIdentity("keytrustee", "client", "kms@h", 2048, time.Now().Add(-time.Minute))
	if err != nil {
		t.Fatal(err)
	}
	c := clientOfHosts(t, client, a, b)
	if active, err := c.Register(t.Context(), "ORG", "walrus", false); err != nil || !active {
		t.Fatalf("%t, %v", active, err)
	}
	onlyB := clientOfHosts(t, client, b)
	// PostgreSQL acknowledges a commit when the standby has it on its disk, which may be
	// before a question at the standby sees it: there, the client is not known yet.
	atStandby := func() error {
		_, err := onlyB.Put(t.Context(), trustee.Deposit{Label: "p", Content: []byte("x")}, "")
		return err
	}
	err = atStandby()
	behind := func() bool { return err != nil && strings.Contains(err.Error(), "is not registered here") }
	for end := time.Now().Add(10 * time.Second); behind() && time.Now().Before(end); err = atStandby() {
		time.Sleep(50 * time.Millisecond)
	}
	if !errors.Is(err, trustee.ErrPassive) {
		t.Errorf("a change at the standby: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	l := startLoad(ctx, t, c)
	defer func() { cancel(); l.group.Wait() }()
	l.reach(60, 1000)
	primary.Kill(t)
	time.Sleep(300 * time.Millisecond) // deposits are under way that nobody takes
	before := l.count.Load()
	if out := b.must("promote", "--force"); !strings.Contains(out, "this trustee is the active one") {
		t.Error(out)
	}
	a.kill() // it serves nothing any more
	l.reach(before+40, before+60)
	cancel()
	l.group.Wait()
	l.acked.Range(func(uuid, label any) bool {
		d, err := onlyB.Get(t.Context(), uuid.(string))
		if err != nil || d.Label != label || string(d.Content) != "content of "+d.Label {
			t.Errorf("%s: %+v, %v", label, d, err)
		}
		return true
	})
	t.Logf("%d deposits acknowledged, %d refused: %v", l.count.Load(), l.refused.Load(), l.said.Load())

	// Into a file, and into a third database.
	status := func(dir string) (st location.DatabaseStatus) {
		t.Helper()
		out, err := command(t, "trustee", "status", "--confdir", dir, "--digest", "-o", "json")
		if err == nil {
			err = json.Unmarshal([]byte(out), &st)
		}
		if err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		return st
	}
	want := status(b.dir)
	if want.Role != server.RoleActive || want.Deposits < l.count.Load() || want.Digest == "" {
		t.Errorf("%+v, %d acknowledged", want, l.count.Load())
	}
	dir := t.TempDir()
	file := filepath.Join(dir, "backup.pgp")
	elsewhere := escrow(t)
	if out, err := command(t, "trustee", "backup", "--confdir", b.dir,
		"--recipient", filepath.Join(elsewhere, trustee.PublicRing), "--out", file); err != nil ||
		!strings.Contains(out, want.Digest) {
		t.Fatalf("%v: %s", err, out)
	}
	restore := func(name, file string, more ...string) (string, error) {
		return command(t, append([]string{"trustee", "restore", "--confdir", filepath.Join(dir, name), "--identity",
			filepath.Join(elsewhere, trustee.PrivateRing), file}, more...)...)
	}
	if out, err := restore("file", file); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	folder, err := location.Load(filepath.Join(dir, "file"))
	if err != nil || folder.Store != "" {
		t.Fatalf("%+v, %v", folder, err)
	}
	store, err := location.Open(t.Context(), folder, nil)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := server.StateDigest(t.Context(), store); err != nil || got != want.Digest {
		t.Errorf("%s, %v", got, err)
	}
	if err := store.Close(); err != nil {
		t.Fatal(err)
	}
	if out, err := restore("again", file, "--store", standbyURI); err != nil { // it holds the same
		t.Errorf("over what is there: %v, %s", err, out)
	}
	if got := status(b.dir); got != want {
		t.Errorf("it was changed: %+v, %+v", got, want)
	}
	third := pgtest.Shared(t).Database(t)
	whole, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	cut := filepath.Join(dir, "cut.pgp")
	if err := os.WriteFile(cut, whole[:len(whole)-20], 0o600); err != nil {
		t.Fatal(err)
	}
	if out, err := restore("cut", cut, "--store", third); err == nil {
		t.Errorf("a backup that was cut: %s", out)
	}
	empty := &trustee.Folder{Path: "x", Identity: id, Store: third}
	if _, err := location.Open(t.Context(), empty, nil); !claviger.Is(err, claviger.Invalid) {
		t.Errorf("after a restoration that failed the database is somebody's: %v", err)
	}
	if out, err := restore("third", file, "--store", third); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	if got := status(filepath.Join(dir, "third")); got.Digest != want.Digest || got.Deposits != want.Deposits ||
		got.Store == want.Store {
		t.Errorf("%+v, %+v", got, want)
	}
	// Killed after its commit: the database is full, and the folder is not there. The same
	// backup finishes it, another one changes nothing.
	if err := os.RemoveAll(filepath.Join(dir, "third")); err != nil {
		t.Fatal(err)
	}
	if out, err := restore("killed", file, "--store", third); err != nil || !strings.Contains(out, want.Digest) {
		t.Fatalf("%v: %s", err, out)
	}
	if got := status(filepath.Join(dir, "killed")); got.Digest != want.Digest || got.Deposits != want.Deposits {
		t.Errorf("%+v, %+v", got, want)
	}
	if out, err := command(t, "orgtool", "add", "-n", "LATER", "--confdir", filepath.Join(dir, "killed")); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	now := status(filepath.Join(dir, "killed"))
	if out, err := restore("other", file, "--store", third); err == nil ||
		!strings.Contains(out, "other ones than the backup") {
		t.Errorf("over what has changed since: %v, %s", err, out)
	}
	if got := status(filepath.Join(dir, "killed")); got != now || got.Digest == want.Digest {
		t.Errorf("it was changed: %+v, %+v", got, now)
	}
}

// TestOneTrusteeKilled: a trustee alone is killed in the middle of deposits, again
// and again; what was acknowledged is there, and nothing else is broken.
func TestOneTrusteeKilled(t *testing.T) {
	id, err := trustee.NewIdentity("keytrustee", "keytrustee Server Key", "keytrustee@h", 2048, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	h := &host{t: t, dir: filepath.Join(t.TempDir(), ".keytrustee"), addr: freeAddr(t), metrics: freeAddr(t)}
	if _, err := trustee.NewFolder(h.dir, id); err != nil {
		t.Fatal(err)
	}
	for _, args := range [][]string{{"trustee", "init", "--hostname", "127.0.0.1"}, {"orgtool", "add", "-n", "ORG"},
		{"orgtool", "set-auth", "-n", "ORG", "-s", "walrus"}} {
		if out, err := command(t, append(args, "--confdir", h.dir)...); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
	}
	t.Cleanup(h.kill)
	h.start()
	client, err := trustee.NewIdentity("keytrustee", "client", "kms@h", 2048, time.Now().Add(-time.Minute))
	if err != nil {
		t.Fatal(err)
	}
	c := clientOfHosts(t, client, h)
	if active, err := c.Register(t.Context(), "ORG", "walrus", false); err != nil || !active {
		t.Fatalf("%t, %v", active, err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	l := startLoad(ctx, t, c)
	defer func() { cancel(); l.group.Wait() }()
	for n := int64(40); n <= 200; n += 40 {
		l.reach(n, 1000)
		h.kill()
		h.start()
	}
	cancel()
	l.group.Wait()
	live := map[string]string{}
	for after := ""; ; {
		page, err := c.List(t.Context(), "deposit/", false, after, trustee.MaxPage)
		if err != nil {
			t.Fatal(err)
		}
		if len(page) == 0 {
			break
		}
		for _, d := range page {
			live[d.UUID] = d.Label
		}
		after = page[len(page)-1].Cursor()
	}
	l.acked.Range(func(uuid, label any) bool {
		if live[uuid.(string)] != label {
			t.Errorf("%s was acknowledged and is not there", label)
		}
		return true
	})
	for uuid, label := range live { // one that was not acknowledged is whole too
		if d, err := c.Get(t.Context(), uuid); err != nil || string(d.Content) != "content of "+label {
			t.Errorf("%s: %+v, %v", label, d, err)
		}
	}
	t.Logf("%d deposits acknowledged, %d there", l.count.Load(), len(live))
	restoreKilled(t, h.dir)
}

// escrow makes the folder of a key that backups are encrypted to and that is kept
// elsewhere.
func escrow(t *testing.T) string {
	t.Helper()
	id, err := trustee.NewIdentity("escrow", "", "escrow@localhost", 2048, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(t.TempDir(), "escrow")
	if err := trustee.MakeFolder(dir); err != nil {
		t.Fatal(err)
	}
	if _, err := trustee.NewFolder(dir, id); err != nil {
		t.Fatal(err)
	}
	return dir
}

// restoreKilled backs a trustee up, kills a restoration midway, and restores again.
func restoreKilled(t *testing.T, trusteeDir string) {
	t.Helper()
	parent := t.TempDir()
	file, dir := filepath.Join(parent, "backup.pgp"), filepath.Join(parent, ".keytrustee")
	elsewhere := escrow(t)
	made, err := command(t, "trustee", "backup", "--confdir", trusteeDir,
		"--recipient", filepath.Join(elsewhere, trustee.PublicRing), "--out", file)
	if err != nil {
		t.Fatalf("%v: %s", err, made)
	}
	whole, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	args := []string{"trustee", "restore", "--confdir", dir, "--identity",
		filepath.Join(elsewhere, trustee.PrivateRing)}
	cmd := exec.CommandContext(t.Context(), "claviger", append(args, "-")...) //nolint:gosec // this binary
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if _, err := in.Write(whole[:len(whole)-100]); err != nil { // the rest never comes
		t.Fatal(err)
	}
	var begun []string
	for begun == nil {
		if begun, err = filepath.Glob(filepath.Join(parent, ".claviger-restore-*", "folder",
			trustee.PrivateRing)); err != nil || t.Context().Err() != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Millisecond)
	}
	_ = cmd.Process.Kill()
	_ = cmd.Wait() // it was killed
	if _, err := os.Stat(dir); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("%s after a restoration that was killed: %v", dir, err)
	}
	if _, err := os.Stat(begun[0]); err != nil {
		t.Errorf("it was not killed midway: %v", err)
	}
	out, err := command(t, append(args, file)...)
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	// The second lines name the counts and the digest.
	if _, was, _ := strings.Cut(made, "\n"); was == "" || !strings.Contains(out, was) {
		t.Errorf("backed up: %s\nrestored: %s", made, out)
	}
	if list, err := os.ReadDir(parent); err != nil || len(list) != 2 {
		t.Errorf("left: %v, %v", list, err)
	}
}
