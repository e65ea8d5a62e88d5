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

// refused runs a command of the operator, which must fail with an exit status. Its output must hold some words.
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

// mustRun runs claviger, which must succeed.
func mustRun(t *testing.T, args ...string) string {
	t.Helper()
	out, err := command(t, args...)
	if err != nil {
		t.Fatalf("claviger %s: %v: %s", args, err, out)
	}
	return out
}

// databasePair are two trustees: a on a PostgreSQL primary, and b on its synchronous standby.
type databasePair struct {
	t          *testing.T
	id         *trustee.Identity
	primary    *pgtest.Server
	standbyURI string
	a, b       *host
	onlyB      *trustee.Client
}

// TestTrusteesInPostgreSQL: of two trustees, one is on a primary and one on its synchronous standby. The primary is
// killed while deposits are made, and the standby is promoted. All acknowledged deposits are there. Then a backup is
// restored into a file, and into a third database.
func TestTrusteesInPostgreSQL(t *testing.T) {
	p := newDatabasePair(t)
	p.a.refused(exitUsage, "pg_rewind", "alone", "on")
	p.a.refused(exitUsage, "pg_rewind", "resync")
	p.a.refused(exitRefused, "is the active one", "promote", "--force")
	p.b.refused(exitRefused, "--force", "promote")
	if out := p.a.must("status"); !strings.Contains(out, "this   active   0 deposits") {
		t.Error(out)
	}
	p.killPrimary()

	want := databaseStatus(t, p.b.dir)
	r := &databaseRestore{t: t, dir: t.TempDir(), escrow: escrow(t), want: want,
		third: pgtest.Shared(t).Database(t)}
	r.file = filepath.Join(r.dir, "backup.pgp")
	if out := mustRun(t, "trustee", "backup", "--confdir", p.b.dir, "--recipient",
		filepath.Join(r.escrow, trustee.PublicRing), "--out", r.file); !strings.Contains(out, want.Digest) {
		t.Fatal(out)
	}
	r.intoFile()
	// The standby's database has the same content.
	if out, err := r.restore("again", r.file, "--store", p.standbyURI); err != nil {
		t.Errorf("into a database with the same content: %v, %s", err, out)
	}
	if got := databaseStatus(t, p.b.dir); got != want {
		t.Errorf("it was changed: %+v, %+v", got, want)
	}
	r.cutBackup(p.id)
	r.intoThird()
}

// newDatabasePair sets up and starts the two trustees.
func newDatabasePair(t *testing.T) *databasePair {
	t.Helper()
	p := &databasePair{t: t, primary: pgtest.StartReplicated(t)}
	uri := p.primary.Database(t)
	var err error
	if p.id, err = trustee.NewIdentity("keytrustee", "keytrustee Server Key", "keytrustee@h", 2048,
		time.Now()); err != nil {
		t.Fatal(err)
	}
	p.a = &host{t: t, dir: filepath.Join(t.TempDir(), ".keytrustee"), addr: freeAddr(t), metrics: freeAddr(t)}
	p.b = &host{t: t, dir: filepath.Join(t.TempDir(), ".keytrustee"), addr: freeAddr(t), metrics: freeAddr(t)}
	if _, err := trustee.NewFolder(p.a.dir, p.id); err != nil {
		t.Fatal(err)
	}
	mustRun(t, "trustee", "init", "--confdir", p.a.dir, "--hostname", "127.0.0.1", "--store", uri)
	if _, err := os.Stat(filepath.Join(p.a.dir, location.FileName)); err == nil {
		t.Error("there is a file too")
	}
	mustRun(t, "orgtool", "add", "--confdir", p.a.dir, "-n", "ORG")
	mustRun(t, "orgtool", "set-auth", "--confdir", p.a.dir, "-n", "ORG", "-s", "walrus")
	// The other host has a copy of the folder, and a standby.
	standby := p.primary.Standby(t)
	p.primary.Exec(t, "postgres", "ALTER SYSTEM SET synchronous_standby_names = '*'", "SELECT pg_reload_conf()")
	if err := os.CopyFS(p.b.dir, os.DirFS(p.a.dir)); err != nil {
		t.Fatal(err)
	}
	if out, err := command(t, "trustee", "init", "--confdir", p.b.dir, "--store",
		pgtest.Shared(t).Database(t)); err == nil || !strings.Contains(out, "not a Key Trustee Server's yet") {
		t.Errorf("another database, which is empty: %v, %s", err, out)
	}
	p.standbyURI = standby.URI(pgtest.Superuser, "test1")
	mustRun(t, "trustee", "init", "--confdir", p.b.dir, "--store", p.standbyURI)
	for _, h := range []*host{p.a, p.b} {
		t.Cleanup(h.kill)
		h.start()
	}
	return p
}

