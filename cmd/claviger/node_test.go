package main

import (
	"path/filepath"
	"testing"

	"claviger"
	"claviger/hadoopconf"
	"claviger/kms/kmstest"
	"claviger/provider"
	"claviger/provider/kmsclient"
	"claviger/secret"
)

// node is a KMS that a test stops and starts again. kms is a client of the user alice.
type node struct {
	t   *testing.T
	dir string // configuration folder
	url string
	kms *kmsclient.Provider
	end func() error // nil while the KMS is stopped
}

// startNode starts a KMS. It is stopped at the end of the test.
func startNode(t *testing.T, dir string) *node {
	t.Helper()
	n := &node{t: t, dir: dir}
	t.Cleanup(n.stop)
	n.start()
	return n
}

func (n *node) start() {
	n.t.Helper()
	n.url, n.end = startKMS(n.t, n.dir)
	n.kms = clientOf(n.t, n.url)
}

// stop stops the KMS, which must end without an error.
func (n *node) stop() {
	n.t.Helper()
	if n.end == nil {
		return
	}
	end := n.end
	n.end = nil
	if err := end(); err != nil {
		n.t.Error(err)
	}
}

// numberingSource starts a KMS that numbers its versions. The user hsmkms may impersonate all users there; this
// process is that user from now on.
func numberingSource(t *testing.T) *node {
	t.Helper()
	t.Setenv("HADOOP_USER_NAME", "hsmkms")
	dir := t.TempDir()
	kmstest.WriteSite(t, dir, map[string]string{
		hadoopconf.ProviderURI:                "jceks://file@" + filepath.Join(dir, "kms.keystore"),
		"hadoop.kms.http.host":                "127.0.0.1",
		"hadoop.kms.key.authorization.enable": "false", "claviger.audit.file": filepath.Join(dir, "audit.log"),
		"hadoop.kms.proxyuser.hsmkms.users": "*", "hadoop.kms.proxyuser.hsmkms.hosts": "*",
	})
	return startNode(t, dir)
}

// newKey is a key of 128 bits. Its attribute key.acl.name is aclName, unless that is "".
func newKey(name, aclName string) provider.Spec {
	spec := provider.Spec{Name: name, Cipher: claviger.DefaultCipher, BitLength: 128}
	if aclName != "" {
		spec.Attributes = map[string]string{claviger.ACLNameAttribute: aclName}
	}
	return spec
}

// makeKey makes a key at a KMS.
func makeKey(t *testing.T, p provider.Writer, spec provider.Spec) {
	t.Helper()
	if _, err := p.Create(t.Context(), spec); err != nil {
		t.Fatal(err)
	}
}

// rollKey makes a new version of a key at a KMS.
func rollKey(t *testing.T, p provider.Writer, key string) {
	t.Helper()
	if _, err := p.Roll(t.Context(), key, nil); err != nil {
		t.Fatal(err)
	}
}

// deleteKey deletes a key at a KMS.
func deleteKey(t *testing.T, p provider.Writer, key string) {
	t.Helper()
	if err := p.Delete(t.Context(), key); err != nil {
		t.Fatal(err)
	}
}

// sealed is an EDEK with its DEK.
type sealed struct {
	edek claviger.EDEK
	dek  secret.Bytes
}

// seal has a KMS make an EDEK of a key, which must be under version; "" stands for any version.
func seal(t *testing.T, p provider.EDEKService, key, version string) sealed {
	t.Helper()
	es, err := p.Generate(t.Context(), key, 1)
	if err != nil {
		t.Fatal(err)
	}
	if version != "" && es[0].Version != version {
		t.Fatalf("an EDEK is under %s, want %s", es[0].Version, version)
	}
	dek, err := openEDEK(t, p, es[0])
	if err != nil {
		t.Fatal(err)
	}
	return sealed{es[0], dek}
}

// openEDEK opens an EDEK at a KMS.
func openEDEK(t *testing.T, p provider.EDEKService, e claviger.EDEK) (secret.Bytes, error) {
	t.Helper()
	key, _ := claviger.KeyOfVersion(e.Version)
	deks, err := p.Unwrap(t.Context(), key, "", []claviger.EDEK{e})
	if err != nil {
		return nil, err
	}
	return deks[0], nil
}

// wantOpen checks that a KMS opens each EDEK to its DEK.
func wantOpen(t *testing.T, when string, p provider.EDEKService, list ...sealed) {
	t.Helper()
	for _, s := range list {
		if dek, err := openEDEK(t, p, s.edek); err != nil || !dek.Equal(s.dek) {
			t.Errorf("%s: an EDEK of %s: %v", when, s.edek.Version, err)
		}
	}
}

// wantClosed checks that a KMS refuses each EDEK.
func wantClosed(t *testing.T, when string, p provider.EDEKService, list ...sealed) {
	t.Helper()
	for _, s := range list {
		if _, err := openEDEK(t, p, s.edek); err == nil {
			t.Errorf("%s: an EDEK of %s opens", when, s.edek.Version)
		}
	}
}
