package keyring

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"claviger"
	"claviger/provider"
	"claviger/provider/memory"
	"claviger/secret"
)

// folding is a source whose key names ignore case, as in Ranger's and Java's keystores: it lists "payroll", and a
// request for "Payroll" finds that key.
type folding struct{ *farKMS }

func (f folding) Metadata(ctx context.Context, names ...string) ([]*claviger.Metadata, error) {
	ms, err := f.farKMS.Metadata(ctx, strings.ToLower(names[0]))
	if err == nil && ms[0] != nil {
		own := *ms[0]
		own.Name = names[0]
		ms[0] = &own
	}
	return ms, err
}

func (f folding) Unwrap(ctx context.Context, key, as string, edeks []claviger.EDEK) ([]secret.Bytes, error) {
	lower := append([]claviger.EDEK(nil), edeks...)
	for i := range lower {
		lower[i].Version = strings.ToLower(lower[i].Version)
	}
	return f.farKMS.Unwrap(ctx, strings.ToLower(key), as, lower)
}

// States of a name here.
const (
	never       = "never here"
	migrated    = "migrated"
	ended       = "migrated, finished"
	endedSoftly = "migrated, finished, deleted softly"
	endedPurged = "migrated, finished, purged"
	endedFreed  = "migrated, finished, purged, name freed"
	endedNever  = "journal names it, never taken over, finished"
	softly      = "migrated, deleted softly"
	purged      = "migrated, purged"
	before      = "made here before the source was configured"
	// The source's EDEK is under a version whose number the key here has too.
	beforeSame = "made here before, same version"
	inJournal  = "journal names it, source not configured"
)

// shadowRow is a row of TestShadowing's table.
type shadowRow struct {
	here string // the state of the name "payroll" here
	// The state of the source: "present" (it has the key), "absent" (it does not have the key), "silent" (it does not
	// answer), "refusing", "gone" (not configured), "newer" (carol has made another key of the name there since).
	source string
	spelt  string // the name in the request: "payroll", or "Payroll" at a source that folds case
	// The outcomes for bob, who may do anything with keys of the ACL name "scratch".
	create, undelete string
	// The outcomes for bob and for alice with the source's EDEK payroll@0.
	bobDecrypts, aliceDecrypts string
	bobReencrypts              string // bob has GENERATE_EEK of "scratch" only
	nnReencrypts               string // the NameNode's user has GENERATE_EEK of all keys, and no DECRYPT_EEK
}

var shadowRows = []shadowRow{
	// Not migrated yet.
	{never, "present", "payroll", "no", "none", "no", "ok", "none", "none"},
	{never, "present", "Payroll", "no", "none", "no", "ok", "none", "none"},
	{never, "absent", "payroll", "ok", "none", "404", "404", "none", "none"},
	{never, "silent", "payroll", "503", "none", "503", "503", "none", "none"},
	{never, "refusing", "payroll", "no", "none", "no", "no", "none", "none"},
	{never, "gone", "payroll", "ok", "none", "404", "404", "404", "404"},
	// Migrated.
	{migrated, "present", "payroll", "exists", "none", "no", "ok", "no", "ok"},
	{migrated, "present", "Payroll", "no", "none", "no", "ok", "no", "ok"},
	{migrated, "absent", "payroll", "exists", "none", "no", "404", "no", "404"},
	{migrated, "silent", "payroll", "exists", "none", "no", "503", "no", "503"},
	{migrated, "gone", "payroll", "exists", "none", "503", "503", "503", "503"},
	{ended, "gone", "payroll", "exists", "none", "404", "404", "404", "404"},
	// The migration was finished: the source may be configured again.
	{endedSoftly, "gone", "payroll", "no", "ok", "404", "404", "404", "404"},
	{endedSoftly, "gone", "Payroll", "no", "none", "404", "404", "404", "404"},
	{endedPurged, "gone", "payroll", "no", "none", "404", "404", "404", "404"},
	{endedPurged, "present", "payroll", "no", "none", "no", "ok", "none", "none"},
	{endedPurged, "absent", "payroll", "ok", "none", "404", "404", "none", "none"},
	{endedFreed, "gone", "payroll", "ok", "none", "404", "404", "404", "404"},
	{endedFreed, "present", "payroll", "no", "none", "no", "ok", "none", "none"},
	{endedNever, "gone", "payroll", "no", "none", "404", "404", "404", "404"},
	{endedNever, "gone", "Payroll", "no", "none", "404", "404", "404", "404"},
	// Migrated and deleted here.
	{softly, "present", "payroll", "no", "ok", "no", "ok", "none", "none"},
	{softly, "present", "Payroll", "no", "none", "no", "ok", "none", "none"},
	{softly, "absent", "payroll", "no", "ok", "404", "404", "none", "none"},
	{softly, "silent", "payroll", "503", "ok", "503", "503", "none", "none"},
	{softly, "gone", "payroll", "no", "ok", "503", "503", "503", "503"},
	{softly, "newer", "payroll", "no", "no", "no", "no", "none", "none"},
	{migrated, "newer", "payroll", "exists", "none", "no", "no", "no", "no"},
	{endedSoftly, "newer", "payroll", "no", "no", "no", "no", "none", "none"},
	{purged, "present", "payroll", "no", "none", "no", "ok", "none", "none"},
	{purged, "absent", "payroll", "ok", "none", "404", "404", "none", "none"},
	{purged, "silent", "payroll", "503", "none", "503", "503", "none", "none"},
	{purged, "gone", "payroll", "no", "none", "503", "503", "503", "503"},
	// bob made the key here before the source was configured. He may use it, and cannot open alice's EDEKs with it.
	{before, "present", "payroll", "exists", "none", "no", "no", "no", "no"},
	{before, "silent", "payroll", "exists", "none", "503", "no", "503", "503"},
	// Both keys have a version payroll@0. alice's EDEK opens with bob's key to bytes that are not her DEK.
	{beforeSame, "present", "payroll", "exists", "none", "other", "no", "other", "other"},
	{beforeSame, "silent", "payroll", "exists", "none", "other", "no", "other", "other"},
	// The journal of an unfinished migration has the name.
	{inJournal, "gone", "payroll", "no", "none", "503", "503", "503", "503"},
}