// killPrimary kills the primary while deposits are made, and promotes b.
func (p *databasePair) killPrimary() {
	t := p.t
	t.Helper()
	client, err := trustee.NewIdentity("keytrustee", "client", "kms@h", 2048, time.Now().Add(-time.Minute))
	if err != nil {
		t.Fatal(err)
	}
	c := clientOfHosts(t, client, p.a, p.b)
	if active, err := c.Register(t.Context(), "ORG", "walrus", false); err != nil || !active {
		t.Fatalf("%t, %v", active, err)
	}
	p.onlyB = clientOfHosts(t, client, p.b)
	p.refusedAtStandby()
	ctx, cancel := context.WithCancel(t.Context())
	l := startLoad(ctx, t, c)
	defer func() { cancel(); l.group.Wait() }()
	l.reach(60, 1000)
	p.primary.Kill(t)
	time.Sleep(300 * time.Millisecond) // deposits are in progress that no trustee accepts
	before := l.count.Load()
	if out := p.b.must("promote", "--force"); !strings.Contains(out, "this trustee is the active one") {
		t.Error(out)
	}
	p.a.kill() // it cannot serve any more
	l.reach(before+40, before+60)
	cancel()
	l.group.Wait()
	l.acked.Range(func(uuid, label any) bool {
		d, err := p.onlyB.Get(t.Context(), uuid.(string))
		if err != nil || d.Label != label || string(d.Content) != "content of "+d.Label {
			t.Errorf("%s: %+v, %v", label, d, err)
		}
		return true
	})
	if got := databaseStatus(t, p.b.dir); got.Role != server.RoleActive || got.Deposits < l.count.Load() ||
		got.Digest == "" {
		t.Errorf("%+v, %d acknowledged", got, l.count.Load())
	}
	t.Logf("%d deposits acknowledged, %d refused: %v", l.count.Load(), l.refused.Load(), l.lastRefusal.Load())
}

// refusedAtStandby checks that a change at the standby is refused. PostgreSQL acknowledges a commit when the standby
// has it on its disk. A query at the standby may see it later: so the client may not be registered there yet.
func (p *databasePair) refusedAtStandby() {
	p.t.Helper()
	put := func() error {
		_, err := p.onlyB.Put(p.t.Context(), trustee.Deposit{Label: "p", Content: []byte("x")}, "")
		return err
	}
	err := put()
	behind := func() bool { return err != nil && strings.Contains(err.Error(), "is not registered here") }
	for end := time.Now().Add(10 * time.Second); behind() && time.Now().Before(end); err = put() {
		time.Sleep(50 * time.Millisecond)
	}
	if !errors.Is(err, trustee.ErrPassive) {
		p.t.Errorf("a change at the standby: %v", err)
	}
}

// databaseStatus returns the status of a trustee whose deposits are in PostgreSQL.
func databaseStatus(t *testing.T, dir string) (st location.DatabaseStatus) {
	t.Helper()
	out := mustRun(t, "trustee", "status", "--confdir", dir, "--digest", "-o", "json")
	if err := json.Unmarshal([]byte(out), &st); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	return st
}

// databaseRestore restores the backup of a trustee in PostgreSQL.
type databaseRestore struct {
	t      *testing.T
	dir    string // for the restored folders
	escrow string // folder of the key that the backup is encrypted to
	file   string // the backup
	want   location.DatabaseStatus
	third  string // URI of an empty database
}

// restore restores a file into a folder.
func (r *databaseRestore) restore(name, file string, more ...string) (string, error) {
	r.t.Helper()
	return command(r.t, append([]string{"trustee", "restore", "--confdir", filepath.Join(r.dir, name), "--identity",
		filepath.Join(r.escrow, trustee.PrivateRing), file}, more...)...)
}

