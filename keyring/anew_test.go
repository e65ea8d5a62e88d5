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

// dated is a store of keys that tells another time of creation.
type dated struct {
	provider.Provider
	created time.Time
}

func (d dated) Metadata(ctx context.Context, names ...string) ([]*claviger.Metadata, error) {
	ms, err := d.Provider.Metadata(ctx, names...)
	for i, m := range ms {
		if m != nil {
			told := *m
			told.Created = d.created
			ms[i] = &told
		}
	}
	return ms, err
}

// anew is a migrated key, journaled as made at then, that was deleted at its source, where another
// one of its name was made at now, with the same rules.
type anew struct {
	*twice
	newer    claviger.EDEK // under payroll@0 of the other key, as w.edek is under that of the first
	newerDEK secret.Bytes
	older    provider.Provider
}

func newAnew(t *testing.T, then, now time.Time) *anew {
	t.Helper()
	w := newTwice(t)
	w.past.list[0].Created = then
	p := memory.New(memory.Config{URI: farURI, SequentialIDs: true})
	t.Cleanup(func() { _ = p.Close() })
	if _, err := p.Create(t.Context(), provider.Spec{Name: "payroll", Cipher: claviger.DefaultCipher, BitLength: 128,
		Attributes: map[string]string{claviger.ACLNameAttribute: "payroll"}}); err != nil {
		t.Fatal(err)
	}
	es, deks := made(t, p, "payroll@0", 1)
	a := &anew{w, es[0], deks[0], w.far.Provider}
	a.becomes(dated{p, now}, p)
	return a
}

// becomes gives the source other keys.
func (a *anew) becomes(p provider.Provider, blocks provider.BlockEncrypter) {
	a.far.Provider, a.far.blocks = p, blocks
	a.forgetAll()
	a.far.calls()
}

// TestOlderVersionOfAKeyMadeAnew: a migrated key was deleted at its source, and another of its
// name was made there. EDEKs of the names of the older one's versions may be of either, and are
// not opened by a guess: the source does not get them. Where the times of creation do not tell,
// where the journal does not know that the key was taken over, and by the operator's word, the
// source opens them.
func TestOlderVersionOfAKeyMadeAnew(t *testing.T) {
	then := time.Date(2024, 3, 1, 10, 0, 0, 123e6, time.UTC)
	later := time.Date(2026, 11, 20, 9, 30, 0, 456e6, time.UTC)
	change := func(f func(o *Origin)) func(*anew) { return func(a *anew) { f(&a.past.list[0]) } }
	for _, c := range []struct {
		name      string
		then, now time.Time
		change    func(*anew)
		opens     bool
	}{
		{"made anew", then, later, nil, false},
		{"a millisecond later", then, then.Add(time.Millisecond), nil, false},
		{"the same", then, then, nil, true},
		{"finer than the journal", then, then.Add(400 * time.Microsecond), nil, true},
		{"the source gives no time", then, time.UnixMilli(0), nil, true},
		{"none was told", time.UnixMilli(0), later, nil, true},
		{"none is in the journal", time.Time{}, later, nil, true},
		{"whole seconds are told", then, then.Truncate(time.Second), nil, true},
		{"whole seconds were told", then.Truncate(time.Second), then, nil, true},
		{"another whole second", then.Truncate(time.Second), then.Truncate(time.Second).Add(time.Second), nil, false},
		{"the operator's word", then, later, func(a *anew) { a.cfg.Theirs = map[string]bool{"payroll@0": true} }, true},
		{"not in the journal", then, later, func(a *anew) { a.past.list = nil }, true},
		{"another key's record", then, later, change(func(o *Origin) { o.Key = "PAYROLL" }), true},
		{"a record by another spelling", then, later, change(func(o *Origin) { o.Key, o.Folded = "PAYROLL", true }),
			false},
		{"not taken over", then, later, change(func(o *Origin) { o.TakenOver = false }), true},
		{"in conflict", then, later, change(func(o *Origin) { o.TakenOver, o.Rolled = false, 2 }), false},
		{"finished", then, later, change(func(o *Origin) { o.Finished = later }), false},
		{"the name was freed", then, later, change(func(o *Origin) { o.Freed = true }), true},
		{"under another URI", then, later, change(func(o *Origin) { o.Source = "kms://http@other:9600/kms" }), false},
		{"the same, under another URI", then, then,
			change(func(o *Origin) { o.Source = "kms://http@other:9600/kms" }), true},
		{"finished, under another URI", then, later, change(func(o *Origin) {
			o.Source, o.Finished = "kms://http@other:9600/kms", later
		}), true},
	} {
		t.Run(c.name, func(t *testing.T) {
			a := newAnew(t, c.then, c.now)
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
			asked := slices.Contains(a.far.calls(), "alice/payroll@0/1")
			if asked != c.opens {
				t.Errorf("the source was given the EDEK: %t", asked)
			}
		})
	}
}