// TestShadowing checks the table of docs/sources/names.md. A source has alice's key "payroll". bob has every right on
// keys of the ACL name "scratch", and none on "payroll".
//
// Outcomes: "ok"; "no": refused, and the error has the cure; "503": refused for now; "none": no key of that name;
// "404": no such version; "other": opened by the key here, to other bytes than alice's DEK.
func TestShadowing(t *testing.T) {
	for _, r := range shadowRows {
		for _, listed := range []bool{false, true} { // named by source.uri, or second in the provider list
			t.Run(fmt.Sprintf("%s/%s/%s/listed=%t", r.here, r.source, r.spelt, listed), func(t *testing.T) {
				build := func() *shadowRing { return newShadowRing(t, r.here, r.source, r.spelt, listed) }
				s := build()
				want := func(what, outcome string, err error) {
					t.Helper()
					if got := outcomeOf(err); got != outcome {
						t.Errorf("%s: %s (%v), want %s", what, got, err, outcome)
					}
					if outcome == "no" && claviger.Is(err, claviger.Invalid) && !strings.Contains(err.Error(),
						"migrat") {
						t.Errorf("%s: %v says nothing of what to do", what, err)
					}
				}
				dek, err := s.Decrypt(t.Context(), caller("bob"), r.spelt, true, s.edek)
				want("bob decrypts", s.but(r.bobDecrypts, dek), err)
				dek, err = s.Decrypt(t.Context(), caller("alice"), r.spelt, true, s.edek)
				want("alice decrypts", r.aliceDecrypts, err)
				if err == nil && !dek.Equal(s.dek) {
					t.Error("alice has another DEK")
				}
				out, err := s.Reencrypt(t.Context(), caller("bob"), r.spelt, true, s.edek)
				if err == nil {
					dek, _ = s.Decrypt(t.Context(), caller("bob"), r.spelt, true, out)
				}
				want("bob re-encrypts", s.but(r.bobReencrypts, dek), err)
				batch, err := s.ReencryptBatch(t.Context(), caller("nn"), r.spelt, []claviger.EDEK{s.edek})
				want("the NameNode re-encrypts", s.but(r.nnReencrypts, nil), err)
				if err == nil && r.nnReencrypts == "ok" {
					s.onlyAliceOpens(t, r.spelt, batch[0])
				}
				_, err = s.Create(t.Context(), caller("bob"), shadowSpec(r.spelt))
				want("bob creates", r.create, err)
				if err == nil {
					s.bobHasNothing(t, r.spelt)
				}
				s = build()
				want("root undeletes", r.undelete, s.Undelete(t.Context(), caller("root"), r.spelt, ""))
				build().migratedByItsUser(t, r.here, r.source, r.spelt)
				changesOf(r.here).changed(t, build)
			})
		}
	}
}

