package main

import (
	"path/filepath"
	"strings"
	"testing"

	"claviger"
	"claviger/hadoopconf"
	"claviger/kms/kmstest"
	"claviger/provider/kmsclient"
)

// shadowing is the state of TestShadowingOverTheWire.
type shadowing struct {
	t            *testing.T
	source, here *node
	payroll      sealed // an EDEK of alice's key at the source
	bob, alice   *kmsclient.Provider
}

// TestShadowingOverTheWire repeats an attack with real servers. bob may make keys. alice's key is at the source, and is
// not migrated yet. bob makes a key with that name at the new KMS, with his own rules. Then he has the new KMS open or
// re-encrypt EDEKs of the source.
func TestShadowingOverTheWire(t *testing.T) {
	s := newShadowing(t)
	_, err := s.bob.Create(t.Context(), newKey("payroll", "scratch"))
	s.refused("bob makes payroll", err, "is at the source "+kmsURI(s.source.url), "claviger migrate run")
	s.attack("before the migration")
	wantOpen(t, "alice, through the new KMS", s.alice, s.payroll)
	if _, err := s.bob.Create(t.Context(), newKey("scratchpad", "scratch")); err != nil {
		t.Errorf("bob makes a key of a free name: %v", err)
	}
	if vs, err := userClient(t, s.here.url, "mover").Migrate(t.Context(), "payroll"); err != nil || len(vs) == 0 {
		t.Fatal(vs, err)
	}
	s.attack("after the migration")
	out, err := userClient(t, s.here.url, "nn").Reencrypt(t.Context(), "payroll", []claviger.EDEK{s.payroll.edek})
	if err != nil {
		t.Fatalf("the NameNode re-encrypts: %v", err)
	}
	fresh := sealed{out[0], s.payroll.dek}
	wantOpen(t, "alice, after the re-encryption", s.alice, fresh)
	_, err = openEDEK(t, s.bob, fresh.edek)
	s.refused("bob decrypts a re-encrypted EDEK", err, "not authorized")
	s.source.stop()
	s.withoutSource()
	wantOpen(t, "alice, without the source", s.alice, fresh)
}

// newShadowing starts the source with alice's key payroll, and the new KMS.
func newShadowing(t *testing.T) *shadowing {
	t.Helper()
	t.Setenv("HADOOP_USER_NAME", "hsmkms")
	old := t.TempDir()
	kmstest.WriteFile(t, filepath.Join(old, "kms-acls.xml"),
		kmstest.SiteXML("key.acl.payroll.ALL", "alice", "key.acl.payroll.MANAGEMENT", "alice",
			"whitelist.key.acl.READ", "hsmkms", "whitelist.key.acl.DECRYPT_EEK", "hsmkms"))
	kmstest.WriteSite(t, old, map[string]string{
		hadoopconf.ProviderURI:              "jceks://file@" + filepath.Join(old, "kms.keystore"),
		"hadoop.kms.http.host":              "127.0.0.1",
		"claviger.audit.file":               filepath.Join(old, "audit.log"),
		"hadoop.kms.proxyuser.hsmkms.users": "*", "hadoop.kms.proxyuser.hsmkms.hosts": "*",
	})
	s := &shadowing{t: t, source: startNode(t, old)}
	makeKey(t, s.source.kms, newKey("payroll", ""))
	s.payroll = seal(t, s.source.kms, "payroll", "")

	dir, site := kmstest.HSM(t)
	kmstest.WriteFile(t, filepath.Join(dir, "kms-acls.xml"),
		kmstest.SiteXML("key.acl.payroll.ALL", "alice", "key.acl.scratch.ALL", "bob", "key.acl.scratch.MANAGEMENT",
			"bob", "whitelist.key.acl.GENERATE_EEK", "nn", "default.key.acl.MIGRATE", "mover"))
	delete(site, "hadoop.kms.key.authorization.enable")
	site[hadoopconf.SourceURI], site[hadoopconf.ReencryptionEnable] = kmsURI(s.source.url), "true"
	kmstest.WriteSite(t, dir, site)
	s.here = startNode(t, dir)
	s.alice, s.bob = s.here.kms, userClient(t, s.here.url, "bob")
	return s
}

// attack has bob open and re-encrypt alice's EDEK.
func (s *shadowing) attack(when string) {
	s.t.Helper()
	_, err := openEDEK(s.t, s.bob, s.payroll.edek)
	s.refused(when+": bob decrypts", err, "not authorized to perform [DECRYPT_EEK]")
	out, err := s.bob.Reencrypt(s.t.Context(), "payroll", []claviger.EDEK{s.payroll.edek})
	s.refused(when+": bob re-encrypts", err)
	if err == nil {
		if dek, err := openEDEK(s.t, s.bob, out[0]); err == nil && dek.Equal(s.payroll.dek) {
			s.t.Errorf("%s: bob has alice's DEK", when)
		}
	}
}

// refused checks that a request failed, with an error that holds some texts.
func (s *shadowing) refused(what string, err error, texts ...string) {
	s.t.Helper()
	if err == nil {
		s.t.Errorf("%s succeeds", what)
		return
	}
	for _, text := range texts {
		if !strings.Contains(err.Error(), text) {
			s.t.Errorf("%s: %v lacks %q", what, err, text)
		}
	}
}

// withoutSource checks what users see while the source does not answer: a 503 that does not show the source's URI.
func (s *shadowing) withoutSource() {
	s.t.Helper()
	uri := kmsURI(s.source.url)
	_, err := s.bob.Create(s.t.Context(), newKey("another", "scratch"))
	s.refused("bob makes a key while the source does not answer", err, "key 'another' cannot be made now")
	if err != nil && strings.Contains(err.Error(), uri) {
		s.t.Errorf("bob sees the source's URI: %v", err)
	}
	if !claviger.Is(err, claviger.Unavailable) {
		s.t.Errorf("a creation while the source does not answer: %v, want a 503", err)
	}
	_, err = openEDEK(s.t, s.alice, s.payroll.edek)
	if !claviger.Is(err, claviger.Unavailable) || strings.Contains(err.Error(), uri) {
		s.t.Errorf("a decrypt while the source does not answer: %v, want a 503 without the source's URI", err)
	}
}
