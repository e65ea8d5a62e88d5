package keyring

import (
	"context"
	"slices"
	"strings"
	"testing"
	"time"

	"claviger"
	"claviger/provider"
	"claviger/provider/memory"
	"claviger/secret"
)

// dated is a provider whose keys have another creation time.
type dated struct {
	provider.Provider
	created time.Time
}

func (d dated) Metadata(ctx context.Context, names ...string) ([]*claviger.Metadata, error) {
	ms, err := d.Provider.Metadata(ctx, names...)
	for i, m := range ms {
		if m != nil {
			answer := *m
			answer.Created = d.created
			ms[i] = &answer
		}
	}
	return ms, err
}

// remadeRing is a testRing with a migrated key, which the journal has with the creation time then. The key was deleted
// at its source, and another key of its name and with the same rules was made there at the time now.
type remadeRing struct {
	*conflictRing
	newer    claviger.EDEK // under payroll@0 of the other key; w.edek is under payroll@0 of the migrated key
	newerDEK secret.Bytes
	older    provider.Provider // the source with the migrated key
}

func newRemadeRing(t *testing.T, then, now time.Time) *remadeRing {
	t.Helper()
	w := newConflictRing(t)
	w.past.list[0].Created = then
	p := memory.New(memory.Config{URI: farURI, SequentialIDs: true})
	t.Cleanup(func() { _ = p.Close() })
	if _, err := p.Create(t.Context(), provider.Spec{Name: "payroll", Cipher: claviger.DefaultCipher, BitLength: 128,
		Attributes: map[string]string{claviger.ACLNameAttribute: "payroll"}}); err != nil {
		t.Fatal(err)
	}
	es, deks := newEDEKs(t, p, "payroll@0", 1)
	a := &remadeRing{w, es[0], deks[0], w.far.Provider}
	a.replaceSource(dated{p, now}, p)
	return a
}

// replaceSource gives the source the keys of another provider.
func (a *remadeRing) replaceSource(p provider.Provider, blocks provider.BlockEncrypter) {
	a.far.Provider, a.far.blocks = p, blocks
	a.forgetAll()
	a.far.calls()
}

// TestRemadeKeyAtTheSource: a migrated key was deleted at its source, and another key of its name was made there. An
// EDEK of a version name that both keys have may belong to either key. So the server does not send it to the source.
// But the source opens it if the creation times do not distinguish the keys, if the journal does not say that the key
// was taken over, or if an operator has decided so.
func TestRemadeKeyAtTheSource(t *testing.T) {
	then := time.Date(2024, 3, 1, 10, 0, 0, 123e6, time.UTC)
	later := time.Date(2026, 11, 20, 9, 30, 0, 456e6, time.UTC)
	change := func(f func(o *Origin)) func(*remadeRing) { return func(a *remadeRing) { f(&a.past.list[0]) } }
	for _, c := range []struct {
		name      string
		then, now time.Time
		change    func(*remadeRing)
		opens     bool // the source opens EDEKs of payroll@0
	}{
		{"made again", then, later, nil, false},
		{"a millisecond later", then, then.Add(time.Millisecond), nil, false},
		{"the same time", then, then, nil, true},
		{"the source's time is more precise than the journal's", then, then.Add(400 * time.Microsecond), nil, true},
		{"the source gives no time", then, time.UnixMilli(0), nil, true},
		{"the source gave no time at the migration", time.UnixMilli(0), later, nil, true},
		{"the journal has no time", time.Time{}, later, nil, true},
		{"the source gives whole seconds", then, then.Truncate(time.Second), nil, true},
		{"the source gave whole seconds at the migration", then.Truncate(time.Second), then, nil, true},
		{"another whole second", then.Truncate(time.Second), then.Truncate(time.Second).Add(time.Second), nil, false},
		{"decided by the operator", then, later,
			func(a *remadeRing) { a.cfg.SourceVersions = map[string]bool{"payroll@0": true} }, true},
		{"not in the journal", then, later, func(a *remadeRing) { a.past.list = nil }, true},
		{"another key's record", then, later, change(func(o *Origin) { o.Key = "PAYROLL" }), true},
		{"a record under another spelling", then, later, change(func(o *Origin) { o.Key, o.Folded = "PAYROLL", true }),
			false},
		{"not taken over", then, later, change(func(o *Origin) { o.TakenOver = false }), true},
		{"in conflict", then, later, change(func(o *Origin) { o.TakenOver, o.Rolled = false, 2 }), false},
		{"finished", then, later, change(func(o *Origin) { o.Finished = later }), false},
		{"the name was freed", then, later, change(func(o *Origin) { o.Freed = true }), true},
		{"under another URI", then, later, change(func(o *Origin) { o.Source = "kms://http@other:9600/kms" }), false},
		{"the same time, under another URI", then, then,
			change(func(o *Origin) { o.Source = "kms://http@other:9600/kms" }), true},
		{"finished, under another URI", then, later, change(func(o *Origin) {
			o.Source, o.Finished = "kms://http@other:9600/kms", later
		}), true},
	} {
		t.Run(c.name, func(t *testing.T) {
			a := newRemadeRing(t, c.then, c.now)
			if c.change != nil {
				c.change(a)
				a.origins.forget()
			}
			for what, e := range map[string]claviger.EDEK{"the older key's": a.edek, "the newer one's": a.newer} {
				dek, err := a.decrypt(t, e)
				if c.opens {
					if err != nil || what != "the older key's" && !dek.Equal(a.newerDEK) {
						t.Errorf("%s: %v", what, err)
					}
					continue
				}
				wantKind(t, err, claviger.Unavailable)
				for _, says := range []string{"made " + preciseStamp(c.then), "made " + preciseStamp(c.now), farURI,
					"claviger.migration.theirs to payroll@0"} {
					if !strings.Contains(err.Error(), says) {
						t.Errorf("%q does not say %q", err, says)
					}
				}
				if answer := claviger.AnswerOf(err); !strings.Contains(answer, "payroll@0") ||
					strings.Contains(answer, farURI) {
					t.Errorf("the caller is shown %q", answer)
				}
			}
			if sent := slices.Contains(a.far.calls(), "alice/payroll@0/1"); sent != c.opens {
				t.Errorf("the EDEK was sent to the source: %t", sent)
			}
		})
	}
}

