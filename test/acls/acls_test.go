package acls

import (
	"bufio"
	"context"
	"flag"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"claviger"
	"claviger/audit"
	"claviger/authn"
	"claviger/authz"
	"claviger/hadoopconf"
	"claviger/keyring"
	"claviger/provider"
	"claviger/provider/memory"
	"claviger/secret"
	"claviger/test/hadoop"
)

var (
	seed  = flag.Uint64("seed", 1, "of the generated rules")
	files = flag.Int("files", 200, "how many kms-acls.xml files are generated")
)

// TestMatrix generates files with rules, and compares the decisions of Hadoop's classes with ours, for each user, each
// right and each key. Each side reads all files one after the other in one process, by its own reload. One file in ten
// is broken, and must change nothing.
func TestMatrix(t *testing.T) {
	hadoop.Require(t)
	dir := t.TempDir()
	put := func(name, text string) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	put("groups.txt", groupsOf)
	put("users.txt", strings.Join(users, "\n"))
	put("keys.txt", strings.Join(keys, "\n"))
	g := generator{rand.New(rand.NewPCG(*seed, 0))}
	for i := range *files {
		if i%10 == 9 {
			put(fileName(i), g.broken())
		} else {
			put(fileName(i), g.file())
		}
	}
	hadoopLines := runHadoop(t, dir)
	o := newRules(t)
	differ, decisions, yes, refused := 0, 0, 0, 0
	for i := range *files {
		if !o.reload(filepath.Join(dir, fileName(i))) {
			refused++
		}
		for u, who := range users {
			line := hadoopLines[i*len(users)+u]
			got := o.line(t, caller(who))
			decisions += strings.Count(line, "0") + strings.Count(line, "1")
			yes += strings.Count(line, "1")
			if got == line {
				continue
			}
			if differ++; differ <= 5 {
				text, _ := os.ReadFile(filepath.Join(dir, fileName(i)))
				t.Errorf("file %d (seed %d), user %q:\nHadoop %s\nours   %s\n%s", i, *seed, who, line, got, text)
			}
		}
	}
	if differ > 5 {
		t.Errorf("%d lines differ", differ)
	}
	t.Logf("%d decisions, %d of them yes; %d of %d files were refused", decisions, yes, refused, *files)
	if decisions < 100**files || yes < decisions/20 || yes > decisions*19/20 ||
		refused < *files/20 || refused > *files/8 {
		t.Error("the generated rules test little: too much of one answer, or too few broken files")
	}
}

// runHadoop runs the Java program, and returns one line for each file and user.
func runHadoop(t *testing.T, dir string) []string {
	t.Helper()
	classPath := hadoop.RuntimeClassPath(t)
	classes := hadoop.Javac(t, classPath, filepath.Join(hadoop.Root(), "test", "acls", "java"))
	logConfig := filepath.Join(dir, "log4j.properties")
	if err := os.WriteFile(logConfig, []byte("log4j.rootLogger=OFF\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, "java", "-XX:+UseSerialGC", "-Xshare:auto", "-Xmx256m", "-Dfile.encoding=UTF-8",
		"-Dlog4j.configuration=file:"+logConfig,
		"-cp", classes+string(os.PathListSeparator)+classPath, "org.apache.hadoop.crypto.key.kms.server.Matrix", dir)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("Matrix.java: %v\n%s", err, out)
	}
	f, err := os.Open(filepath.Join(dir, "answers.txt"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var lines []string
	in := bufio.NewScanner(f)
	for in.Scan() {
		lines = append(lines, in.Text())
	}
	if err := in.Err(); err != nil || len(lines) != *files*len(users) {
		t.Fatalf("%d lines, want %d: %v", len(lines), *files*len(users), err)
	}
	return lines
}

// caller returns the caller of a line of users: a user, or a user, a tab and the real user.
func caller(who string) claviger.Caller {
	name, real, ok := strings.Cut(who, "\t")
	c := claviger.Caller{Principal: claviger.Principal{Name: name, Short: name}}
	if ok {
		c.Real = &claviger.Principal{Name: real, Short: real}
	}
	return c
}

// rules makes the decisions with our packages.
type rules struct {
	groups func(string) []string
	policy *authz.Policy
	// keyRules has only the rules of keys and allows every operation, like KeyAuthorizationKeyProvider.
	keyRules *authz.Policy
	// ring uses policy; keyRing uses keyRules.
	ring, keyRing *keyring.Ring
}

// unchanging is a provider where every change succeeds and changes nothing, so only the rules can refuse a request.
type unchanging struct{ *memory.Provider }

func (u unchanging) Create(context.Context, provider.Spec) (claviger.KeyVersion, error) {
	return claviger.KeyVersion{}, nil
}

func (u unchanging) RollIf(ctx context.Context, key string, _ secret.Bytes, may func(*claviger.Metadata) error) (
	claviger.KeyVersion, error) {
	return claviger.KeyVersion{}, u.may(ctx, key, may)
}

func (u unchanging) DeleteIf(ctx context.Context, key string, may func(*claviger.Metadata) error) error {
	return u.may(ctx, key, may)
}

// may checks the rules of a key, like each change.
func (u unchanging) may(ctx context.Context, key string, may func(*claviger.Metadata) error) error {
	ms, err := u.Metadata(ctx, key)
	if err != nil {
		return err
	}
	return may(ms[0])
}

type noAudit struct{}

func (noAudit) Log(context.Context, audit.Event) {}
func (noAudit) Err() error                       { return nil }
func (noAudit) Close() error                     { return nil }

func newRules(t *testing.T) *rules {
	t.Helper()
	mapping, err := authn.NewGroups(groupsOf, time.Hour, nil)
	if err != nil {
		t.Fatal(err)
	}
	p := memory.New(memory.Config{SequentialIDs: true})
	for _, k := range keys {
		name, acl, _ := strings.Cut(k, "\t")
		spec := provider.Spec{Name: name, Cipher: claviger.DefaultCipher, BitLength: 128}
		if acl != "" {
			spec.Attributes = map[string]string{claviger.ACLNameAttribute: acl}
		}
		if _, err := p.Create(t.Context(), spec); err != nil {
			t.Fatal(err)
		}
	}
	o := &rules{groups: mapping.Of}
	ring := func(policy func() *authz.Policy) *keyring.Ring {
		r, err := keyring.New(keyring.Config{
			Primary: unchanging{p}, Policy: policy, KeyAuthorization: true, Groups: mapping.Of, Audit: noAudit{},
			QueueSize: 10, QueueLowWatermark: 0.3, QueueExpiry: time.Hour, QueueFillers: 1,
		})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := r.Close(); err != nil {
				t.Error(err)
			}
		})
		return r
	}
	o.ring = ring(func() *authz.Policy { return o.policy })
	o.keyRing = ring(func() *authz.Policy { return o.keyRules })
	return o
}

