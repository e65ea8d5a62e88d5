package keytrustee_test

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"claviger"
	"claviger/provider"
	"claviger/provider/keytrustee"
	"claviger/trustee"
	"claviger/trustee/replica"
	"claviger/trustee/server"
)

// records returns the records of a backup of the server.
func (s *site) records() (list []server.Record) {
	s.t.Helper()
	if err := s.store.Export(s.t.Context(), func(r server.Record) error {
		list = append(list, r)
		return nil
	}); err != nil {
		s.t.Fatal(err)
	}
	return list
}

func (s *site) restore(list []server.Record) {
	s.t.Helper()
	err := s.store.Import(s.t.Context(), func() (server.Record, error) {
		if len(list) == 0 {
			return server.Record{}, io.EOF
		}
		r := list[0]
		list = list[1:]
		return r, nil
	})
	if err != nil {
		s.t.Fatal(err)
	}
}

// twoHosts opens two hosts of one KMS. The first, p with the folder one, makes the keys k and other.
func twoHosts(s *site) (one string, p, q provider.Provider) {
	s.t.Helper()
	one, two := filepath.Join(s.t.TempDir(), ".keytrustee"), filepath.Join(s.t.TempDir(), ".keytrustee")
	p = s.must(one)
	if err := os.Mkdir(two, 0o700); err != nil {
		s.t.Fatal(err)
	}
	copyFolder(s.t, one, two)
	q = s.must(two)
	for _, name := range []string{"k", "other"} {
		spec := provider.Spec{Name: name, Cipher: claviger.DefaultCipher, BitLength: 128}
		if _, err := p.Create(s.t.Context(), spec); err != nil {
			s.t.Fatal(err)
		}
	}
	return one, p, q
}

// backupTest has two hosts of one KMS. The first host is restarted several times.
type backupTest struct {
	*site
	one string            // folder of the first host
	p   provider.Provider // the first host
	q   provider.Provider // the second host
}

func newBackupTest(t *testing.T) *backupTest {
	t.Helper()
	b := &backupTest{site: newSite(t)}
	b.one, b.p, b.q = twoHosts(b.site)
	return b
}

// restart closes and opens the first host, and returns its log.
func (b *backupTest) restart() (log string, err error) {
	b.t.Helper()
	if err := b.p.Close(); err != nil {
		b.t.Fatal(err)
	}
	b.log.Reset()
	if b.p, err = b.open(b.one); err != nil {
		return "", err
	}
	return b.log.String(), nil
}

// wantNoLoss demands that the first host restarts without a message about an older backup.
func (b *backupTest) wantNoLoss(when string) {
	b.t.Helper()
	if log, err := b.restart(); err != nil || strings.Contains(log, "restored") {
		b.t.Errorf("%s: %v; log %s", when, err, log)
	}
}

// deletedVersion returns a version of the deleted key k.
func (b *backupTest) deletedVersion() string {
	b.t.Helper()
	list, err := b.q.(provider.SoftDeleter).Deleted(b.t.Context(), "k")
	if err != nil || len(list) != 1 {
		b.t.Fatalf("%+v, %v", list, err)
	}
	return list[0].List[0]
}

func (b *backupTest) close() {
	b.t.Helper()
	for _, c := range []provider.Provider{b.p, b.q} {
		if err := c.Close(); err != nil {
			b.t.Error(err)
		}
	}
}

// TestChangesOfOtherHosts checks that changes of another host are not taken for a server that was restored from an
// older backup.
func TestChangesOfOtherHosts(t *testing.T) {
	b, ctx := newBackupTest(t), t.Context()
	b.wantNoLoss("created")
	_, err := b.p.Roll(ctx, "k", nil)
	must(t, err)
	b.wantNoLoss("rolled")
	_, err = b.q.Roll(ctx, "k", nil)
	must(t, err)
	b.wantNoLoss("rolled by another host")
	must(t, b.q.Delete(ctx, "k"))
	b.wantNoLoss("deleted by another host")
	must(t, b.q.(provider.SoftDeleter).Undelete(ctx, "k", b.deletedVersion()))
	b.wantNoLoss("undeleted by another host")
	must(t, b.q.Delete(ctx, "k"))
	must(t, b.q.(provider.SoftDeleter).Purge(ctx, "k", b.deletedVersion()))
	if log, err := b.restart(); err != nil || !strings.Contains(log, "another host has purged it, or") {
		t.Errorf("purged by another host: %v; log %s", err, log)
	}
	b.close()
}

