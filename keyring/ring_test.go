package keyring

import (
	"context"
	"encoding/xml"
	"fmt"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"

	"claviger"
	"claviger/audit"
	"claviger/authz"
	"claviger/eek"
	"claviger/provider"
	"claviger/provider/memory"
	"claviger/secret"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// auditLog keeps audit lines in Hadoop's form, without times and counts.
type auditLog struct {
	mu    sync.Mutex
	lines []string
}

func (l *auditLog) Log(_ context.Context, e audit.Event) {
	line := fmt.Sprintf("%s[op=%s", e.Status, e.Op)
	if e.Key != "" {
		line += ", key=" + e.Key
	}
	line += ", user=" + e.Caller.Name + "] " + e.Message
	l.mu.Lock()
	defer l.mu.Unlock()
	l.lines = append(l.lines, line)
}

func (l *auditLog) Err() error   { return nil }
func (l *auditLog) Close() error { return nil }

// take returns the lines since the last take.
func (l *auditLog) take() []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	lines := l.lines
	l.lines = nil
	return lines
}

// noAudit is for benchmarks.
type noAudit struct{}

func (noAudit) Log(context.Context, audit.Event) {}
func (noAudit) Err() error                       { return nil }
func (noAudit) Close() error                     { return nil }

// rules parses pairs of property name and value.
func rules(t testing.TB, pairs ...string) func() *authz.Policy {
	t.Helper()
	var props []authz.Property
	for i := 0; i < len(pairs); i += 2 {
		props = append(props, authz.Property{Name: pairs[i], Value: pairs[i+1]})
	}
	p, warnings := authz.Parse(props)
	if len(warnings) > 0 {
		t.Fatal(warnings)
	}
	return func() *authz.Policy { return p }
}

// everything is the rules of the kms-acls.xml that Hadoop ships: everybody may do everything.
var everything = []string{
	"default.key.acl.MANAGEMENT", "*", "default.key.acl.GENERATE_EEK", "*",
	"default.key.acl.DECRYPT_EEK", "*", "default.key.acl.READ", "*",
}

// recordedRules returns the rules of the KMS whose audit log was recorded.
func recordedRules(t *testing.T) func() *authz.Policy {
	t.Helper()
	text, err := os.ReadFile("testdata/acl-kms-acls.xml")
	if err != nil {
		t.Fatal(err)
	}
	var file struct {
		Properties []struct {
			Name  string `xml:"name"`
			Value string `xml:"value"`
		} `xml:"property"`
	}
	if err := xml.Unmarshal(text, &file); err != nil {
		t.Fatal(err)
	}
	var pairs []string
	for _, p := range file.Properties {
		pairs = append(pairs, p.Name, p.Value)
	}
	return rules(t, pairs...)
}

func caller(user string) claviger.Caller {
	return claviger.Caller{Principal: claviger.Principal{Name: user, Short: user}, RemoteAddr: "127.0.0.1",
		RequestID: "1"}
}

// counting counts the calls of a provider.
type counting struct {
	*memory.Provider
	encrypts, blocks             atomic.Int64
	versions, currents, metadata atomic.Int64

	before func(ctx context.Context, call string) error // nil: nothing

	noMetadata bool // versions have no metadata, as those from another KMS
	orphaned   bool // no key has metadata, as in a keystore whose entry with the metadata was removed
}

// strip removes the metadata of a version if noMetadata is set.
func (p *counting) strip(v claviger.KeyVersion, err error) (claviger.KeyVersion, error) {
	if p.noMetadata {
		v.Of = nil
	}
	return v, err
}

func (p *counting) at(ctx context.Context, call string) error {
	if p.before == nil {
		return nil
	}
	return p.before(ctx, call)
}

func (p *counting) EncryptBlocks(ctx context.Context, version string, blocks []byte) error {
	p.encrypts.Add(1)
	p.blocks.Add(int64(len(blocks) / 16))
	if err := p.at(ctx, "EncryptBlocks"); err != nil {
		return err
	}
	return p.Provider.EncryptBlocks(ctx, version, blocks)
}

func (p *counting) EncryptBlocksOf(ctx context.Context, v claviger.KeyVersion, blocks []byte) error {
	p.encrypts.Add(1)
	p.blocks.Add(int64(len(blocks) / 16))
	if err := p.at(ctx, "EncryptBlocks"); err != nil {
		return err
	}
	return p.Provider.EncryptBlocksOf(ctx, v, blocks)
}

func (p *counting) Version(ctx context.Context, version string) (claviger.KeyVersion, error) {
	p.versions.Add(1)
	if err := p.at(ctx, "Version"); err != nil {
		return claviger.KeyVersion{}, err
	}
	return p.strip(p.Provider.Version(ctx, version))
}

func (p *counting) Current(ctx context.Context, key string) (claviger.KeyVersion, error) {
	p.currents.Add(1)
	if err := p.at(ctx, "Current"); err != nil {
		return claviger.KeyVersion{}, err
	}
	return p.strip(p.Provider.Current(ctx, key))
}

