package migrate_test

import (
	"context"
	"crypto/rand"
	"slices"
	"strings"
	"testing"

	"claviger"
	"claviger/eek"
	"claviger/migrate"
	"claviger/migrate/report"
	"claviger/provider"
	"claviger/secret"
)

// kms is a source that is a KMS: it makes and opens EDEKs if its rules allow it.
type kms struct {
	migrate.Source
	blocks     provider.BlockEncrypter
	noGenerate bool
	proxies    []string            // users on whose behalf we may make requests
	may        map[string][]string // keys that a user may use, by user; "" is ourselves; nil: all
	opaque     bool                // the names of versions have no numbers, and are not shown
}

func (k *kms) Versions(ctx context.Context, key string) ([]claviger.KeyVersion, error) {
	return nil, claviger.Errorf("kmsclient.Versions", claviger.Denied, key,
		"User:mig not allowed to do 'GET_KEY_VERSIONS' on '%s'", key)
}

func (k *kms) Generate(ctx context.Context, key string, n int) ([]claviger.EDEK, error) {
	if k.noGenerate {
		return nil, claviger.Errorf("kmsclient.Generate", claviger.Denied, key,
			"User:mig not allowed to do 'GENERATE_EEK' on '%s'", key)
	}
	v, err := k.Source.Current(ctx, key)
	if err != nil {
		return nil, err
	}
	return eek.Generate(ctx, k.blocks, v.Name, v.BitLength/8, n, rand.Reader)
}

// GenerateAs makes EDEKs on behalf of a user, if that user may use the key.
func (k *kms) GenerateAs(ctx context.Context, key, as string, n int) ([]claviger.EDEK, error) {
	if !slices.Contains(k.proxies, as) {
		return nil, claviger.Errorf("kmsclient.Generate", claviger.Denied, key,
			"KMS http://old:16000/kms: User: mig is not allowed to impersonate %s", as)
	}
	if k.may != nil && !slices.Contains(k.may[as], key) {
		return nil, claviger.Errorf("kmsclient.Generate", claviger.KeyDenied, key,
			"User [%s] is not authorized to perform [GENERATE_EEK] on key with ACL name [%s]!!", as, key)
	}
	v, err := k.Source.Current(ctx, key)
	if err != nil {
		return nil, err
	}
	return eek.Generate(ctx, k.blocks, v.Name, v.BitLength/8, n, rand.Reader)
}

func (k *kms) Reencrypt(context.Context, string, []claviger.EDEK) ([]claviger.EDEK, error) {
	panic("a plan re-encrypts nothing")
}

func (k *kms) Unwrap(ctx context.Context, key, as string, edeks []claviger.EDEK) ([]secret.Bytes, error) {
	if as != "" && !slices.Contains(k.proxies, as) {
		return nil, claviger.Errorf("kmsclient.Unwrap", claviger.Denied, key,
			"KMS http://old:16000/kms: User: mig is not allowed to impersonate %s", as)
	}
	if k.opaque && k.noGenerate {
		return nil, claviger.Errorf("kmsclient.Unwrap", claviger.VersionNotFound, edeks[0].Version, "'%s' not found",
			edeks[0].Version)
	}
	if k.may != nil && !slices.Contains(k.may[as], key) {
		return nil, claviger.Errorf("kmsclient.Unwrap", claviger.KeyDenied, key,
			"User [%s] is not authorized to perform [DECRYPT_EEK] on key with ACL name [%s]!!", as, key)
	}
	return eek.Unwrap(ctx, k.blocks, edeks)
}

// TestRightsAtTheSource: the plan checks the rights that the cut-over needs at a KMS as the source. It opens one EDEK
// of each key there.
func TestRightsAtTheSource(t *testing.T) {
	const own, users = "re-encryption at the source", "old files of users"
	for _, tt := range []struct {
		name     string
		source   kms
		asUser   string
		check    string
		status   migrate.Status
		measured string
		cure     string
		ready    bool
	}{
		{"all rights, own user", kms{proxies: []string{"alice"}}, "alice", own, migrate.OK,
			"as mig, an EDEK was opened for 2 of 2 keys",
			"", true},
		{"all rights, alice", kms{proxies: []string{"alice"}}, "alice", users, migrate.OK,
			"on behalf of alice, an EDEK was opened for 2 of 2", "", true},
		{"an EDEK of random bytes, because the source makes none", kms{proxies: []string{"alice"}, noGenerate: true},
			"alice", own, migrate.OK, "2 of 2", "",
			true},
		{"no DECRYPT_EEK", kms{proxies: []string{"alice"}, may: map[string][]string{"": {"a"}, "alice": {"a", "b"}}},
			"alice", own, migrate.Failure, "1 of 2 keys; not for b: ", "whitelist.key.acl.DECRYPT_EEK admit mig",
			false},
		{"no proxy-user rule", kms{}, "alice", users, migrate.Failure, "0 of 2 keys; not for a, b",
			"hadoop.kms.proxyuser.mig.users (or .groups) must admit alice", false},
		{"alice reads one key", kms{proxies: []string{"alice"}, may: map[string][]string{"": {"a", "b"},
			"alice": {"b"}}}, "alice", users, migrate.OK, "1 of 2 keys", "", true},
		{"alice reads no key", kms{proxies: []string{"alice"}, may: map[string][]string{"": {"a", "b"}}}, "alice",
			users,
			migrate.Failure, "0 of 2 keys", "may open files there", false},
		{"no user to try", kms{}, "", users, migrate.NotTried, "no user was given", "--as-user", false},
		{"no EDEK, and opaque version names", kms{proxies: []string{"alice"}, noGenerate: true, opaque: true}, "alice",
			own,
			migrate.NotTried, "0 of 2 keys; for 2 keys the source admitted the request, but did not try the " +
				"key's own rules", "GENERATE_EEK", false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			b := newTestMigration(t)
			b.add(t, "a", 2)
			b.add(t, "b", 1)
			src := tt.source
			src.Source, src.blocks = b.source, b.source
			b.cfg.Source = &src
			b.cfg.Parallel = 1
			b.cfg.Probes = migrate.Probes{User: "mig", AsUser: tt.asUser}
			p, err := b.engine(t).Plan(t.Context())
			must(t, err)
			found := checkOf(t, p, tt.check)
			if found.Status != tt.status || !strings.Contains(found.Measured, tt.measured) ||
				!strings.Contains(found.Cure, tt.cure) {
				t.Errorf("%+v, want %v, %q, %q", found, tt.status, tt.measured, tt.cure)
			}
			if p.Ready() != tt.ready {
				t.Errorf("ready is %v: %+v", p.Ready(), p.Checks)
			}
		})
	}
}

