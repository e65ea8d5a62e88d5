package keytrustee_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"log/slog"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"claviger"
	"claviger/provider"
	"claviger/provider/keytrustee"
	"claviger/provider/providertest"
	"claviger/trustee"
	"claviger/trustee/server"
	"claviger/trustee/server/sqlite"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// ids are made once, because making an RSA key is slow.
var ids = sync.OnceValue(func() [2]*trustee.Identity {
	var list [2]*trustee.Identity
	for i := range list {
		var err error
		if list[i], err = trustee.NewIdentity("keytrustee", "test", fmt.Sprintf("kms@host%d", i), 2048,
			time.Now()); err != nil {
			panic(err)
		}
	}
	return list
})

// site is a Key Trustee Server, and a KMS's configuration folder.
type site struct {
	t     *testing.T
	store server.Store
	web   *httptest.Server
	conf  string // folder with kts-site.xml
	env   provider.Env
	set   map[string]string // properties
	log   bytes.Buffer
}

func newSite(t *testing.T) *site {
	t.Helper()
	s := &site{t: t, conf: t.TempDir(), set: map[string]string{}}
	var err error
	if s.store, err = sqlite.Open(t.Context(), filepath.Join(t.TempDir(), "k.db"), true); err != nil {
		t.Fatal(err)
	}
	if err := s.store.AddOrg(t.Context(), server.Org{Name: "ORG", UUID: "u1", Auth: "s3cret",
		Created: time.Now()}); err != nil {
		t.Fatal(err)
	}
	s.web = httptest.NewTLSServer(server.New(server.Config{Identity: ids()[0], Store: s.store}))
	t.Cleanup(func() {
		s.web.Close()
		if err := s.store.Close(); err != nil {
			t.Error(err)
		}
	})
	s.kts("hostname-ACTIVE", strings.TrimPrefix(s.web.URL, "https://"), "org", "ORG", "auth", "s3cret", "keylength",
		"2048", "roundrobin", "true", "pool.max", "5", "usepool", "true")
	s.env = provider.Env{
		Get:     func(name string) (string, bool) { v, ok := s.set[name]; return v, ok },
		Getenv:  func(string) string { return "" },
		ConfDir: s.conf,
		Log:     slog.New(slog.NewTextHandler(&s.log, nil)),
	}
	return s
}

// kts writes kts-site.xml.
func (s *site) kts(pairs ...string) {
	s.t.Helper()
	text := "<configuration>\n"
	for i := 0; i < len(pairs); i += 2 {
		text += "<property><name>cloudera.trustee.keyprovider." + pairs[i] + "</name><value>" + pairs[i+1] +
			"</value></property>\n"
	}
	if err := os.WriteFile(filepath.Join(s.conf, "kts-site.xml"), []byte(text+"</configuration>\n"),
		0o600); err != nil {
		s.t.Fatal(err)
	}
}

func (s *site) tls(provider.Env) (*tls.Config, error) {
	roots := x509.NewCertPool()
	roots.AddCert(s.web.Certificate())
	return &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12}, nil
}

func (s *site) open(path string) (provider.Provider, error) {
	return keytrustee.Scheme(s.tls).Open(s.t.Context(), "keytrustee://file@"+path, s.env)
}

func (s *site) must(path string) provider.Provider {
	s.t.Helper()
	p, err := s.open(path)
	if err != nil {
		s.t.Fatal(err)
	}
	return p
}