func (p *counting) Versions(ctx context.Context, key string) ([]claviger.KeyVersion, error) {
	if err := p.at(ctx, "Versions"); err != nil {
		return nil, err
	}
	vs, err := p.Provider.Versions(ctx, key)
	for i := range vs {
		vs[i], _ = p.strip(vs[i], nil)
	}
	return vs, err
}

func (p *counting) Metadata(ctx context.Context, names ...string) ([]*claviger.Metadata, error) {
	p.metadata.Add(1)
	if err := p.at(ctx, "Metadata"); err != nil {
		return nil, err
	}
	if p.orphaned {
		return make([]*claviger.Metadata, len(names)), nil
	}
	return p.Provider.Metadata(ctx, names...)
}

func (p *counting) RollIf(ctx context.Context, key string, material secret.Bytes,
	may func(*claviger.Metadata) error) (claviger.KeyVersion, error) {
	if err := p.at(ctx, "Change"); err != nil {
		return claviger.KeyVersion{}, err
	}
	return p.Provider.RollIf(ctx, key, material, may)
}

func (p *counting) DeleteIf(ctx context.Context, key string, may func(*claviger.Metadata) error) error {
	if err := p.at(ctx, "Change"); err != nil {
		return err
	}
	return p.Provider.DeleteIf(ctx, key, may)
}

func (p *counting) Create(ctx context.Context, s provider.Spec) (claviger.KeyVersion, error) {
	if err := p.at(ctx, "Create "+s.Name); err != nil {
		return claviger.KeyVersion{}, err
	}
	return p.Provider.Create(ctx, s)
}

// farKMS is another KMS: it opens EDEKs and does not show its key material. At its address a listener of the test
// listens, or no process.
type farKMS struct {
	provider.Provider
	blocks provider.BlockEncrypter
	uri    string

	mu   sync.Mutex
	seen []string // "as/version/count" of each Unwrap
	fail func(ctx context.Context) error
}

func newFarKMS(t testing.TB, uri string, keys ...string) *farKMS {
	p := memory.New(memory.Config{URI: uri, SequentialIDs: true})
	t.Cleanup(func() { _ = p.Close() })
	for _, key := range keys {
		create(t, p, key)
	}
	return &farKMS{Provider: p, blocks: p, uri: uri}
}

func (k *farKMS) URI() string { return k.uri }

func (k *farKMS) setFail(f func(context.Context) error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.fail = f
}

func (k *farKMS) at(ctx context.Context) error {
	k.mu.Lock()
	f := k.fail
	k.mu.Unlock()
	if f == nil {
		return nil
	}
	return f(ctx)
}

func (k *farKMS) Metadata(ctx context.Context, names ...string) ([]*claviger.Metadata, error) {
	k.record("metadata/" + names[0])
	if err := k.at(ctx); err != nil {
		return nil, err
	}
	return k.Provider.Metadata(ctx, names...)
}

func (k *farKMS) Keys(ctx context.Context) ([]string, error) {
	if err := k.at(ctx); err != nil {
		return nil, err
	}
	return k.Provider.Keys(ctx)
}

func (k *farKMS) Version(ctx context.Context, version string) (claviger.KeyVersion, error) {
	k.record("version/" + version)
	if err := k.at(ctx); err != nil {
		return claviger.KeyVersion{}, err
	}
	return k.Provider.Version(ctx, version)
}

func (k *farKMS) Generate(ctx context.Context, key string, n int) ([]claviger.EDEK, error) {
	if err := k.at(ctx); err != nil {
		return nil, err
	}
	v, err := k.Current(ctx, key)
	if err != nil {
		return nil, err
	}
	return eek.Generate(ctx, k.blocks, v.Name, v.BitLength/8, n, nil)
}

func (k *farKMS) Unwrap(ctx context.Context, key, as string, edeks []claviger.EDEK) ([]secret.Bytes, error) {
	k.record(fmt.Sprintf("%s/%s/%d", as, edeks[0].Version, len(edeks)))
	if err := k.at(ctx); err != nil {
		return nil, err
	}
	for _, e := range edeks {
		v, err := k.Provider.Version(ctx, e.Version)
		if err != nil {
			return nil, err
		}
		if v.Key != key {
			return nil, claviger.Errorf("far.Unwrap", claviger.WrongKey, e.Version, "not of key %s", key)
		}
	}
	return eek.Unwrap(ctx, k.blocks, edeks)
}

func (k *farKMS) Reencrypt(ctx context.Context, key string, edeks []claviger.EDEK) ([]claviger.EDEK, error) {
	k.record(fmt.Sprintf("reencrypt/%s/%d", key, len(edeks)))
	v, err := k.Current(ctx, key)
	if err != nil {
		return nil, err
	}
	return eek.Reencrypt(ctx, k.blocks, k.blocks, v.Name, edeks)
}