// mover migrates a key of a source as the engine of package migrate does, unless the key is here already.
type mover struct {
	t    *testing.T
	past *journal
	src  provider.Provider
	to   *counting
}

func (m mover) SourceMetadata(ctx context.Context, key string) (*claviger.Metadata, error) {
	ms, err := m.src.Metadata(ctx, key)
	switch {
	case claviger.Is(err, claviger.KeyDenied):
		return nil, claviger.E("mover", claviger.SourceRefused, key, err)
	case err != nil:
		return nil, claviger.E("mover", claviger.SourceUnreachable, key, err)
	case ms[0] == nil:
		return nil, claviger.E("mover", claviger.KeyNotFound, key, nil)
	}
	return ms[0], nil
}

func (m mover) RunKey(ctx context.Context, key string) ([]string, error) {
	far, err := m.SourceMetadata(ctx, key)
	if err != nil {
		return nil, err
	}
	switch here, err := m.to.Metadata(ctx, strings.ToLower(key)); {
	case err != nil:
		return nil, err
	case here[0] != nil && !here[0].Created.Equal(far.Created):
		return nil, claviger.Errorf("mover", claviger.Invalid, key, "another key")
	case here[0] != nil:
		return nil, nil
	}
	m.past.takeOver(m.t, m.src, m.to, key)
	return nil, nil
}

// migrates maps the state of the source to the outcome when alice, who has the right, migrates her key.
var migrates = map[string]string{"present": "ok", "absent": "none", "silent": "503", "refusing": "no",
	"gone": "unsupported", "newer": "no"}

// migratedByItsUser checks that alice can migrate her key. bob, who may migrate keys of "scratch", can neither migrate
// it nor open EDEKs of it afterwards.
func (s *shadowRing) migratedByItsUser(t *testing.T, here, source, spelt string) {
	t.Helper()
	outcome, bobs := migrates[source], "no"
	if outcome == "503" || outcome == "unsupported" {
		bobs = outcome
	}
	if outcome == "ok" && (here == before || here == beforeSame) {
		outcome = "no" // the name is another key's here
	}
	_, err := s.Migrate(t.Context(), caller("bob"), spelt)
	if got := outcomeOf(err); got != bobs {
		t.Errorf("bob migrates: %s (%v), want %s", got, err, bobs)
	}
	_, err = s.Migrate(t.Context(), caller("alice"), spelt)
	if got := outcomeOf(err); got != outcome {
		t.Errorf("alice migrates: %s (%v), want %s", got, err, outcome)
	}
	if err != nil {
		return
	}
	es, err := s.Generate(t.Context(), caller("alice"), spelt, 1)
	if err != nil {
		t.Errorf("alice, after the migration: %v", err)
		return
	}
	_, err = s.Decrypt(t.Context(), caller("bob"), spelt, true, es[0])
	if got := outcomeOf(err); got != "no" {
		t.Errorf("bob opens what alice has made after the migration: %s (%v)", got, err)
	}
}

// changes has the outcome of each change of "payroll". It does not depend on the source.
type changes struct{ bobRolls, bobDeletes, bobPurges, aliceRolls, aliceDeletes, alicePurges string }

var changesHere = map[string]changes{
	"none":    {"none", "none", "no", "none", "none", "none"},
	"alice's": {"no", "no", "no", "ok", "ok", "none"},
	"deleted": {"none", "none", "no", "none", "none", "ok"},
	"bob's":   {"ok", "ok", "no", "no", "no", "none"},
}

// changesOf returns the row of changesHere for the state of the name here.
func changesOf(here string) changes {
	switch here {
	case migrated, ended:
		return changesHere["alice's"]
	case softly, endedSoftly:
		return changesHere["deleted"]
	case before, beforeSame:
		return changesHere["bob's"]
	}
	return changesHere["none"]
}

