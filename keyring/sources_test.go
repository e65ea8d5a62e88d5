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

const farURI = "kms://http@old.example.com:9600/kms"

// withSource builds a Ring with the key "k" and with a source that has the keys. The primary makes random ids, as an
// HSM does.
func withSource(t *testing.T, change func(*Config), keys ...string) (*testRing, *farKMS) {
	t.Helper()
	far := newFarKMS(t, farURI, keys...)
	primary := &counting{Provider: memory.New(memory.Config{Sealed: true, OpaqueIDs: true})}
	t.Cleanup(func() { _ = primary.Provider.Close() })
	past := &journal{}
	if slices.Contains(keys, "k") {
		past.takeOver(t, far, primary, "k")
	} else {
		create(t, primary, "k")
	}
	l := newTestRing(t, func(c *Config) {
		c.Primary = primary
		c.Sources = []Source{{Provider: far, Reencryption: true}}
		c.Reencryption = true
		c.History = past
		if change != nil {
			change(c)
		}
	})
	l.primary, l.past = primary, past
	far.calls() // drops the calls of the set-up
	return l, far
}

func failing(kind claviger.Kind, text string) func(context.Context) error {
	return func(context.Context) error { return claviger.Errorf("far.call", kind, "", "%s", text) }
}

// TestDecryptAtSource: the source decrypts EDEKs of its versions, in the caller's name.
func TestDecryptAtSource(t *testing.T) {
	l, far := withSource(t, nil, "k")
	es, deks := newEDEKs(t, far.blocks, "k@0", 2)
	for i, e := range es {
		dek, err := l.Decrypt(t.Context(), caller("bob"), "k", true, e)
		if err != nil || !dek.Equal(deks[i]) {
			t.Fatalf("EDEK %d: %v", i, err)
		}
	}
	if got, want := far.calls(), []string{"metadata/k", "bob/k@0/1", "bob/k@0/1"}; !slices.Equal(got, want) {
		t.Errorf("the source got the calls %q, want %q", got, want)
	}
	if got := l.audit.take(); len(got) != 2 || got[1] != "OK[op=DECRYPT_EEK, key=k, user=bob] " {
		t.Errorf("audit %q", got)
	}
}

// TestSourceIsCalledLast: a request that our own rules refuse, or that is not valid, does not reach the source.
func TestSourceIsCalledLast(t *testing.T) {
	l, far := withSource(t, func(c *Config) {
		c.Policy = rules(t, "hadoop.kms.blacklist.DECRYPT_EEK", "hdfs", "hadoop.kms.acl.GET", "auditor,bob",
			"key.acl.k.DECRYPT_EEK", "bob", "key.acl.k.GENERATE_EEK", "hdfs", "key.acl.k.READ", "auditor")
	}, "k")
	es, _ := newEDEKs(t, far.blocks, "k@0", 1)
	e := es[0]
	decrypt := func(user, key string, hasKey bool) error {
		_, err := l.Decrypt(t.Context(), caller(user), key, hasKey, e)
		return err
	}
	wantKind(t, decrypt("hdfs", "k", true), claviger.Denied)
	wantKind(t, decrypt("carol", "k", true), claviger.KeyDenied)
	wantKind(t, decrypt("bob", "other", true), claviger.WrongKey)
	wantKind(t, decrypt("bob", "", false), claviger.WrongKey)
	_, err := l.Reencrypt(t.Context(), caller("bob"), "k", true, e)
	wantKind(t, err, claviger.KeyDenied)
	_, err = l.Version(t.Context(), caller("bob"), "k@0")
	wantKind(t, err, claviger.KeyDenied)
	_, err = l.Version(t.Context(), caller("carol"), "k@0")
	wantKind(t, err, claviger.Denied)
	for _, version := range []string{"k", "@0", "k@", ""} { // no source can have these
		bad := e
		bad.Version = version
		_, err := l.Decrypt(t.Context(), caller("bob"), "k", true, bad)
		wantKind(t, err, claviger.VersionNotFound)
	}
	if calls := far.calls(); len(calls) != 0 {
		t.Errorf("the source got the calls %q", calls)
	}
	if err := decrypt("bob", "k", true); err != nil {
		t.Error(err)
	}
}