// TestPlanAfterTheMigration: the plan of a complete migration says that it is complete, until the source has a new key.
func TestPlanAfterTheMigration(t *testing.T) {
	b := newTestMigration(t)
	b.add(t, "k", 1)
	plan := func() *migrate.Plan {
		t.Helper()
		p, err := b.engine(t).Plan(t.Context())
		must(t, err)
		return p
	}
	const says = "The migration is complete"
	if p := plan(); p.Complete || strings.Contains(textOf(report.Plan, p), says) {
		t.Error("complete before it was begun")
	}
	b.run(t)
	if p := plan(); !p.Complete || !p.Ready() || !strings.Contains(textOf(report.Plan, p), says) {
		t.Errorf("after the run: %s", textOf(report.Plan, p))
	}
	// After the migration HDFS may use this server.
	b.cfg.Probes = migrate.Probes{OwnAddresses: []string{"192.0.2.1:9600"}, HDFS: func(string) (string,
		bool) {
		return "kms://http@192.0.2.1:9600/kms", true
	}}
	if p := plan(); !p.Ready() {
		t.Errorf("with HDFS here: %s", textOf(report.Plan, p))
	}
	// Checks that were not tried do not matter, because there is nothing to run.
	b.cfg.Probes = migrate.Probes{MoreChecks: func(context.Context) []migrate.Check {
		return []migrate.Check{{Name: "more", Status: migrate.NotTried, Needed: true}}
	}}
	if p := plan(); p.Ready() || strings.Contains(textOf(report.Plan, p), "Not ready") ||
		!strings.Contains(textOf(report.Plan, p), "This plan does not prove") {
		t.Errorf("with a check that was not tried: %s", textOf(report.Plan, p))
	}
	b.cfg.Probes = migrate.Probes{OwnAddresses: []string{"192.0.2.1:9600"}, HDFS: func(string) (string,
		bool) {
		return "kms://http@192.0.2.1:9600/kms", true
	}}
	b.add(t, "late", 1)
	if p := plan(); p.Complete || p.Ready() {
		t.Errorf("with a new key and HDFS here: %s", textOf(report.Plan, p))
	}
}

// TestRootIsNotAdmitted: if the command runs as root, no cure says to admit root at the source. If the source's error
// has the cure already, the plan writes the cure once, not for each key.
func TestRootIsNotAdmitted(t *testing.T) {
	b := newTestMigration(t)
	b.add(t, "a", 1)
	b.add(t, "b", 1)
	src := kms{Source: b.source, blocks: b.source, may: map[string][]string{"": {}}}
	b.cfg.Source = &src
	b.cfg.Probes = migrate.Probes{User: "root", AsUser: "alice"}
	p, err := b.engine(t).Plan(t.Context())
	must(t, err)
	for _, c := range p.Checks {
		if strings.Contains(c.Cure, "admit root") || strings.Contains(c.Cure, "proxyuser.root") {
			t.Errorf("%+v", c)
		}
	}
	if text := textOf(report.Plan, p); !strings.Contains(text, "admit the user that the server runs as") ||
		!strings.Contains(text, "hadoop.kms.proxyuser.USER.users") {
		t.Error(text)
	}
	b.cfg.Source = &refusing{Source: b.source}
	p, err = b.engine(t).Plan(t.Context())
	must(t, err)
	text := textOf(report.Plan, p)
	if strings.Count(text, "must admit root)") != 2 || strings.Count(text, "this command runs as root") != 2 ||
		strings.Count(text, "let whitelist.key.acl.READ") != 1 {
		t.Error(text) // the reason once for each key, the cure once
	}
}

// refusing is a source that refuses metadata with the error text of package kmsclient.
type refusing struct{ migrate.Source }

func (refusing) Metadata(_ context.Context, names ...string) ([]*claviger.Metadata, error) {
	return nil, claviger.Errorf("kmsclient.Metadata", claviger.KeyDenied, names[0],
		"User [root] is not authorized to perform [READ] on key with ACL name [%s]!! (whitelist.key.acl.READ, "+
			"or key.acl.%[1]s.READ where that key has entries of its own, in that KMS's kms-acls.xml must "+
			"admit root)", names[0])
}