// reload reloads a changed file, like the Watcher of package authz. It returns false if the rules have not
// changed.
func (o *rules) reload(path string) bool {
	c := hadoopconf.New(filepath.Dir(path), nil)
	if c.AddFile(path, false) != nil || c.Check() != nil {
		return false
	}
	var props, keyProps []authz.Property
	for name, value := range c.All() {
		p := authz.Property{Name: name, Value: value}
		props = append(props, p)
		if !strings.HasPrefix(name, "hadoop.") {
			keyProps = append(keyProps, p)
		}
	}
	o.policy, _ = authz.Parse(props)
	o.keyRules, _ = authz.Parse(keyProps)
	return true
}

// levels are the values of KMSACLs.Type, in the order of Java.
var levels = []authz.Op{
	authz.Create, authz.Delete, authz.Rollover, authz.Get, authz.GetKeys, authz.GetMetadata, authz.SetKeyMaterial,
	authz.GenerateEEK, authz.DecryptEEK,
}

// requests are the requests of Matrix.java for a key, each with its name in `claviger acl explain`.
var requests = []struct {
	name string
	send func(ctx context.Context, r *keyring.Ring, c claviger.Caller, key, acl string) error
}{
	{"GET_CURRENT_KEY", func(ctx context.Context, r *keyring.Ring, c claviger.Caller, key, _ string) error {
		_, err := r.Current(ctx, c, key)
		return err
	}},
	{"GET_METADATA", func(ctx context.Context, r *keyring.Ring, c claviger.Caller, key, _ string) error {
		_, err := r.Metadata(ctx, c, key)
		return err
	}},
	{"ROLL_NEW_VERSION", func(ctx context.Context, r *keyring.Ring, c claviger.Caller, key, _ string) error {
		_, err := r.Roll(ctx, c, key, nil)
		return err
	}},
	{"DELETE_KEY", func(ctx context.Context, r *keyring.Ring, c claviger.Caller, key, _ string) error {
		return r.Delete(ctx, c, key)
	}},
	{"GENERATE_EEK", func(ctx context.Context, r *keyring.Ring, c claviger.Caller, key, _ string) error {
		_, err := r.Generate(ctx, c, key, 1)
		return err
	}},
	{"DECRYPT_EEK", func(ctx context.Context, r *keyring.Ring, c claviger.Caller, key, _ string) error {
		_, err := r.Decrypt(ctx, c, key, true, claviger.EDEK{Version: key + "@0", IV: make([]byte, 16),
			Material: make([]byte, 16)})
		return err
	}},
	{"CREATE_KEY", func(ctx context.Context, r *keyring.Ring, c claviger.Caller, key, acl string) error {
		spec := provider.Spec{Name: key}
		if acl != "" {
			spec.Attributes = map[string]string{claviger.ACLNameAttribute: acl}
		}
		_, err := r.Create(ctx, c, spec)
		if claviger.Is(err, claviger.KeyExists) {
			return nil // the operation's own rules were checked before
		}
		return err
	}},
}

// line returns all decisions for one caller, in the form of Matrix.java. It also compares each decision with the
// result of Explain.
func (o *rules) line(t *testing.T, c claviger.Caller) string {
	t.Helper()
	var b strings.Builder
	for _, op := range levels {
		b.WriteByte(digit(o.policy.May(op, c.Principal, o.groups)))
	}
	for _, k := range keys {
		key, acl, _ := strings.Cut(k, "\t")
		aclName := acl
		if aclName == "" {
			aclName = key
		}
		b.WriteByte(' ')
		for _, req := range requests {
			b.WriteByte(digit(o.allowed(t, req.send(t.Context(), o.keyRing, c, key, acl))))
			r, _, _ := authz.FindRequest(req.name)
			allowed := o.allowed(t, req.send(t.Context(), o.ring, c, key, acl))
			if d := o.policy.Explain(r, aclName, c.Principal, o.groups); d.Allowed != allowed {
				t.Errorf("%s %s %s: allowed %t, explained as %+v", c.Name, req.name, key, allowed, d)
			} else if by, ok := d.DecidedBy(); !ok || by.Property == "" {
				t.Errorf("%s %s %s: nothing decides: %+v", c.Name, req.name, key, d)
			}
		}
	}
	return b.String()
}

func (o *rules) allowed(t *testing.T, err error) bool {
	t.Helper()
	switch {
	case err == nil:
		return true
	case claviger.Is(err, claviger.Denied), claviger.Is(err, claviger.KeyDenied):
		return false
	}
	t.Fatal(err)
	return false
}

func digit(yes bool) byte {
	if yes {
		return '1'
	}
	return '0'
}