// TestKeyOnlyAtSource: the rules for a key that is not here are found by its ACL name at the source.
func TestKeyOnlyAtSource(t *testing.T) {
	l, far := withSource(t, func(c *Config) {
		c.Policy = rules(t, "key.acl.finance.DECRYPT_EEK", "bob", "key.acl.theirs.DECRYPT_EEK", "carol",
			"key.acl.theirs.READ", "carol")
	})
	if _, err := far.Create(t.Context(), provider.Spec{
		Name: "theirs", Cipher: claviger.DefaultCipher, BitLength: 128,
		Attributes: map[string]string{claviger.ACLNameAttribute: "finance"},
	}); err != nil {
		t.Fatal(err)
	}
	es, deks := newEDEKs(t, far.blocks, "theirs@0", 1)
	if dek, err := l.Decrypt(t.Context(), caller("bob"), "theirs", true, es[0]); err != nil || !dek.Equal(deks[0]) {
		t.Fatal(err)
	}
	_, err := l.Decrypt(t.Context(), caller("carol"), "theirs", true, es[0])
	wantKind(t, err, claviger.KeyDenied)
	_, err = l.Version(t.Context(), caller("carol"), "theirs@0")
	wantKind(t, err, claviger.KeyDenied)
	// There is no version here to re-encrypt the EDEK with.
	_, err = l.Reencrypt(t.Context(), caller("bob"), "theirs", true, es[0])
	wantKind(t, err, claviger.KeyNotFound)
	if use, err := l.SourceUse(t.Context()); err != nil || len(use) != 1 || use[0].Op != useDecrypt {
		t.Errorf("use %v, %v", use, err)
	}
	// If the source does not show the ACL name, nobody may use the key.
	l, far = withSource(t, nil, "theirs")
	far.setFail(failing(claviger.Denied, "User:mig not allowed to do 'GET_METADATA' on 'theirs' "+
		"(hadoop.kms.acl.GET_METADATA must admit mig)"))
	_, err = l.Decrypt(t.Context(), caller("bob"), "theirs", true, es[0])
	wantKind(t, err, claviger.SourceRefused)
	if s := text(t, err); !strings.Contains(s, "hadoop.kms.acl.GET_METADATA") || !strings.Contains(s, farURI) {
		t.Errorf("%q", s)
	}
}

// TestReencryptFromSource: EDEKs of a source's versions and of older versions here are re-encrypted in one batch, in
// their order.
func TestReencryptFromSource(t *testing.T) {
	l, far := withSource(t, nil, "k")
	cur, err := l.Current(t.Context(), caller("u"), "k")
	if err != nil {
		t.Fatal(err)
	}
	foreign, deks := newEDEKs(t, far.blocks, "k@0", 600)
	if _, err := far.Roll(t.Context(), "k", nil); err != nil {
		t.Fatal(err)
	}
	late, lateDEKs := newEDEKs(t, far.blocks, "k@1", 3)
	old, oldDEKs := newEDEKs(t, l.primary.Provider, cur.Name, 5)
	fresh, err := l.Roll(t.Context(), caller("u"), "k", nil)
	if err != nil {
		t.Fatal(err)
	}
	done, doneDEKs := newEDEKs(t, l.primary.Provider, fresh.Name, 2)
	es := slices.Concat(foreign, old, late, done)
	all := slices.Concat(deks, oldDEKs, lateDEKs, doneDEKs)
	shuffle(t, len(es), func(i, j int) { es[i], es[j], all[i], all[j] = es[j], es[i], all[j], all[i] })

	calls := l.primary.encrypts.Load()
	far.calls()
	out, err := l.ReencryptBatch(t.Context(), caller("hdfs"), "k", es)
	if err != nil {
		t.Fatal(err)
	}
	if got := l.primary.encrypts.Load() - calls; got != 2 {
		t.Errorf("%d EncryptBlocks calls, want 1 for our old version and 1 for the new one", got)
	}
	got := far.calls()
	slices.Sort(got)
	if want := []string{"/k@0/100", "/k@0/250", "/k@0/250", "/k@1/3", "metadata/k"}; !slices.Equal(got, want) {
		t.Errorf("the source got the calls %q, want %q: in our own name, in chunks", got, want)
	}
	checkReencrypted(t, l.primary.Provider, fresh.Name, es, out, all)
	if s, err := l.Reencrypt(t.Context(), caller("hdfs"), "k", true, foreign[0]); err != nil {
		t.Error(err)
	} else {
		checkReencrypted(t, l.primary.Provider, fresh.Name, foreign[:1], []claviger.EDEK{s}, deks[:1])
	}
}

