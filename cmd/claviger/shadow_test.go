package main

import (
	"path/filepath"
	"strings"
	"testing"

	"claviger"
	"claviger/hadoopconf"
	"claviger/internal/softhsm/softhsmtest"
	"claviger/kms/kmstest"
	"claviger/pkcs11"
	"claviger/provider"
	"claviger/provider/kmsclient"
)

// TestShadowingOverTheWire is what an intruder tried, on real parts: bob, who may
// make keys, makes one at the new KMS under the name of alice's, which is at the
// source and was not migrated yet, with rules of his own; then he has the source's
// EDEKs opened or re-encrypted by it.
func TestShadowingOverTheWire(t *testing.T) {
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
	sourceURL, stopSource := serveToEnd(t, old)
	stopped := false
	defer func() {
		if !stopped {
			_ = stopSource()
		}
	}()
	sourceURI := "kms://" + strings.Replace(sourceURL, "://", "@", 1)
	as := func(url, user string) *kmsclient.Provider {
		p, err := kmsclient.New("kms://"+strings.Replace(url, "://", "@", 1), kmsclient.Options{User: user})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = p.Close() })
		return p
	}
	spec := func(name, aclName string) provider.Spec {
		s := provider.Spec{Name: name, Cipher: claviger.DefaultCipher, BitLength: 128}
		if aclName != "" {
			s.Attributes = map[string]string{claviger.ACLNameAttribute: aclName}
		}
		return s
	}
	if _, err := as(sourceURL, "alice").Create(t.Context(), spec("payroll", "")); err != nil {
		t.Fatal(err)
	}
	es, err := as(sourceURL, "alice").Generate(t.Context(), "payroll", 1)
	if err != nil {
		t.Fatal(err)
	}
	deks, err := as(sourceURL, "alice").Unwrap(t.Context(), "payroll", "", es)
	if err != nil {
		t.Fatal(err)
	}

	dir, tok := t.TempDir(), softhsmtest.New(t)
	file := filepath.Join(dir, "luna.keystore")
	if err := pkcs11.WriteKeystoreFile(file, pkcs11.FileConfig{Module: tok.Module, Token: tok.Label,
		PINFile: tok.PINFile, Profile: pkcs11.SoftHSM}); err != nil {
		t.Fatal(err)
	}
	kmstest.WriteFile(t, filepath.Join(dir, "kms-acls.xml"),
		kmstest.SiteXML("key.acl.payroll.ALL", "alice", "key.acl.scratch.ALL", "bob", "key.acl.scratch.MANAGEMENT",
			"bob", "whitelist.key.acl.GENERATE_EEK", "nn", "default.key.acl.MIGRATE", "mover"))
	kmstest.WriteSite(t, dir, map[string]string{
		hadoopconf.ProviderURI: "cloudera.hsmkp://file@" + file, hadoopconf.SourceURI: sourceURI,
		hadoopconf.ReencryptionEnable: "true",
		hadoopconf.MetastoreURI:       "sqlite://" + filepath.Join(dir, "c.db"), "hadoop.kms.http.host": "127.0.0.1",
		"claviger.audit.file": filepath.Join(dir, "audit.log"),
	})
	url, end := serveToEnd(t, dir)
	defer func() {
		if err := end(); err != nil {
			t.Errorf("the new KMS ended: %v", err)
		}
	}()
	bob, alice, nn := as(url, "bob"), as(url, "alice"), as(url, "nn")
	refused := func(what string, err error, says ...string) {
		t.Helper()
		if err == nil {
			t.Errorf("%s succeeds", what)
			return
		}
		for _, s := range says {
			if !strings.Contains(err.Error(), s) {
				t.Errorf("%s: %v does not say %q", what, err, s)
			}
		}
	}
	attack := func(when string) {
		t.Helper()
		_, err := bob.Unwrap(t.Context(), "payroll", "", es)
		refused(when+": bob decrypts", err, "not authorized to perform [DECRYPT_EEK]")
		out, err := bob.Reencrypt(t.Context(), "payroll", es)
		refused(when+": bob re-encrypts", err)
		if err == nil {
			if got, err := bob.Unwrap(t.Context(), "payroll", "", out); err == nil && got[0].Equal(deks[0]) {
				t.Errorf("%s: bob has alice's DEK", when)
			}
		}
	}
	_, err = bob.Create(t.Context(), spec("payroll", "scratch"))
	refused("bob makes payroll", err, "is at the source "+sourceURI, "claviger migrate run")
	attack("before the migration")
	if got, err := alice.Unwrap(t.Context(), "payroll", "", es); err != nil || !got[0].Equal(deks[0]) {
		t.Errorf("alice, through the new KMS: %v", err)
	}
	if _, err := bob.Create(t.Context(), spec("scratchpad", "scratch")); err != nil {
		t.Errorf("bob makes a key of a free name: %v", err)
	}
	if vs, err := as(url, "mover").Migrate(t.Context(), "payroll"); err != nil || len(vs) == 0 {
		t.Fatal(vs, err)
	}
	attack("after the migration")
	out, err := nn.Reencrypt(t.Context(), "payroll", es)
	if err != nil {
		t.Fatalf("the NameNode re-encrypts: %v", err)
	}
	if got, err := alice.Unwrap(t.Context(), "payroll", "", out); err != nil || !got[0].Equal(deks[0]) {
		t.Errorf("alice, after the re-encryption: %v", err)
	}
	_, err = bob.Unwrap(t.Context(), "payroll", "", out)
	refused("bob decrypts what was re-encrypted", err, "not authorized")

	stopped = true
	if err := stopSource(); err != nil {
		t.Error(err)
	}
	_, err = bob.Create(t.Context(), spec("another", "scratch"))
	refused("bob makes a key while the source is away", err, "key 'another' cannot be made now")
	if err != nil && strings.Contains(err.Error(), sourceURI) {
		t.Errorf("bob is shown where the source is: %v", err)
	}
	_, err = alice.Unwrap(t.Context(), "payroll", "", es)
	if !claviger.Is(err, claviger.Unavailable) || strings.Contains(err.Error(), sourceURI) {
		t.Errorf("a decrypt while the source is away: %v, want a 503 without the source's URI", err)
	}
	if !claviger.Is(err, claviger.Unavailable) {
		t.Errorf("a creation while the source is away: %v, want a 503", err)
	}
	if got, err := alice.Unwrap(t.Context(), "payroll", "", out); err != nil || !got[0].Equal(deks[0]) {
		t.Errorf("alice, without the source: %v", err)
	}
}