// TestOlderBackup restores the Key Trustee Server from an older backup. A running KMS must notice that at the next
// change of any key and at the next check, and must refuse all changes. A restarted KMS must not start.
func TestOlderBackup(t *testing.T) {
	b, ctx := newBackupTest(t), t.Context()
	backup := b.records()
	_, err := b.p.Roll(ctx, "k", nil)
	must(t, err)
	_, err = b.q.Roll(ctx, "k", nil)
	must(t, err)
	must(t, b.q.Delete(ctx, "k"))
	must(t, b.q.(provider.SoftDeleter).Undelete(ctx, "k", b.deletedVersion()))
	current, err := b.p.Roll(ctx, "k", nil)
	must(t, err)
	_, err = b.p.Create(ctx, provider.Spec{Name: "third", Cipher: claviger.DefaultCipher, BitLength: 128})
	must(t, err)
	full := b.records()
	encrypt := func() error {
		return b.p.(provider.BlockEncrypter).EncryptBlocks(ctx, current.Name, make([]byte, 16))
	}
	must(t, encrypt())
	b.restore(backup)
	for call, f := range map[string]func() error{
		"a roll":     func() error { _, err := b.p.Roll(ctx, "k", nil); return err },
		"a deletion": func() error { return b.p.Delete(ctx, "k") },
		"the check":  func() error { return b.p.(provider.Health).Check(ctx) },
	} {
		if err := f(); !claviger.Is(err, claviger.Unavailable) ||
			!strings.Contains(err.Error(), "acknowledged version "+current.Name) {
			t.Errorf("%s: %v", call, err)
		}
	}
	// The lost version is in memory, but is not used. The error is not final, because EDEKs of the version exist.
	if err := encrypt(); !claviger.Is(err, claviger.Unavailable) ||
		!strings.Contains(err.Error(), "restored from an older backup") {
		t.Errorf("a lost version: %v", err)
	}
	file := filepath.Join(b.one, "newest.json")
	setTime(t, file, time.Now().Add(2*trustee.MaxSkew)) // the largest allowed difference of clocks
	if _, err := b.restart(); err == nil || !strings.Contains(err.Error(), "was restored from an older backup") ||
		!strings.Contains(err.Error(), "remove "+file) {
		t.Errorf("a start after the restoration: %v", err)
	}
	b.restore(full)
	b.p = b.must(b.one)
	b.wantNoLoss("after the newer backup was restored")
	b.close()
}

// setTime sets the time of the newest change in a file newest.json.
func setTime(t *testing.T, file string, at time.Time) {
	t.Helper()
	n := readNewest(t, file)
	n["at"] = at.UTC()
	text, err := json.Marshal(n)
	must(t, err)
	must(t, os.WriteFile(file, text, 0o600))
}

// readNewest reads a file newest.json.
func readNewest(t *testing.T, file string) (n map[string]any) {
	t.Helper()
	text, err := os.ReadFile(file)
	must(t, err)
	must(t, json.Unmarshal(text, &n))
	return n
}