// TestKeyRestoredAtTheSource: after the source's older key is restored from a backup, the source opens EDEKs of that
// key again. Before that, a version that the newer key does not have is not found.
func TestKeyRestoredAtTheSource(t *testing.T) {
	then := time.Date(2024, 3, 1, 10, 0, 0, 123e6, time.UTC)
	a := newRemadeRing(t, then, then.Add(time.Hour))
	e := a.edek
	e.Version = "payroll@7"
	_, err := a.decrypt(t, e)
	wantKind(t, err, claviger.VersionNotFound)
	_, err = a.decrypt(t, a.edek)
	wantKind(t, err, claviger.Unavailable)
	blocks, _ := a.older.(provider.BlockEncrypter)
	a.replaceSource(dated{a.older, then}, blocks)
	if dek, err := a.decrypt(t, a.edek); err != nil || !dek.Equal(a.dek) {
		t.Errorf("restored: %v", err)
	}
}

// TestRemadeKeyWithOpaqueNames: if no two keys can share the name of a version, the source opens EDEKs of its newer
// key.
func TestRemadeKeyWithOpaqueNames(t *testing.T) {
	then := time.Date(2024, 3, 1, 10, 0, 0, 123e6, time.UTC)
	a := newRemadeRing(t, then, then.Add(time.Hour))
	p := memory.New(memory.Config{URI: farURI, OpaqueIDs: true})
	t.Cleanup(func() { _ = p.Close() })
	v := create(t, p, "payroll")
	a.replaceSource(dated{p, then.Add(time.Hour)}, p)
	es, deks := newEDEKs(t, p, v.Name, 1)
	if dek, err := a.decrypt(t, es[0]); err != nil || !dek.Equal(deks[0]) {
		t.Error(err)
	}
}

// lackingNodeRing is a testRing whose source has several nodes. The node that answers lacks the version *lacks.
type lackingNodeRing struct {
	*conflictRing
	lacks *string
	ops   map[string]func(claviger.EDEK) error
}

func newLackingNodeRing(t *testing.T) *lackingNodeRing {
	t.Helper()
	w := newConflictRing(t)
	for range 2 {
		if _, err := w.far.Roll(t.Context(), "payroll", nil); err != nil {
			t.Fatal(err)
		}
	}
	lacks := "payroll@3"
	node := missing{w.far, &lacks}
	w.sources.list[0].crypter, w.sources.list[0].Provider = remote{node, node}, node
	return &lackingNodeRing{w, &lacks, map[string]func(claviger.EDEK) error{
		"decrypt": func(e claviger.EDEK) error { _, err := w.decrypt(t, e); return err },
		"re-encrypt": func(e claviger.EDEK) error {
			_, err := w.Reencrypt(t.Context(), caller("nn"), "payroll", true, e)
			return err
		},
		"version": func(e claviger.EDEK) error {
			v, err := w.Version(t.Context(), caller("alice"), e.Version)
			if v == nil && err == nil {
				return claviger.E("", claviger.VersionNotFound, "", nil)
			}
			return err
		},
	}}
}