// TestReencryptFromSourceRefused checks when EDEKs of a source are not re-encrypted.
func TestReencryptFromSourceRefused(t *testing.T) {
	t.Run("not configured", func(t *testing.T) {
		l, far := withSource(t, func(c *Config) { c.Reencryption = false }, "k")
		es, _ := newEDEKs(t, far.blocks, "k@0", 1)
		_, err := l.ReencryptBatch(t.Context(), caller("hdfs"), "k", es)
		wantKind(t, err, claviger.Invalid)
		if s := text(t, err); !strings.Contains(s, "hadoop.kms.reencryption.crypto.enable") || !strings.Contains(s,
			"'k'") {
			t.Errorf("%q", s)
		}
		if calls := far.calls(); len(calls) != 0 {
			t.Errorf("the source got the calls %q", calls)
		}
	})
	t.Run("one version missing", func(t *testing.T) {
		l, far := withSource(t, nil, "k")
		es, _ := newEDEKs(t, far.blocks, "k@0", 1)
		missing := es[0]
		missing.Version = "k@7"
		out, err := l.ReencryptBatch(t.Context(), caller("hdfs"), "k", []claviger.EDEK{es[0], missing})
		wantKind(t, err, claviger.VersionNotFound)
		if out != nil {
			t.Error("EDEKs were returned")
		}
	})
	t.Run("primary is a KMS", func(t *testing.T) {
		primary, far := newFarKMS(t, "kms://http@new:9600/kms", "k"), newFarKMS(t, farURI, "k")
		if _, err := far.Roll(t.Context(), "k", nil); err != nil {
			t.Fatal(err)
		}
		cfg := config(t, primary)
		cfg.Sources, cfg.Reencryption = []Source{{Provider: far}}, true
		r, err := New(cfg)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = r.Close() })
		es, _ := newEDEKs(t, far.blocks, "k@1", 1)
		_, err = r.ReencryptBatch(t.Context(), caller("hdfs"), "k", es)
		wantKind(t, err, claviger.Unsupported)
	})
	t.Run("DEKs are wiped", func(t *testing.T) {
		l, far := withSource(t, nil, "k")
		es, _ := newEDEKs(t, far.blocks, "k@0", 2)
		keep := &keepingService{farKMS: far}
		l.sources.list[0].crypter = remote{keep, keep}
		if _, err := l.ReencryptBatch(t.Context(), caller("hdfs"), "k", es); err != nil {
			t.Fatal(err)
		}
		for _, dek := range keep.given {
			if len(dek) != 16 || !dek.Equal(make([]byte, 16)) {
				t.Error("a DEK was not wiped")
			}
		}
	})
	t.Run("DEKs of another length", func(t *testing.T) {
		l, far := withSource(t, nil, "k")
		es, _ := newEDEKs(t, far.blocks, "k@0", 2)
		short := &shortService{farKMS: far}
		l.sources.list[0].crypter = remote{short, short}
		_, err := l.ReencryptBatch(t.Context(), caller("hdfs"), "k", es)
		wantKind(t, err, claviger.SourceUnreachable)
		if strings.Contains(err.Error(), "DEK") {
			t.Errorf("an internal error's text is shown: %q", err)
		}
		if !short.given.Equal(make([]byte, len(short.given))) {
			t.Error("the DEK was not wiped")
		}
	})
}

// keepingService keeps the DEKs that it returned, so that a test can check that they were wiped.
type keepingService struct {
	*farKMS
	given []secret.Bytes
}

func (s *keepingService) Unwrap(ctx context.Context, key, as string,
	es []claviger.EDEK) (deks []secret.Bytes, err error) {
	s.given, err = s.farKMS.Unwrap(ctx, key, as, es)
	return s.given, err
}

