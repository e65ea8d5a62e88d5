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

// records are what a backup of the server holds.
func (s *site) records() (list []server.Record) {
	s.t.Helper()
	if err := s.store.Export(s.t.Context(), func(r server.Record) error {
		list = append(list,
			r)
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

// twoHosts are two hosts of one KMS, with the keys k and other; one is the folder of the
// first, which has made them.
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

// TestOlderBackup: a Key Trustee Server that has lost what it acknowledged is
// noticed, and what other hosts do is no reason for it.
func TestOlderBackup(t *testing.T) {
	s, ctx := newSite(t), t.Context()
	one, p, q := twoHosts(s)
	backup := s.records()
	roll := func(by provider.Provider) {
		t.Helper()
		if _, err := by.Roll(ctx, "k", nil); err != nil {
			t.Fatal(err)
		}
	}
	again := func() (log string, err error) {
		t.Helper()
		if err := p.Close(); err != nil {
			t.Fatal(err)
		}
		s.log.Reset()
		if p, err = s.open(one); err != nil {
			return "", err
		}
		return s.log.String(), nil
	}
	quiet := func(what string) {
		t.Helper()
		if log, err := again(); err != nil || strings.Contains(log, "restored") {
			t.Errorf("%s: %v; log %s", what, err, log)
		}
	}
	quiet("created")
	roll(p)
	quiet("rolled")
	roll(q)
	quiet("rolled by another host")
	if err := q.Delete(ctx, "k"); err != nil {
		t.Fatal(err)
	}
	quiet("deleted by another host")
	deleted := func() string {
		list, err := q.(provider.SoftDeleter).Deleted(ctx, "k")
		if err != nil || len(list) != 1 {
			t.Fatalf("%+v, %v", list, err)
		}
		return list[0].List[0]
	}
	if err := q.(provider.SoftDeleter).Undelete(ctx, "k", deleted()); err != nil {
		t.Fatal(err)
	}
	quiet("undeleted by another host")
	roll(p)

	// It is noticed while the KMS runs, by the next change of any key and by the check;
	// what is in memory of lost versions is not used, and no later change hides it.
	if _, err := p.Create(ctx, provider.Spec{Name: "third", Cipher: claviger.DefaultCipher,
		BitLength: 128}); err != nil {
		t.Fatal(err)
	}
	full := s.records()
	current, err := p.Current(ctx, "k")
	if err != nil {
		t.Fatal(err)
	}
	encrypt := func() error {
		return p.(provider.BlockEncrypter).EncryptBlocks(ctx, current.Name, make([]byte, 16))
	}
	if err := encrypt(); err != nil {
		t.Fatal(err)
	}
	s.restore(backup)
	for what, change := range map[string]func() error{
		"a roll":     func() error { _, err := p.Roll(ctx, "k", nil); return err },
		"a deletion": func() error { return p.Delete(ctx, "k") },
		"the check":  func() error { return p.(provider.Health).Check(ctx) },
	} {
		if err := change(); !claviger.Is(err, claviger.Unavailable) || !strings.Contains(err.Error(), "has "+
			"acknowledged version "+current.Name) {
			t.Errorf("%s: %v", what, err)
		}
	}
	// Its EDEKs are queued, and in files: the answer is not a final "not found".
	if err := encrypt(); !claviger.Is(err, claviger.Unavailable) || !strings.Contains(err.Error(),
		"restored from an older backup") {
		t.Errorf("a lost version: %v", err)
	}
	file := filepath.Join(one, "newest.json")
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	var n map[string]any
	if err := json.Unmarshal(text, &n); err != nil {
		t.Fatal(err)
	}
	n["at"] = time.Now().Add(2 * trustee.MaxSkew).UTC() // as far as clocks may be apart
	if text, err = json.Marshal(n); err == nil {
		err = os.WriteFile(file, text, 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
	if _, err := again(); err == nil || !strings.Contains(err.Error(), "it was restored from an older backup") ||
		!strings.Contains(err.Error(), "remove "+file) {
		t.Errorf("%v", err)
	}
	s.restore(full) // the newer backup
	p = s.must(one)
	quiet("after the newer backup")
	if err := q.Delete(ctx, "k"); err != nil {
		t.Fatal(err)
	}
	if err := q.(provider.SoftDeleter).Purge(ctx, "k", deleted()); err != nil {
		t.Fatal(err)
	}
	if log, err := again(); err != nil || !strings.Contains(log, "another host has purged it, or") {
		t.Errorf("%v; log %s", err, log)
	}
	for _, c := range []provider.Provider{p, q} {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	}
}

// TestLostVersionIsNotFinal: a version that this KMS has had, or that was acknowledged to
// it, and that the Key Trustee Server has lost is unavailable, before the loss was found
// out, and at a KMS that made no change. One that was deleted, and one that never was, are
// not found.
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
	far := s.must(two) // as an HSM KMS uses it
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
	for _, r := range []provider.Provider{q, far} {
		for _, v := range []string{first, lost, whole, deleted} {
			version(r.Version(ctx, v))
		}
	}
	if err := p.Delete(ctx, "deleted"); err != nil {
		t.Fatal(err)
	}
	want := func(when, v string, kind claviger.Kind) {
		t.Helper()
		for host, r := range map[string]provider.Provider{"one": p, "two": q, "a source": far} {
			_, err := r.Version(ctx, v)
			if err == nil && kind != claviger.Internal || err != nil && claviger.KindOf(err) != kind {
				t.Errorf("%s: version %s at %s: %v, want %v", when, v, host, err, kind)
			}
		}
	}
	want("deleted", deleted, claviger.VersionNotFound)
	want("never there", "k@never", claviger.VersionNotFound)
	s.restore(backup)
	want("restored", lost, claviger.Unavailable)
	want("restored", whole, claviger.Unavailable)
	want("restored", "k@never", claviger.VersionNotFound)
	if v, err := q.Version(ctx, first); err != nil || v.Name != first {
		t.Errorf("what is there: %v", err)
	}
	for _, c := range []provider.Provider{p, q, far} {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	}
}

// TestTrusteeTakesNoChanges: a Key Trustee Server that reads and takes no change, as one
// whose disk is full, is told after the first change that it did not take, until it takes
// one again; of the deposit that tries it nothing is left.
func TestTrusteeTakesNoChanges(t *testing.T) {
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
	for range 2 { // the first of them tries it
		if err := p.CheckWrites(ctx); !claviger.Is(err, claviger.Unavailable) ||
			!strings.Contains(err.Error(), "is its disk full?") || !strings.Contains(err.Error(), s.web.URL) {
			t.Errorf("while none is taken: %v", err)
		}
	}
	if err := p.Check(ctx); err != nil {
		t.Errorf("what it reads: %v", err)
	}
	s.store.(replica.Logged).Guard(func(context.Context, replica.Position, replica.Entry) (bool,
		error) {
		return false, nil
	})
	keytrustee.TryAgain(p)
	if err := p.CheckWrites(ctx); err != nil {
		t.Errorf("once there is room: %v", err)
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

// TestOlderBackupAfterAClockAhead: a change that was remembered by a clock years ahead does
// not keep later changes from being remembered, in the file and in the process; its time is
// told, says nothing about the trustee, and is forgotten by the next change.
func TestOlderBackupAfterAClockAhead(t *testing.T) {
	s, ctx := newSite(t), t.Context()
	one, p, q := twoHosts(s)
	file := filepath.Join(one, "newest.json")
	memory := func() (n map[string]any) {
		t.Helper()
		text, err := os.ReadFile(file)
		if err == nil {
			err = json.Unmarshal(text, &n)
		}
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
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
	n := memory() // of "other", and before it of k
	future := time.Now().AddDate(4, 0, 0).UTC().Truncate(time.Second)
	n["at"] = future
	text, err := json.Marshal(n)
	if err == nil {
		err = os.WriteFile(file, text, 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
	// Another host, of a right clock, has changed the key since: that is no older backup.
	if _, err := q.Roll(ctx, "other", nil); err != nil {
		t.Fatal(err)
	}
	log, err := reopen()
	if err != nil || !strings.Contains(log, "change of key \\\"other\\\" at "+future.Format(time.RFC3339)+", which "+
		"is still to come") {
		t.Fatalf("%v; log %s", err, log)
	}
	backup := s.records()
	s.log.Reset()
	v, err := p.Roll(ctx, "k", nil)
	if err != nil {
		t.Fatal(err)
	}
	if n = memory(); n["version"] != v.Name || !strings.Contains(s.log.String(), "which is still to come") {
		t.Errorf("remembered: %v; log %s", n, s.log.String())
	}
	if log, err := reopen(); err != nil || strings.Contains(log, "still to come") {
		t.Errorf("after the change: %v; log %s", err, log)
	}
	s.restore(backup)
	if _, err := reopen(); err == nil || !strings.Contains(err.Error(), "has acknowledged version "+v.Name) {
		t.Errorf("an older backup: %v", err)
	}
	if err := q.Close(); err != nil {
		t.Error(err)
	}
}

// TestOlderBackupAfterAPurge: a purge of a deleted key does not make the KMS forget what
// it knows of the key that has the name now.
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
		time.Sleep(2 * time.Millisecond) // another time of creation
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
	if _, err := s.open(dir); err == nil || !strings.Contains(err.Error(), "has acknowledged version "+lost.Name) {
		t.Errorf("an older backup: %v", err)
	}
}