// wantAll checks that all operations with the EDEK have the outcome.
func (w *lackingNodeRing) wantAll(t *testing.T, when, outcome string, e claviger.EDEK) {
	t.Helper()
	for what, op := range w.ops {
		if err := op(e); outcomeOf(err) != outcome {
			t.Errorf("%s: %s: %s (%v), want %s", when, what, outcomeOf(err), err, outcome)
		}
	}
}

// readCount reads from the source how many versions the key has.
func (w *lackingNodeRing) readCount(t *testing.T) {
	t.Helper()
	if _, err := w.sources.list[0].metadata(t.Context(), "payroll"); err != nil {
		t.Fatal(err)
	}
}

// TestMissingAtOneNode: one node of a source says that it lacks a version which the source counts. Another node may
// have the version, so the answer is 503. A version that the source does not count is not found at once.
func TestMissingAtOneNode(t *testing.T) {
	w := newLackingNodeRing(t)
	e, want := newEDEKs(t, w.far.blocks, "payroll@3", 1)
	for range 3 {
		w.wantAll(t, "at one node", "503", e[0])
	}
	_, err := w.decrypt(t, e[0])
	if err == nil || !strings.Contains(err.Error(), farURI+" counts 4 versions") ||
		strings.Contains(claviger.AnswerOf(err), farURI) {
		t.Errorf("%v; the caller is shown %q", err, claviger.AnswerOf(err))
	}
	*w.lacks = ""
	if dek, err := w.decrypt(t, e[0]); err != nil || !dek.Equal(want[0]) {
		t.Errorf("at another node: %v", err)
	}
	more := e[0]
	more.Version = "payroll@4"
	w.wantAll(t, "not counted", "404", more)
}

// TestMissingForLong: if a source has said for long enough that it lacks a version, the version is not found. A version
// of a deleted key is not found at once.
func TestMissingForLong(t *testing.T) {
	w := newLackingNodeRing(t)
	e, _ := newEDEKs(t, w.far.blocks, "payroll@3", 1)
	more := e[0]
	more.Version = "payroll@4"
	w.wantAll(t, "not counted", "404", more)
	w.readCount(t)
	if _, err := w.far.Roll(t.Context(), "payroll", nil); err != nil {
		t.Fatal(err)
	}
	*w.lacks = more.Version
	w.wantAll(t, "rolled since", "503", more)

	settles := absentSettles
	defer func() { absentSettles = settles }()
	absentSettles = 0
	w.wantAll(t, "after long enough", "404", more)
	*w.lacks = ""
	if _, err := w.decrypt(t, more); err != nil {
		t.Error(err)
	}
	*w.lacks = more.Version
	if err := w.ops["decrypt"](more); outcomeOf(err) != "503" {
		t.Errorf("the source had the version a moment ago: %v", err)
	}
	absentSettles = settles

	numbered := func(is bool) {
		w.past.mu.Lock()
		w.past.list[0].Numbered = is
		w.past.mu.Unlock()
		w.origins.forget()
	}
	numbered(false)
	w.wantAll(t, "a source that numbers no versions", "404", more)
	numbered(true)
	w.readCount(t)
	if err := w.far.Delete(t.Context(), "payroll"); err != nil {
		t.Fatal(err)
	}
	w.wantAll(t, "deleted there a moment ago", "404", more)
}

// missing is the node of a source that lacks a version.
type missing struct {
	*farKMS
	lacks *string
}

func (m missing) Unwrap(ctx context.Context, key, as string, edeks []claviger.EDEK) ([]secret.Bytes, error) {
	if edeks[0].Version == *m.lacks {
		return nil, claviger.E("missing.Unwrap", claviger.VersionNotFound, edeks[0].Version, nil)
	}
	return m.farKMS.Unwrap(ctx, key, as, edeks)
}

func (m missing) Version(ctx context.Context, version string) (claviger.KeyVersion, error) {
	if version == *m.lacks {
		return claviger.KeyVersion{}, claviger.E("missing.Version", claviger.VersionNotFound, version, nil)
	}
	return m.farKMS.Version(ctx, version)
}