// shortService returns a last DEK that is too short.
type shortService struct {
	*farKMS
	given secret.Bytes
}

func (s *shortService) Unwrap(ctx context.Context, key, as string, es []claviger.EDEK) ([]secret.Bytes, error) {
	deks, err := s.farKMS.Unwrap(ctx, key, as, es)
	if err == nil {
		s.given = deks[0]
		deks[1] = deks[1][:7]
	}
	return deks, err
}

// TestSourceErrors checks the kind of each error, and that the text names the source, the cause and the cure.
func TestSourceErrors(t *testing.T) {
	cases := []struct {
		name      string
		fail      func(context.Context) error
		reencrypt bool
		kind      claviger.Kind
		texts     []string
	}{
		{"missing", failing(claviger.VersionNotFound, "no such version"), false, claviger.VersionNotFound, nil},
		{"key missing", failing(claviger.KeyNotFound, "no such key"), false, claviger.VersionNotFound, nil},
		{"down", failing(claviger.Unavailable, "connection refused"), false, claviger.SourceUnreachable,
			[]string{"this KMS does not have key version 'k@0'", farURI, "connection refused",
				"hadoop.kms.key.provider.reencryption.source.uri"}},
		{"silent", func(ctx context.Context) error { <-ctx.Done(); return ctx.Err() }, false,
			claviger.SourceUnreachable,
			[]string{"no answer within 50ms", farURI}},
		{"closed", failing(claviger.Closed, "closed"), false, claviger.SourceUnreachable, []string{farURI}},
		{"broken", failing(claviger.Internal, "secret words"), false, claviger.SourceUnreachable, []string{farURI,
			"which may have it, failed"}},
		{"op denied", failing(claviger.Denied, "User:bob not allowed to do 'DECRYPT_EEK' on 'k' "+
			"(hadoop.kms.acl.DECRYPT_EEK must admit bob)"), false, claviger.SourceRefused,
			[]string{farURI, "refused user 'bob' the request for key version 'k@0': User:bob not allowed",
				"(hadoop.kms.acl.DECRYPT_EEK must admit bob)"}},
		{"key denied", failing(claviger.KeyDenied, "User [bob] is not authorized (whitelist.key.acl.DECRYPT_EEK)"),
			false, claviger.SourceRefused,
			[]string{"(whitelist.key.acl.DECRYPT_EEK)"}},
		{"own name", failing(claviger.Denied, "User:mig not allowed to do 'DECRYPT_EEK' on 'k'"), true,
			claviger.SourceRefused,
			[]string{"this server's own user the request for key version 'k@0': User:mig"}},
		{"bad EDEK", failing(claviger.BadIV, "Wrong IV length"), false, claviger.BadIV, nil},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			l, far := withSource(t, func(c *Config) { c.SourceTimeout = 50 * time.Millisecond }, "k")
			es, _ := newEDEKs(t, far.blocks, "k@0", 1)
			far.setFail(c.fail)
			var err error
			if c.reencrypt {
				_, err = l.Reencrypt(t.Context(), caller("hdfs"), "k", true, es[0])
			} else {
				_, err = l.Decrypt(t.Context(), caller("bob"), "k", true, es[0])
			}
			wantKind(t, err, c.kind)
			for _, s := range c.texts {
				if got := text(t, err); !strings.Contains(got, s) {
					t.Errorf("%q does not say %q", got, s)
				}
			}
			if strings.Contains(text(t, err), "secret words") {
				t.Errorf("an internal error's text is shown: %q", text(t, err))
			}
			if c.kind == claviger.SourceRefused && strings.Contains(text(t, err), "far.call") {
				t.Errorf("a function's name is shown: %q", text(t, err))
			}
			if use, err := l.SourceUse(t.Context()); err != nil || len(use) != 0 {
				t.Errorf("use %v, %v: it was not served", use, err)
			}
		})
	}
}

// TestTwoSources checks the order in which two sources are tried, and that a refusal or no answer does not count as
// "not found".
func TestTwoSources(t *testing.T) {
	t.Run("the first that has it", firstThatHasIt)
	t.Run("down first", downFirst)
	t.Run("down second", downSecond)
	t.Run("refused first", refusedFirst)
	t.Run("deleted at the source that had it", deletedWhereItWas)
	t.Run("stored over restarts", storedOverRestarts)
}

