package hadoop

import (
	"context"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"claviger/trustee"
)

// organization is the organization of a test's KMS at its Key Trustee Server.
const organization = "SITE"

// storePassword is the password of the truststores that keytool makes.
const storePassword = "changeit"

// Trustee is a running Key Trustee Server of claviger.
type Trustee struct {
	*Process
	Dir  string // its folder
	Host string // host:port, as kts-site.xml wants it
	Auth string // the organization's secret
}

// StartTrustee makes a Key Trustee Server with an organization, and runs it.
func StartTrustee(t testing.TB) *Trustee {
	t.Helper()
	k := &Trustee{Dir: filepath.Join(t.TempDir(), ".keytrustee")}
	Claviger(t, nil, "trustee", "init", "--confdir", k.Dir, "--hostname", "127.0.0.1")
	var orgs map[string]struct {
		Auth string `json:"auth_secret"`
	}
	out := Claviger(t, nil, "orgtool", "add", "--confdir", k.Dir, "-n", organization, "-c", "keys@example.com")
	if err := json.Unmarshal([]byte(out), &orgs); err != nil {
		t.Fatalf("claviger orgtool add printed %q: %v", out, err)
	}
	k.Auth = orgs[organization].Auth
	ready := filepath.Join(t.TempDir(), "ready")
	cmd := exec.CommandContext(context.Background(), Binary(t), "trustee", "serve", "--confdir", k.Dir, "--listen",
		"127.0.0.1:0", "--ready-file", ready)
	cmd.Env = cleanEnv()
	k.Process = startChecked(t, "trustee", cmd)
	k.WaitFor("its ready file", func() bool {
		b, err := os.ReadFile(ready)
		k.Host = strings.TrimPrefix(strings.TrimSpace(string(b)), "https://")
		return err == nil && strings.HasSuffix(string(b), "\n")
	})
	return k
}

// Truststore makes a truststore with keytool, of the type "JKS" or "PKCS12", with the certificate of the server.
// It returns the properties that make a KMS trust the server.
func (k *Trustee) Truststore(t testing.TB, storeType string) Conf {
	t.Helper()
	file := filepath.Join(t.TempDir(), "truststore."+strings.ToLower(storeType))
	ctx, cancel := context.WithTimeout(context.Background(), startTimeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, "keytool", "-importcert", "-noprompt", "-alias", "trustee", "-file",
		filepath.Join(k.Dir, ".ssl", "ssl-cert-keytrustee.pem"),
		"-keystore", file, "-storetype", storeType, "-storepass", storePassword)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("keytool: %v\n%s", err, out)
	}
	return Conf{"claviger.ssl.truststore": file, "claviger.ssl.truststore.type": strings.ToLower(storeType),
		"claviger.ssl.truststore.password": storePassword}
}

// WriteSite writes the kts-site.xml of a KMS of the organization.
func (k *Trustee) WriteSite(t testing.TB, dir string) {
	t.Helper()
	const prefix = "cloudera.trustee.keyprovider."
	Conf{
		prefix + "hostname-ACTIVE": k.Host,
		prefix + "org":             organization,
		prefix + "auth":            k.Auth,
		prefix + "keylength":       "2048", // 4096 bits take seconds
	}.Write(t, filepath.Join(dir, "kts-site.xml"))
}

// TrusteeKMS is a KMS with its keys at a Key Trustee Server.
type TrusteeKMS struct {
	*KMS
	Folder string // .keytrustee
	conf   string
}

// StartTrusteeKMS runs claviger as a Key Trustee KMS. kts-site.xml is beside its kms-site.xml, which gets the
// properties of site. folder is the .keytrustee folder, and is made if it is missing. env is added to the
// environment.
func (k *Trustee) StartTrusteeKMS(t testing.TB, folder string, acls, site Conf, env ...string) *TrusteeKMS {
	t.Helper()
	dir := t.TempDir()
	k.WriteSite(t, dir)
	Conf{
		"hadoop.kms.http.host":        "127.0.0.1",
		"hadoop.kms.key.provider.uri": "keytrustee://file@" + folder,
		"claviger.metastore.uri":      "sqlite://" + filepath.Join(dir, "claviger.db"),
	}.With(site).Write(t, filepath.Join(dir, "kms-site.xml"))
	acls.Write(t, filepath.Join(dir, "kms-acls.xml"))
	noGroups.Write(t, filepath.Join(dir, "core-site.xml"))
	return &TrusteeKMS{KMS: StartClaviger(t, ClavigerOptions{Conf: dir, Env: env}), Folder: folder, conf: dir}
}

// CopyTo copies the folder of the KMS and its kts-site.xml into dir, like an operator who copies them to another
// host. It returns the copy of the folder.
func (k *TrusteeKMS) CopyTo(t testing.TB, dir string) string {
	t.Helper()
	folder := filepath.Join(dir, ".keytrustee")
	if err := os.Mkdir(folder, 0o700); err != nil {
		t.Fatal(err)
	}
	for from, to := range map[string]string{
		filepath.Join(k.Folder, trustee.ConfFile):    filepath.Join(folder, trustee.ConfFile),
		filepath.Join(k.Folder, trustee.PublicRing):  filepath.Join(folder, trustee.PublicRing),
		filepath.Join(k.Folder, trustee.PrivateRing): filepath.Join(folder, trustee.PrivateRing),
		filepath.Join(k.conf, "kts-site.xml"):        filepath.Join(dir, "kts-site.xml"),
	} {
		b, err := os.ReadFile(from)
		if err == nil {
			err = os.WriteFile(to, b, 0o600)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	return folder
}