// TestConformance: the provider passes the suite of all providers.
func TestConformance(t *testing.T) {
	s := newSite(t)
	folder := filepath.Join(t.TempDir(), ".keytrustee")
	providertest.Run(t, providertest.Suite{
		New: func(*testing.T) provider.Provider { return s.must(folder) },
		Reopen: func(t *testing.T, p provider.Provider) provider.Provider {
			if err := p.Close(); err != nil {
				t.Error(err)
			}
			return s.must(folder)
		},
		Objects: func(t *testing.T, _ provider.Provider) int {
			n := 0
			err := s.store.Export(t.Context(), func(r server.Record) error {
				if r.Deposit != nil && strings.HasPrefix(r.Deposit.Label, "version/") {
					n++
				}
				return nil
			})
			if err != nil {
				t.Fatal(err)
			}
			return n
		},
		SoftDeletes: true, TakesMaterial: true, ShowsMaterial: true, Many: 8,
		Refused: []string{strings.Repeat("x", 500), "no\x00zero"},
	})
}

// TestDestroys checks that Delete leaves nothing of a key if soft delete is off.
func TestDestroys(t *testing.T) {
	s := newSite(t)
	s.set["claviger.delete.soft"] = "false"
	p := s.must(filepath.Join(t.TempDir(), ".keytrustee"))
	defer p.Close()
	for _, name := range []string{"a", "a@b", "a/b"} {
		if _, err := p.Create(t.Context(), provider.Spec{Name: name, Cipher: claviger.DefaultCipher,
			BitLength: 128}); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := p.Roll(t.Context(), "a", nil); err != nil {
		t.Fatal(err)
	}
	if err := p.Delete(t.Context(), "a"); err != nil {
		t.Fatal(err)
	}
	var left []string
	if err := s.store.Export(t.Context(), func(r server.Record) error {
		if r.Deposit != nil {
			label, _, _ := strings.Cut(r.Deposit.Label, "@")
			left = append(left, label)
		}
		return nil
	}); err != nil || len(left) != 4 {
		t.Errorf("left: %q, %v", left, err)
	}
	if keys, err := p.Keys(t.Context()); err != nil || len(keys) != 2 {
		t.Errorf("%q, %v", keys, err)
	}
}

// TestOneIdentity checks that a host with another identity than the first host of the KMS does not start, and that the
// message names the files to copy.
func TestOneIdentity(t *testing.T) {
	s := newSite(t)
	one, two := filepath.Join(t.TempDir(), ".keytrustee"), filepath.Join(t.TempDir(), ".keytrustee")
	p := s.must(one)
	v, err := p.Create(t.Context(), provider.Spec{Name: "k", Cipher: claviger.DefaultCipher, BitLength: 256})
	if err != nil {
		t.Fatal(err)
	}
	_, err = s.open(two)
	first, lerr := trustee.LoadFolder(one)
	if lerr != nil {
		t.Fatal(lerr)
	}
	for _, want := range []string{"Unable to verify private key match between KMS hosts. Verify private key files " +
		"have been synced between all KMS hosts. Aborting to prevent data inconsistency.",
		first.Identity.Fingerprint(), "keytrustee.conf, pubring.gpg and secring.gpg in " + two, "orgtool add"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Fatalf("%v; want %q", err, want)
		}
	}
	// Follow the message.
	copyFolder(t, one, two)
	q := s.must(two)
	got, err := q.Version(t.Context(), v.Name)
	if err != nil || !got.Material.Equal(v.Material) {
		t.Errorf("%v", err)
	}
	closeBoth := func() {
		for _, c := range []provider.Provider{p, q} {
			if err := c.Close(); err != nil {
				t.Error(err)
			}
		}
	}
	closeBoth()

	// A shared organization accepts a second identity. Without the property, the second identity is refused again.
	three := filepath.Join(t.TempDir(), ".keytrustee")
	s.set["claviger.keytrustee.shared.organization"] = "true"
	if err := s.must(three).Close(); err != nil {
		t.Error(err)
	}
	delete(s.set, "claviger.keytrustee.shared.organization")
	if _, err := s.open(three); err == nil || !strings.Contains(err.Error(), "Unable to verify private key match") {
		t.Errorf("%v", err)
	}
	if err := s.must(one).Close(); err != nil {
		t.Error(err)
	}
	if err := s.store.SetState(t.Context(), first.Identity.Fingerprint(), server.Disabled); err != nil {
		t.Fatal(err)
	}
	if err := s.must(three).Close(); err != nil {
		t.Error(err)
	}
	if _, err := s.open(one); err == nil || !strings.Contains(err.Error(), "is disabled") ||
		!strings.Contains(err.Error(), "enable-client") {
		t.Errorf("a disabled client: %v", err)
	}
}