// twoSources is a testRing with two sources, a before b. Both have a key "both".
type twoSources struct {
	*testRing
	a, b *farKMS
}

func newTwoSources(t *testing.T, change func(*Config)) twoSources {
	a := newFarKMS(t, "kms://http@a:9600/kms", "both", "onlya")
	b := newFarKMS(t, "kms://http@b:9600/kms", "both", "onlyb", "k")
	primary := &counting{Provider: memory.New(memory.Config{Sealed: true, OpaqueIDs: true})}
	for _, key := range []string{"both", "onlya", "onlyb", "k"} {
		create(t, primary, key)
	}
	l := newTestRing(t, func(c *Config) {
		c.Primary = primary
		c.Sources = []Source{{Provider: a}, {Provider: b, Reencryption: true}}
		c.SourcePause = time.Hour
		if change != nil {
			change(c)
		}
	})
	return twoSources{l, a, b}
}

func (l twoSources) open(t *testing.T, key string, e claviger.EDEK) (secret.Bytes, error) {
	t.Helper()
	return l.Decrypt(t.Context(), caller("bob"), key, true, e)
}

// edekOf makes an EDEK of a source's version.
func edekOf(t *testing.T, k *farKMS, version string) (claviger.EDEK, secret.Bytes) {
	t.Helper()
	es, deks := newEDEKs(t, k.blocks, version, 1)
	return es[0], deks[0]
}

var down = failing(claviger.Unavailable, "connection refused")

func firstThatHasIt(t *testing.T) {
	l := newTwoSources(t, nil)
	e, dek := edekOf(t, l.a, "both@0")
	if got, err := l.open(t, "both", e); err != nil || !got.Equal(dek) {
		t.Error(err)
	}
	if calls := l.b.calls(); len(calls) != 0 {
		t.Errorf("calls of the second source: %q", calls)
	}
	e, dek = edekOf(t, l.b, "onlyb@0")
	for range 3 {
		if got, err := l.open(t, "onlyb", e); err != nil || !got.Equal(dek) {
			t.Error(err)
		}
	}
	if calls := l.a.calls(); len(calls) != 3 { // both's metadata, both@0, and onlyb's metadata once
		t.Errorf("calls of the first source: %q; the source of a version is cached", calls)
	}
}

func downFirst(t *testing.T) {
	l := newTwoSources(t, nil)
	known, dek := edekOf(t, l.b, "onlyb@0")
	if _, err := l.open(t, "onlyb", known); err != nil {
		t.Fatal(err)
	}
	l.a.setFail(down)
	// both@0 of the second source is another key than both@0 of the first.
	e, _ := edekOf(t, l.a, "both@0")
	_, err := l.open(t, "both", e)
	wantKind(t, err, claviger.SourceUnreachable)
	if s := text(t, err); !strings.Contains(s, l.a.uri) || strings.Contains(s, l.b.uri) || !strings.Contains(s,
		"hadoop.kms.key.provider.uri") {
		t.Errorf("%q", s)
	}
	if got, err := l.open(t, "onlyb", known); err != nil || !got.Equal(dek) {
		t.Errorf("a version that the living source served before: %v", err)
	}
}

func downSecond(t *testing.T) {
	l := newTwoSources(t, nil)
	l.b.setFail(down)
	e, _ := edekOf(t, l.b, "onlyb@0")
	for range 2 { // and not cached as missing
		_, err := l.open(t, "onlyb", e)
		wantKind(t, err, claviger.SourceUnreachable)
	}
	l.b.setFail(nil)
	if _, err := l.open(t, "onlyb", e); err != nil {
		t.Error(err)
	}
}

func refusedFirst(t *testing.T) {
	l := newTwoSources(t, nil)
	l.a.setFail(failing(claviger.KeyDenied, "no"))
	e, _ := edekOf(t, l.a, "both@0")
	_, err := l.open(t, "both", e)
	wantKind(t, err, claviger.SourceRefused)
	if calls := l.b.calls(); len(calls) != 0 {
		t.Errorf("calls of the second source: %q", calls)
	}
}