// TestKeyRestoredAtTheSource: a source that gets its older key back, from a backup, opens its
// EDEKs again; and a version that the newer key does not have is not found.
func TestKeyRestoredAtTheSource(t *testing.T) {
	then := time.Date(2024, 3, 1, 10, 0, 0, 123e6, time.UTC)
	a := newAnew(t, then, then.Add(time.Hour))
	e := a.edek
	e.Version = "payroll@7"
	_, err := a.decrypt(t, e)
	wantKind(t, err, claviger.VersionNotFound)
	_, err = a.decrypt(t, a.edek)
	wantKind(t, err, claviger.Unavailable)
	blocks, _ := a.older.(provider.BlockEncrypter)
	a.becomes(dated{a.older, then}, blocks)
	if dek, err := a.decrypt(t, a.edek); err != nil || !dek.Equal(a.dek) {
		t.Errorf("restored: %v", err)
	}
}

// TestKeyOfOpaqueNamesMadeAnew: where versions have names that no two keys share, the source
// opens those of its newer key.
func TestKeyOfOpaqueNamesMadeAnew(t *testing.T) {
	then := time.Date(2024, 3, 1, 10, 0, 0, 123e6, time.UTC)
	a := newAnew(t, then, then.Add(time.Hour))
	p := memory.New(memory.Config{URI: farURI, OpaqueIDs: true})
	t.Cleanup(func() { _ = p.Close() })
	v := create(t, p, "payroll")
	a.becomes(dated{p, then.Add(time.Hour)}, p)
	es, deks := made(t, p, v.Name, 1)
	if dek, err := a.decrypt(t, es[0]); err != nil || !dek.Equal(deks[0]) {
		t.Error(err)
	}
}

// TestMissingAtOneNode: a source of several nodes says at one that it has no version of a name
// that it counts. That is no final answer; after long enough it is. What it does not count is
// not found at once, and so is a version of a key that is gone, whatever it said before.
func TestMissingAtOneNode(t *testing.T) {
	w := newTwice(t)
	for range 2 {
		if _, err := w.far.Roll(t.Context(), "payroll", nil); err != nil {
			t.Fatal(err)
		}
	}
	e, want := made(t, w.far.blocks, "payroll@3", 1)
	lacks := "payroll@3"
	node := missing{w.far, &lacks}
	w.sources.list[0].crypter, w.sources.list[0].Provider = remote{node, node}, node
	ops := map[string]func(claviger.EDEK) error{
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
	}
	all := func(when, outcome string, e claviger.EDEK) {
		t.Helper()
		for what, op := range ops {
			if err := op(e); outcomeOf(err) != outcome {
				t.Errorf("%s: %s: %s (%v), want %s", when, what, outcomeOf(err), err, outcome)
			}
		}
	}
	for range 3 {
		all("at one node", "503", e[0])
	}
	_, err := w.decrypt(t, e[0])
	if err == nil || !strings.Contains(err.Error(), farURI+" counts 4 versions") ||
		strings.Contains(claviger.AnswerOf(err), farURI) {
		t.Errorf("%v; the caller is shown %q", err, claviger.AnswerOf(err))
	}
	lacks = ""
	if dek, err := w.decrypt(t, e[0]); err != nil || !dek.Equal(want[0]) {
		t.Errorf("at another node: %v", err)
	}
	more := e[0]
	more.Version = "payroll@4"
	all("not counted", "404", more)
	counts := func() { // by what it said a moment ago
		t.Helper()
		if _, err := w.sources.list[0].metadata(t.Context(), "payroll"); err != nil {
			t.Fatal(err)
		}
	}
	counts()
	if _, err := w.far.Roll(t.Context(), "payroll", nil); err != nil {
		t.Fatal(err)
	}
	lacks = more.Version
	all("rolled since", "503", more)

	// One that says so each time, for long enough, has none.
	settles := absentSettles
	defer func() { absentSettles = settles }()
	absentSettles = 0
	all("after long enough", "404", more)
	lacks = ""
	if _, err := w.decrypt(t, more); err != nil {
		t.Error(err)
	}
	lacks = more.Version
	if err := ops["decrypt"](more); outcomeOf(err) != "503" {
		t.Errorf("it had it a moment ago: %v", err)
	}
	absentSettles = settles

	numbers := func(does bool) {
		w.past.mu.Lock()
		w.past.list[0].Numbered = does
		w.past.mu.Unlock()
		w.origins.forget()
	}
	numbers(false)
	all("a source that numbers none", "404", more)
	numbers(true)
	counts()
	if err := w.far.Delete(t.Context(), "payroll"); err != nil {
		t.Fatal(err)
	}
	all("deleted there a moment ago", "404", more)
}

// missing is a source that lacks a version at the node that is asked.
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