// changed tries each change on a Ring of its own.
func (c changes) changed(t *testing.T, build func() *shadowRing) {
	t.Helper()
	const key = "payroll"
	for _, who := range []struct{ user, rolls, deletes, purges string }{
		{"bob", c.bobRolls, c.bobDeletes, c.bobPurges}, {"alice", c.aliceRolls, c.aliceDeletes, c.alicePurges},
	} {
		_, rolled := build().Roll(t.Context(), caller(who.user), key, nil)
		deleted := build().Delete(t.Context(), caller(who.user), key)
		purged := build().Purge(t.Context(), caller(who.user), key, "")
		for _, did := range []struct {
			what, want string
			err        error
		}{{"rolls", who.rolls, rolled}, {"deletes", who.deletes, deleted}, {"purges", who.purges, purged}} {
			if got := outcomeOf(did.err); got != did.want {
				t.Errorf("%s %s: %s (%v), want %s", who.user, did.what, got, did.err, did.want)
			}
		}
	}
}

// but returns "ok" for the outcome "other" if the DEK is not alice's, and every other outcome unchanged.
func (s *shadowRing) but(outcome string, dek secret.Bytes) string {
	if outcome == "other" && !dek.Equal(s.dek) {
		return "ok"
	}
	return outcome
}

// outcomeOf returns the word for err in the table of TestShadowing.
func outcomeOf(err error) string {
	if err == nil {
		return "ok"
	}
	switch claviger.KindOf(err) {
	case claviger.KeyExists:
		return "exists"
	case claviger.KeyNotFound:
		return "none"
	case claviger.VersionNotFound:
		return "404"
	case claviger.SourceUnreachable, claviger.Unavailable:
		return "503"
	case claviger.Invalid, claviger.KeyDenied, claviger.SourceRefused:
		return "no"
	}
	return claviger.KindOf(err).String()
}

func shadowSpec(name string) provider.Spec {
	return provider.Spec{Name: name, Attributes: map[string]string{claviger.ACLNameAttribute: "scratch"}}
}

// shadowRing is a Ring of TestShadowing.
type shadowRing struct {
	*testRing
	far  *farKMS
	edek claviger.EDEK // the source's, under payroll@0 as it is spelt
	dek  secret.Bytes
}

func newShadowRing(t *testing.T, here, source, spelt string, listed bool) *shadowRing {
	t.Helper()
	far := newFarKMS(t, farURI)
	if _, err := far.Create(t.Context(), provider.Spec{Name: "payroll", Cipher: claviger.DefaultCipher, BitLength: 128,
		Attributes: map[string]string{claviger.ACLNameAttribute: "payroll"}}); err != nil {
		t.Fatal(err)
	}
	version := "payroll@0"
	if here == before {
		v, err := far.Roll(t.Context(), "payroll", nil)
		if err != nil {
			t.Fatal(err)
		}
		version = v.Name
	}
	es, deks := newEDEKs(t, far.blocks, version, 1)
	es[0].Version = strings.Replace(version, "payroll", spelt, 1)
	var src provider.Provider = far
	folds := spelt != "payroll"
	if folds {
		src = folding{far}
	}
	primary := &counting{Provider: memory.New(memory.Config{Sealed: true, SoftDelete: true})}
	past := &journal{aliases: map[string]string{}}
	putHere(t, far, primary, past, here, folds)
	changeSource(t, far, source)
	l := newTestRing(t, func(c *Config) {
		c.Primary, c.History, c.Reencryption = primary, past, true
		if source != "gone" {
			c.Sources = []Source{{Provider: src, Reencryption: !listed}}
			c.Migrator = mover{t, past, src, primary}
		}
		c.Policy = rules(t, "keytrustee.kms.acl.UNDELETE", "root", "keytrustee.kms.acl.PURGE", "alice,bob",
			"key.acl.payroll.MIGRATE", "alice", "key.acl.scratch.MIGRATE", "bob", "key.acl.payroll.ALL", "alice",
			"key.acl.payroll.GENERATE_EEK", "alice,nn", "key.acl.payroll.MANAGEMENT", "alice,root",
			"key.acl.scratch.ALL", "bob", "key.acl.scratch.GENERATE_EEK", "bob,nn", "key.acl.scratch.MANAGEMENT",
			"bob,root")
	})
	l.primary, l.past = primary, past
	return &shadowRing{l, far, es[0], deks[0]}
}