func copyFolder(t *testing.T, from, to string) {
	t.Helper()
	for _, name := range []string{trustee.ConfFile, trustee.PublicRing, trustee.PrivateRing} {
		b, err := os.ReadFile(filepath.Join(from, name))
		if err == nil {
			err = os.WriteFile(filepath.Join(to, name), b, 0o600)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}

// TestRefusals checks the messages about a wrong configuration.
func TestRefusals(t *testing.T) {
	s := newSite(t)
	host := strings.TrimPrefix(s.web.URL, "https://")
	fresh := func() string { return filepath.Join(t.TempDir(), ".keytrustee") }
	for name, tt := range map[string]struct {
		kts    []string
		source bool
		want   string
	}{
		"no host":  {[]string{"org", "ORG"}, false, "hostname-ACTIVE is not set"},
		"bad host": {[]string{"hostname-ACTIVE", "https://x/"}, false, "it must be the name of a host"},
		"no org":   {[]string{"hostname-ACTIVE", host, "keylength", "2048"}, false, "org is not set"},
		"wrong secret": {[]string{"hostname-ACTIVE", host, "org", "ORG", "auth", "guess-me", "keylength", "2048"},
			false, "the organization or its secret is wrong"},
		"protocol": {[]string{"hostname-ACTIVE", host, "protocol", "xml"}, false, "the only value is json-encrypt"},
		"both auths": {[]string{"hostname-ACTIVE", host, "auth", "guess-me", "auth.file", "/x"}, false,
			"keep the file"},
		"pool": {[]string{"hostname-ACTIVE", host, "pool.max", "many"}, false, "pool.max"},
		"no server": {[]string{"hostname-ACTIVE", "127.0.0.1:1", "org", "ORG", "keylength", "2048"}, false,
			"no Key Trustee Server sent its identity"},
		"a source": {[]string{"hostname-ACTIVE", host, "org", "ORG", "auth", "s3cret"}, true, "or is empty"},
	} {
		s.kts(tt.kts...)
		s.env.Source = tt.source
		_, err := s.open(fresh())
		if err == nil || !strings.Contains(err.Error(), tt.want) || strings.Contains(err.Error(), "guess-me") {
			t.Errorf("%s: %v; want %q", name, err, tt.want)
		}
	}
	if strings.Contains(s.log.String(), "guess-me") {
		t.Error("the log holds the organization's secret")
	}
	s.env.Source = false
	s.kts("hostname-ACTIVE", host, "hostnam-PASSIVE", "h", "org", "ORG", "auth", "s3cret", "keylength", "2048")
	s.log.Reset()
	if err := s.must(fresh()).Close(); err != nil {
		t.Error(err)
	}
	if !strings.Contains(s.log.String(), "did you mean cloudera.trustee.keyprovider.hostname-PASSIVE?") {
		t.Errorf("log: %s", &s.log)
	}
}

// TestSecretFiles checks that SecretFiles returns the file with the organization's secret: kts-site.xml, or the file
// that kts-site.xml names.
func TestSecretFiles(t *testing.T) {
	s := newSite(t)
	site, auth := filepath.Join(s.conf, "kts-site.xml"), filepath.Join(s.conf, "org.auth")
	if err := os.WriteFile(auth, []byte("s3cret\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for want, pairs := range map[string][]string{site: {"auth", "s3cret"}, auth: {"auth.file", auth}} {
		s.kts(append(pairs, "hostname-ACTIVE", "kts1", "org", "ORG")...)
		var paths []string
		for _, f := range keytrustee.SecretFiles("", s.conf) {
			paths = append(paths, f.Path)
		}
		if !slices.Equal(paths, []string{want}) {
			t.Errorf("%q: %q", pairs, paths)
		}
	}
}

// TestFolderFirst checks that no identity is made if its folder cannot be made.
func TestFolderFirst(t *testing.T) {
	s := newSite(t)
	_, err := s.open("/proc/nowhere/.keytrustee")
	if err == nil || !strings.Contains(err.Error(), "/proc/nowhere") {
		t.Errorf("a folder that cannot be made: %v", err)
	}
	if strings.Contains(s.log.String(), "identity") {
		t.Errorf("log: %s", &s.log)
	}
}

// TestNested checks the message about a folder that scp -r copied one level too deep. A new folder must not be made.
func TestNested(t *testing.T) {
	s := newSite(t)
	base := t.TempDir()
	good := filepath.Join(base, "kms-keytrustee", "kms-keytrustee", "keytrustee", ".keytrustee")
	if err := s.must(good).Close(); err != nil {
		t.Fatal(err)
	}
	_, err := s.open(filepath.Join(base, "kms-keytrustee", "keytrustee", ".keytrustee"))
	if err == nil || !strings.Contains(err.Error(), "one level too deep") || !strings.Contains(err.Error(), good) {
		t.Error(err)
	}
}

// TestExpiry checks that material in memory serves while the Key Trustee Server does not answer, and that it is wiped
// after its time.
func TestExpiry(t *testing.T) {
	s := newSite(t)
	folder := filepath.Join(t.TempDir(), ".keytrustee")
	s.set["claviger.keytrustee.material.life"] = "1s"
	p := s.must(folder)
	defer p.Close()
	v, err := p.Create(t.Context(), provider.Spec{Name: "k", Cipher: claviger.DefaultCipher, BitLength: 256})
	if err != nil {
		t.Fatal(err)
	}
	s.web.Close()
	enc := p.(provider.BlockEncrypter)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	if err := enc.EncryptBlocks(ctx, v.Name, make([]byte, 16)); err != nil {
		t.Logf("the material expired already on this slow machine: %v", err)
	}
	time.Sleep(1100 * time.Millisecond) // the material expires after one second
	if err := enc.EncryptBlocks(ctx, v.Name, make([]byte, 16)); !claviger.Is(err, claviger.Unavailable) {
		t.Errorf("after the material expired: %v", err)
	}
	if err := p.(provider.Health).Check(ctx); !claviger.Is(err, claviger.Unavailable) {
		t.Errorf("Check: %v", err)
	}
}

// TestStrays checks that a change removes old versions of interrupted changes, and no version of a live or deleted key.
func TestStrays(t *testing.T) {
	s := newSite(t)
	folder := filepath.Join(t.TempDir(), ".keytrustee")
	if err := s.must(folder).Close(); err != nil {
		t.Fatal(err)
	}
	f, err := trustee.LoadFolder(folder)
	if err != nil {
		t.Fatal(err)
	}
	conf, _ := s.tls(s.env)
	clockAhead := 0 * time.Hour
	now := func() time.Time { return time.Now().Add(clockAhead) }
	box, err := trustee.NewClient(trustee.ClientConfig{Identity: f.Identity,
		Servers: []trustee.Endpoint{{URL: s.web.URL, Server: f.Servers[0]}}, TLS: conf})
	if err != nil {
		t.Fatal(err)
	}
	defer box.Close()
	p := keytrustee.New(keytrustee.Config{URI: "keytrustee:", Box: box, Identity: f.Identity, SoftDelete: true,
		Now: now})
	defer p.Close()
	spec := provider.Spec{Name: "k", Cipher: claviger.DefaultCipher, BitLength: 256}
	old, err := p.Create(t.Context(), spec)
	if err != nil {
		t.Fatal(err)
	}
	if err := p.Delete(t.Context(), "k"); err != nil {
		t.Fatal(err)
	}
	sealed, err := f.Identity.Seal([]byte("{}"), time.Now())
	if err != nil {
		t.Fatal(err)
	}
	for _, label := range []string{"version/k@stray", "version/k@x@stray"} { // the second one belongs to key k@x
		if _, err := box.Put(t.Context(), trustee.Deposit{Label: label, Content: sealed}, ""); err != nil {
			t.Fatal(err)
		}
	}
	has := func(label string) bool {
		_, err := box.Find(t.Context(), label)
		return err == nil
	}
	if _, err := p.Create(t.Context(), spec); err != nil {
		t.Fatal(err)
	}
	if !has("version/k@stray") {
		t.Error("a version that a running change may still use was removed")
	}
	clockAhead = 2 * time.Hour
	if _, err := p.Roll(t.Context(), "k", nil); err != nil {
		t.Fatal(err)
	}
	if has("version/k@stray") || !has("version/k@x@stray") {
		t.Errorf("stray: %t, another key's: %t", has("version/k@stray"), has("version/k@x@stray"))
	}
	if err := p.Delete(t.Context(), "k"); err != nil {
		t.Fatal(err)
	}
	if err := p.Purge(t.Context(), "no such key"); !claviger.Is(err, claviger.KeyNotFound) {
		t.Error(err)
	}
	if list, err := p.Deleted(t.Context()); err != nil || len(list) != 2 || list[0].List[0] != old.Name {
		t.Errorf("%+v, %v", list, err)
	}
	if !has("version/" + old.Name) {
		t.Error("a version of a deleted key was removed")
	}
}

// TestFirstStartKilled checks that a KT KMS that was killed while it made its identity makes a new one at the next
// start. Nothing was encrypted to the unfinished identity.
func TestFirstStartKilled(t *testing.T) {
	s := newSite(t)
	path := filepath.Join(t.TempDir(), ".keytrustee")
	if _, err := trustee.NewFolder(path, ids()[1]); err != nil {
		t.Fatal(err)
	}
	ring := filepath.Join(path, trustee.PrivateRing)
	for i, left := range [][]string{{trustee.PublicRing, trustee.ConfFile}, {trustee.PublicRing}, {}} {
		if err := os.Rename(ring, ring+".new"); err != nil { // NewFolder renames the ring last
			t.Fatal(err)
		}
		for _, name := range []string{trustee.PublicRing, trustee.ConfFile} {
			if !slices.Contains(left, name) {
				if err := os.Remove(filepath.Join(path, name)); err != nil {
					t.Fatal(err)
				}
			}
		}
		s.env.Source = true
		if _, err := s.open(path); err == nil || !strings.Contains(err.Error(), "killed while it made the identity") {
			t.Errorf("%d files left, as a source: %v", len(left), err)
		}
		s.env.Source = false
		p := s.must(path)
		if _, err := p.Create(t.Context(), provider.Spec{Name: fmt.Sprint("k", i), Cipher: claviger.DefaultCipher,
			BitLength: 128}); err != nil {
			t.Error(err)
		}
		if err := p.Close(); err != nil {
			t.Error(err)
		}
		f, err := trustee.LoadFolder(path)
		if err != nil || f.Identity.String() == ids()[1].String() || f.Registered.IsZero() {
			t.Fatalf("%d files left: %+v, %v", len(left), f, err)
		}
		if _, err := os.Stat(ring + ".new"); err == nil {
			t.Error("the ring exists under both names")
		}
		for _, step := range []error{ // for the next round
			s.store.SetState(t.Context(), f.Identity.Fingerprint(), server.Disabled),
			os.Remove(path + "." + keytrustee.ServedFile),
		} {
			if step != nil {
				t.Fatal(step)
			}
		}
	}
}