func deletedWhereItWas(t *testing.T) {
	l := newTwoSources(t, nil)
	e, _ := edekOf(t, l.a, "onlya@0")
	if _, err := l.open(t, "onlya", e); err != nil {
		t.Fatal(err)
	}
	if err := l.a.Delete(t.Context(), "onlya"); err != nil {
		t.Fatal(err)
	}
	_, err := l.open(t, "onlya", e)
	wantKind(t, err, claviger.VersionNotFound)
	// After that, it is looked up like any other version.
	if err := l.Invalidate(t.Context(), caller("u"), "onlya"); err != nil {
		t.Fatal(err)
	}
	l.a.calls()
	_, err = l.open(t, "onlya", e)
	wantKind(t, err, claviger.VersionNotFound)
	if calls := l.a.calls(); len(calls) != 1 {
		t.Errorf("calls %q", calls)
	}
}

func storedOverRestarts(t *testing.T) {
	store := openStore(t)
	l := newTwoSources(t, func(c *Config) { c.Usage = store })
	e, dek := edekOf(t, l.b, "k@0")
	if _, err := l.open(t, "k", e); err != nil {
		t.Fatal(err)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	cfg := l.cfg
	l.a.setFail(down)
	r, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = r.Close() })
	if got, err := r.Decrypt(t.Context(), caller("bob"), "k", true, e); err != nil || !got.Equal(dek) {
		t.Errorf("%v", err)
	}
}

// TestBlockSource: a keystore as a source.
func TestBlockSource(t *testing.T) {
	store := &counting{Provider: memory.New(memory.Config{URI: "jceks://file@/old.jceks", SequentialIDs: true})}
	t.Cleanup(func() { _ = store.Provider.Close() })
	create(t, store, "k")
	l, _ := withSource(t, func(c *Config) { c.Sources = []Source{{Provider: store}} })
	if err := l.primary.Delete(t.Context(), "k"); err != nil {
		t.Fatal(err)
	}
	l.past.takeOver(t, store, l.primary, "k")
	es, deks := newEDEKs(t, store.Provider, "k@0", 4)
	if dek, err := l.Decrypt(t.Context(), caller("bob"), "k", true, es[0]); err != nil || !dek.Equal(deks[0]) {
		t.Fatal(err)
	}
	cur, err := l.Current(t.Context(), caller("u"), "k")
	if err != nil {
		t.Fatal(err)
	}
	calls := store.encrypts.Load()
	out, err := l.ReencryptBatch(t.Context(), caller("hdfs"), "k", es)
	if err != nil {
		t.Fatal(err)
	}
	checkReencrypted(t, l.primary.Provider, cur.Name, es, out, deks)
	if got := store.encrypts.Load() - calls; got != 1 {
		t.Errorf("the source made %d EncryptBlocks calls for one version", got)
	}
	// An EDEK without material needs no encryption. It must not be served under a version that does not exist.
	_, err = l.Decrypt(t.Context(), caller("bob"), "k", true, claviger.EDEK{Version: "k@9", IV: make([]byte, 16)})
	wantKind(t, err, claviger.VersionNotFound)
}

// TestVersionAtSource: a source's version is found without its material.
func TestVersionAtSource(t *testing.T) {
	l, far := withSource(t, nil, "k")
	v, err := l.Version(t.Context(), caller("u"), "k@0")
	if err != nil || v == nil || v.Name != "k@0" || v.Key != "k" {
		t.Fatalf("%v, %v", v, err)
	}
	if v.Material != nil {
		t.Error("the source's material was shown")
	}
	if got := l.audit.take(); len(got) != 1 || got[0] != "OK[op=GET_KEY_VERSION, key=k, user=u] " {
		t.Errorf("audit %q", got)
	}
	if v, err := l.Version(t.Context(), caller("u"), "k@9"); v != nil || err != nil {
		t.Fatalf("%v, %v", v, err)
	}
	if calls := far.calls(); !slices.Equal(calls, []string{"metadata/k", "version/k@0", "version/k@9"}) {
		t.Errorf("the source got the calls %q", calls)
	}
	far.setFail(failing(claviger.Denied, "no"))
	_, err = l.Version(t.Context(), caller("u"), "k@5")
	wantKind(t, err, claviger.SourceRefused)
}