// putHere makes the target and the journal as the case here demands.
func putHere(t *testing.T, far *farKMS, primary *counting, past *journal, here string, folds bool) {
	t.Helper()
	switch here {
	case migrated, ended, softly, purged, endedSoftly, endedPurged, endedFreed:
		past.takeOver(t, far, primary, "payroll")
		if folds {
			past.aliases["payroll"] = "payroll"
		}
		if here == ended || here == endedSoftly || here == endedPurged || here == endedFreed {
			past.list[0].Finished = time.Now()
		}
		past.list[0].Freed = here == endedFreed
		if here != migrated && here != ended {
			if err := primary.Delete(t.Context(), "payroll"); err != nil {
				t.Fatal(err)
			}
		}
		if here == purged || here == endedPurged || here == endedFreed {
			list, err := primary.Deleted(t.Context(), "payroll")
			if err != nil || len(list) != 1 {
				t.Fatalf("%+v, %v", list, err)
			}
			if err := primary.Purge(t.Context(), "payroll", list[0].List...); err != nil {
				t.Fatal(err)
			}
		}
	case before, beforeSame:
		time.Sleep(2 * time.Millisecond) // the creation times of two keys differ
		if _, err := primary.Provider.Create(t.Context(), provider.Spec{Name: "payroll",
			Cipher: claviger.DefaultCipher, BitLength: 128,
			Attributes: map[string]string{claviger.ACLNameAttribute: "scratch"}}); err != nil {
			t.Fatal(err)
		}
	case inJournal:
		past.list = append(past.list, Origin{Key: "payroll", Source: farURI})
	case endedNever:
		past.list = append(past.list, Origin{Key: "payroll", Source: farURI, Folded: folds, Finished: time.Now()})
	}
}

// changeSource makes the source as the case source demands.
func changeSource(t *testing.T, far *farKMS, source string) {
	t.Helper()
	switch source {
	case "absent":
		if err := far.Delete(t.Context(), "payroll"); err != nil {
			t.Fatal(err)
		}
	case "newer":
		if err := far.Delete(t.Context(), "payroll"); err != nil {
			t.Fatal(err)
		}
		time.Sleep(2 * time.Millisecond) // the creation times of two keys differ
		if _, err := far.Create(t.Context(), provider.Spec{Name: "payroll", Cipher: claviger.DefaultCipher,
			BitLength: 128, Attributes: map[string]string{claviger.ACLNameAttribute: "carol"}}); err != nil {
			t.Fatal(err)
		}
	case "silent":
		far.setFail(failing(claviger.Unavailable, "connection refused"))
	case "refusing":
		far.setFail(failing(claviger.KeyDenied, "User [kms] is not authorized (whitelist.key.acl.READ)"))
	}
}

// onlyAliceOpens checks that the rules of the source's key guard the result of a re-encryption.
func (s *shadowRing) onlyAliceOpens(t *testing.T, key string, e claviger.EDEK) {
	t.Helper()
	if dek, err := s.Decrypt(t.Context(), caller("alice"), key, true, e); err != nil || !dek.Equal(s.dek) {
		t.Errorf("alice, after a re-encryption: %v", err)
	}
	_, err := s.Decrypt(t.Context(), caller("bob"), key, true, e)
	wantKind(t, err, claviger.KeyDenied)
}

// bobHasNothing checks that bob cannot open alice's EDEKs. He has made a key of the name, and then the source has its
// key again, or answers again, or is configured again.
func (s *shadowRing) bobHasNothing(t *testing.T, key string) {
	t.Helper()
	if len(s.sources.list) == 0 {
		return
	}
	if _, err := s.far.Create(t.Context(), provider.Spec{Name: "payroll", Cipher: claviger.DefaultCipher,
		BitLength:  128,
		Attributes: map[string]string{claviger.ACLNameAttribute: "payroll"}}); err != nil &&
		!claviger.Is(err, claviger.KeyExists) {
		t.Fatal(err)
	}
	s.forgetAll() // the caches expire
	for _, v := range []string{key + "@0", key + "@1"} {
		e := s.edek
		e.Version = v
		if dek, err := s.Decrypt(t.Context(), caller("bob"), key, true, e); err == nil && dek.Equal(s.dek) {
			t.Errorf("bob opens %s", v)
		}
		out, err := s.Reencrypt(t.Context(), caller("bob"), key, true, e)
		if err != nil {
			continue
		}
		if dek, err := s.Decrypt(t.Context(), caller("bob"), key, true, out); err == nil && dek.Equal(s.dek) {
			t.Errorf("bob re-encrypts %s", v)
		}
	}
}