func (k *farKMS) record(s string) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.seen = append(k.seen, s)
}

// calls returns the calls since the last call of calls.
func (k *farKMS) calls() []string {
	k.mu.Lock()
	defer k.mu.Unlock()
	calls := k.seen
	k.seen = nil
	return calls
}

// blackhole starts a listener that accepts connections and never answers. It returns a function that calls the
// listener.
func blackhole(t testing.TB) func(ctx context.Context) error {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	return func(ctx context.Context) error {
		c, err := (&net.Dialer{}).DialContext(ctx, "tcp", l.Addr().String())
		if err != nil {
			return claviger.E("far", claviger.Unavailable, "", err)
		}
		defer func() { _ = c.Close() }()
		stop := context.AfterFunc(ctx, func() { _ = c.SetReadDeadline(time.Unix(1, 0)) })
		defer stop()
		_, err = c.Read(make([]byte, 1))
		return claviger.E("far", claviger.Unavailable, "", err)
	}
}

func create(t testing.TB, p provider.Provider, key string) claviger.KeyVersion {
	t.Helper()
	v, err := p.Create(t.Context(), provider.Spec{
		Name: key, Cipher: claviger.DefaultCipher, BitLength: 128,
		Attributes: map[string]string{claviger.ACLNameAttribute: key},
	})
	if err != nil {
		t.Fatal(err)
	}
	return v
}

// testRing is a Ring over a memory provider that counts.
type testRing struct {
	*Ring
	primary *counting
	audit   *auditLog
	past    *journal // nil if there is no source
}

// newTestRing builds a Ring. change, if not nil, changes its Config first.
func newTestRing(t testing.TB, change func(*Config)) *testRing {
	t.Helper()
	l := &testRing{primary: &counting{Provider: memory.New(memory.Config{SequentialIDs: true})}, audit: &auditLog{}}
	cfg := config(t, l.primary)
	cfg.Audit = l.audit
	if change != nil {
		change(&cfg)
	}
	var err error
	if l.Ring, err = New(cfg); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := l.Close(); err != nil {
			t.Error(err)
		}
		_ = l.primary.Provider.Close()
	})
	return l
}

func config(t testing.TB, primary provider.Provider) Config {
	return Config{
		Primary: primary, Policy: rules(t, everything...), KeyAuthorization: true, Audit: noAudit{},
		CacheEnable: true, CacheTimeout: 10 * time.Minute, CurrentCacheTimeout: 30 * time.Second,
		QueueSize: 100, QueueLowWatermark: 0.3, QueueExpiry: 12 * time.Hour, QueueFillers: 2,
	}
}

// edeks makes n EDEKs through the Ring, and returns them with their DEKs.
func (l *testRing) edeks(t testing.TB, key string, n int) ([]claviger.EDEK, []secret.Bytes) {
	t.Helper()
	es, err := l.Generate(t.Context(), caller("maker"), key, n)
	if err != nil {
		t.Fatal(err)
	}
	return es, unwrapped(t, l.primary.Provider, es)
}

// fillQueue takes the first EDEK of the key, returns it, and waits until the key's queue is full. Then no refill is
// running, so a test may change the primary's hooks.
func fillQueue(t testing.TB, l *testRing, key string) []claviger.EDEK {
	t.Helper()
	es, _ := l.edeks(t, key, 1)
	for end := time.Now().Add(10 * time.Second); l.Queued() < 100; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%d EDEKs are ready; the queue does not fill", l.Queued())
		}
	}
	return es
}

func unwrapped(t testing.TB, by provider.BlockEncrypter, es []claviger.EDEK) []secret.Bytes {
	t.Helper()
	deks, err := eek.Unwrap(t.Context(), by, es)
	if err != nil {
		t.Fatal(err)
	}
	return deks
}

// newEDEKs makes n EDEKs of the version without the Ring, and returns them with their DEKs.
func newEDEKs(t testing.TB, by provider.BlockEncrypter, version string, n int) ([]claviger.EDEK, []secret.Bytes) {
	t.Helper()
	es, err := eek.Generate(t.Context(), by, version, 16, n, nil)
	if err != nil {
		t.Fatal(err)
	}
	return es, unwrapped(t, by, es)
}

func wantKind(t testing.TB, err error, kind claviger.Kind) {
	t.Helper()
	if err == nil {
		t.Fatalf("no error, want kind %v", kind)
	}
	if got := claviger.KindOf(err); got != kind {
		t.Fatalf("kind %v (%v), want %v", got, err, kind)
	}
}

// text returns the text of an error that the caller sees.
func text(t testing.TB, err error) string {
	t.Helper()
	e, ok := err.(*claviger.Error)
	if !ok {
		t.Fatalf("%T is not a *claviger.Error", err)
	}
	if e.Err == nil {
		return ""
	}
	return e.Err.Error()
}