// intoFile restores the backup into a SQLite file.
func (r *databaseRestore) intoFile() {
	r.t.Helper()
	if out, err := r.restore("file", r.file); err != nil {
		r.t.Fatalf("%v: %s", err, out)
	}
	folder, err := location.Load(filepath.Join(r.dir, "file"))
	if err != nil || folder.Store != "" {
		r.t.Fatalf("%+v, %v", folder, err)
	}
	store, err := location.Open(r.t.Context(), folder, nil)
	if err != nil {
		r.t.Fatal(err)
	}
	if got, err := server.StateDigest(r.t.Context(), store); err != nil || got != r.want.Digest {
		r.t.Errorf("%s, %v", got, err)
	}
	if err := store.Close(); err != nil {
		r.t.Fatal(err)
	}
}

// cutBackup restores a backup without its end into the third database, which stays empty.
func (r *databaseRestore) cutBackup(id *trustee.Identity) {
	r.t.Helper()
	whole, err := os.ReadFile(r.file)
	if err != nil {
		r.t.Fatal(err)
	}
	cut := filepath.Join(r.dir, "cut.pgp")
	if err := os.WriteFile(cut, whole[:len(whole)-20], 0o600); err != nil {
		r.t.Fatal(err)
	}
	if out, err := r.restore("cut", cut, "--store", r.third); err == nil {
		r.t.Errorf("a backup without its end: %s", out)
	}
	empty := &trustee.Folder{Path: "x", Identity: id, Store: r.third}
	if _, err := location.Open(r.t.Context(), empty, nil); !claviger.Is(err, claviger.Invalid) {
		r.t.Errorf("after a failed restoration the database belongs to a trustee: %v", err)
	}
}

// intoThird restores the backup into the third database. A restoration that was killed after its commit leaves a full
// database and no folder. The same backup completes it. If the database has changed since, nothing is restored.
func (r *databaseRestore) intoThird() {
	r.t.Helper()
	if out, err := r.restore("third", r.file, "--store", r.third); err != nil {
		r.t.Fatalf("%v: %s", err, out)
	}
	if got := databaseStatus(r.t, filepath.Join(r.dir, "third")); got.Digest != r.want.Digest ||
		got.Deposits != r.want.Deposits || got.Store == r.want.Store {
		r.t.Errorf("%+v, %+v", got, r.want)
	}
	if err := os.RemoveAll(filepath.Join(r.dir, "third")); err != nil {
		r.t.Fatal(err)
	}
	killed := filepath.Join(r.dir, "killed")
	if out, err := r.restore("killed", r.file, "--store", r.third); err != nil ||
		!strings.Contains(out, r.want.Digest) {
		r.t.Fatalf("%v: %s", err, out)
	}
	if got := databaseStatus(r.t, killed); got.Digest != r.want.Digest || got.Deposits != r.want.Deposits {
		r.t.Errorf("%+v, %+v", got, r.want)
	}
	mustRun(r.t, "orgtool", "add", "-n", "LATER", "--confdir", killed)
	now := databaseStatus(r.t, killed)
	if out, err := r.restore("other", r.file, "--store", r.third); err == nil ||
		!strings.Contains(out, "differ from those of the backup") {
		r.t.Errorf("into a database that has changed: %v, %s", err, out)
	}
	if got := databaseStatus(r.t, killed); got != now || got.Digest == r.want.Digest {
		r.t.Errorf("it was changed: %+v, %+v", got, now)
	}
}

// TestOneTrusteeKilled: a single trustee is killed several times while deposits are made. All acknowledged deposits are
// there, and each other deposit is complete.
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
			t.Errorf("%s was acknowledged and does not exist", label)
		}
		return true
	})
	for uuid, label := range live { // a deposit that was not acknowledged is complete too
		if d, err := c.Get(t.Context(), uuid); err != nil || string(d.Content) != "content of "+label {
			t.Errorf("%s: %+v, %v", label, d, err)
		}
	}
	t.Logf("%d deposits acknowledged, %d exist", l.count.Load(), len(live))
	restoreKilled(t, h.dir)
}

// escrow makes the folder of a key that backups are encrypted to. A site keeps such a key away from its trustees.
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

// restoreKilled makes a backup of a trustee, kills a restoration in the middle, and restores again.
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
	if _, err := in.Write(whole[:len(whole)-100]); err != nil { // the restoration never gets the rest
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