// TestLostVersionIsNotFinal checks that a version that the Key Trustee Server has lost is Unavailable at each KMS that
// has read it, even before a check finds the loss. A deleted version and a version that never existed are not found.
func TestLostVersionIsNotFinal(t *testing.T) {
	s, ctx := newSite(t), t.Context()
	one, two := filepath.Join(t.TempDir(), ".keytrustee"), filepath.Join(t.TempDir(), ".keytrustee")
	p := s.must(one)
	if err := os.Mkdir(two, 0o700); err != nil {
		t.Fatal(err)
	}
	copyFolder(t, one, two)
	q := s.must(two)
	s.env.Source = true
	source := s.must(two) // as an HSM KMS opens it
	s.env.Source = false
	spec := provider.Spec{Name: "k", Cipher: claviger.DefaultCipher, BitLength: 128}
	version := func(v claviger.KeyVersion, err error) string {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v.Name
	}
	first := version(p.Create(ctx, spec))
	backup := s.records()
	lost := version(p.Roll(ctx, "k", nil))
	spec.Name = "whole"
	whole := version(p.Create(ctx, spec))
	spec.Name = "deleted"
	deleted := version(p.Create(ctx, spec))
	for _, r := range []provider.Provider{q, source} {
		for _, v := range []string{first, lost, whole, deleted} {
			version(r.Version(ctx, v))
		}
	}
	if err := p.Delete(ctx, "deleted"); err != nil {
		t.Fatal(err)
	}
	want := func(when, v string, kind claviger.Kind) {
		t.Helper()
		for host, r := range map[string]provider.Provider{"one": p, "two": q, "a source": source} {
			_, err := r.Version(ctx, v)
			if err == nil && kind != claviger.Internal || err != nil && claviger.KindOf(err) != kind {
				t.Errorf("%s: version %s at %s: %v, want %v", when, v, host, err, kind)
			}
		}
	}
	want("deleted", deleted, claviger.VersionNotFound)
	want("never made", "k@never", claviger.VersionNotFound)
	s.restore(backup)
	want("restored", lost, claviger.Unavailable)
	want("restored", whole, claviger.Unavailable)
	want("restored", "k@never", claviger.VersionNotFound)
	if v, err := q.Version(ctx, first); err != nil || v.Name != first {
		t.Errorf("a version that is not lost: %v", err)
	}
	for _, c := range []provider.Provider{p, q, source} {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	}
}

// TestTrusteeStoresNoChanges has a Key Trustee Server with a full disk, which answers reads and stores no change.
// CheckWrites must fail after the first failed change, until the server stores a change again. It must leave no deposit
// of a probe behind.
func TestTrusteeStoresNoChanges(t *testing.T) {
	s, ctx := newSite(t), t.Context()
	p := s.must(filepath.Join(t.TempDir(), ".keytrustee")).(*keytrustee.Provider)
	defer p.Close()
	create := func(name string) error {
		_, err := p.Create(ctx, provider.Spec{Name: name, Cipher: claviger.DefaultCipher, BitLength: 128})
		return err
	}
	if err := create("k"); err != nil || p.CheckWrites(ctx) != nil {
		t.Fatal(err, p.CheckWrites(ctx))
	}
	before := len(s.records())
	full := errors.New("database or disk is full")
	s.store.(replica.Logged).Guard(func(context.Context, replica.Position, replica.Entry) (bool, error) {
		return false, claviger.E("test", claviger.Unavailable, "", full)
	})
	if _, err := s.store.(replica.Logged).UpdatePosition(ctx,
		func(st *replica.Position) error { st.Role, st.Epoch = server.RoleActive, 1; return nil }); err != nil {
		t.Fatal(err)
	}
	if err := p.CheckWrites(ctx); err != nil {
		t.Errorf("before a change: %v", err)
	}
	if err := create("late"); !claviger.Is(err, claviger.Unavailable) {
		t.Fatal(err)
	}
	for range 2 { // the first call probes
		if err := p.CheckWrites(ctx); !claviger.Is(err, claviger.Unavailable) ||
			!strings.Contains(err.Error(), "is its disk full?") || !strings.Contains(err.Error(), s.web.URL) {
			t.Errorf("while the disk is full: %v", err)
		}
	}
	if err := p.Check(ctx); err != nil {
		t.Errorf("Check, which only reads: %v", err)
	}
	s.store.(replica.Logged).Guard(func(context.Context, replica.Position, replica.Entry) (bool, error) {
		return false, nil
	})
	keytrustee.ProbeAtOnce(p)
	if err := p.CheckWrites(ctx); err != nil {
		t.Errorf("after the disk has space again: %v", err)
	}
	left := 0
	for _, r := range s.records() {
		if r.Deposit != nil && !strings.HasPrefix(r.Deposit.Label, "key/") &&
			!strings.HasPrefix(r.Deposit.Label, "version/") {
			left++
		}
	}
	if left != 0 || before == 0 {
		t.Errorf("%d deposits are left behind", left)
	}
}

// TestOlderBackupAfterAClockAhead remembers a change whose time is years in the future. The KMS must warn, must not
// take the time as a sign of an older backup, and must still remember later changes. The next change erases the time.
func TestOlderBackupAfterAClockAhead(t *testing.T) {
	s, ctx := newSite(t), t.Context()
	one, p, q := twoHosts(s)
	file := filepath.Join(one, "newest.json")
	reopen := func() (string, error) {
		t.Helper()
		if err := p.Close(); err != nil {
			t.Fatal(err)
		}
		s.log.Reset()
		var err error
		p, err = s.open(one)
		return s.log.String(), err
	}
	future := time.Now().AddDate(4, 0, 0).UTC().Truncate(time.Second)
	setTime(t, file, future) // of the change of "other"
	// Another host with a right clock changes the key: that is not an older backup.
	if _, err := q.Roll(ctx, "other", nil); err != nil {
		t.Fatal(err)
	}
	log, err := reopen()
	if err != nil || !strings.Contains(log, "change of key \\\"other\\\" at "+future.Format(time.RFC3339)+", which "+
		"is in the future") {
		t.Fatalf("%v; log %s", err, log)
	}
	backup := s.records()
	s.log.Reset()
	v, err := p.Roll(ctx, "k", nil)
	if err != nil {
		t.Fatal(err)
	}
	if n := readNewest(t, file); n["version"] != v.Name || !strings.Contains(s.log.String(), "which is in the future") {
		t.Errorf("remembered: %v; log %s", n, s.log.String())
	}
	if log, err := reopen(); err != nil || strings.Contains(log, "in the future") {
		t.Errorf("after the change: %v; log %s", err, log)
	}
	s.restore(backup)
	if _, err := reopen(); err == nil || !strings.Contains(err.Error(), "acknowledged version "+v.Name) {
		t.Errorf("an older backup: %v", err)
	}
	if err := q.Close(); err != nil {
		t.Error(err)
	}
}

// TestOlderBackupAfterAPurge checks that the purge of a deleted key does not erase the remembered change of a newer key
// with the same name.
func TestOlderBackupAfterAPurge(t *testing.T) {
	s, ctx := newSite(t), t.Context()
	dir := filepath.Join(t.TempDir(), ".keytrustee")
	p := s.must(dir)
	spec := provider.Spec{Name: "k", Cipher: claviger.DefaultCipher, BitLength: 128}
	old, err := p.Create(ctx, spec)
	if err == nil {
		err = p.Delete(ctx, "k")
	}
	if err == nil {
		time.Sleep(2 * time.Millisecond) // so that the creation times differ
		_, err = p.Create(ctx, spec)
	}
	if err != nil {
		t.Fatal(err)
	}
	backup := s.records()
	lost, err := p.Roll(ctx, "k", nil)
	if err == nil {
		err = p.(provider.SoftDeleter).Purge(ctx, "k", old.Name)
	}
	if err == nil {
		err = p.Close()
	}
	if err != nil {
		t.Fatal(err)
	}
	s.restore(backup)
	if _, err := s.open(dir); err == nil || !strings.Contains(err.Error(), "acknowledged version "+lost.Name) {
		t.Errorf("an older backup: %v", err)
	}
}
