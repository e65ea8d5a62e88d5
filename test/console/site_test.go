package console

import (
	"context"
	"encoding/json"
	"log/slog"
	"maps"
	"net/http"
	"net/url"
	"path/filepath"
	"strings"
	"testing"

	"claviger/hadoopconf"
	"claviger/internal/kdctest"
	"claviger/internal/porttest"
	"claviger/kms"
	"claviger/kms/kmstest"
)

// hostile is the name of a key that would be code if a page did not escape it.
const hostile = `<script>document.title="owned"</script><img src=x onerror="document.title='owned'">"'&amp;` + "\u202e"

// site is a KMS with a web console.
type site struct {
	t       *testing.T
	dir     string
	conf    map[string]string
	console string // base URL
	kms     string // base URL, with /kms
	stop    func() error
	wrapped edek // of a key version in the source
}

// edek is an EDEK as the REST API writes it.
type edek struct {
	Version   string `json:"versionName"`
	IV        string
	Encrypted struct{ Material string } `json:"encryptedKeyVersion"`
}

// newSite starts a KMS on an HSM that takes keys over from a keystore file, and adds keys, one with a hostile name. The
// KMS has simple authentication until kerberize.
func newSite(t *testing.T) *site {
	t.Helper()
	source := t.TempDir()
	uri := "jceks://file@" + filepath.Join(source, "old.keystore")
	simple := map[string]string{"hadoop.kms.http.host": "127.0.0.1", "hadoop.kms.key.authorization.enable": "false",
		"claviger.audit.file": filepath.Join(source, "audit.log"), hadoopconf.ProviderURI: uri}
	old := &site{t: t, dir: source, conf: simple}
	old.start()
	for _, name := range []string{"finance", "hr", "ledger"} {
		old.post("/v1/keys", `{"name":"`+name+`","description":"zone /`+name+`"}`)
	}
	wrapped := old.generate("ledger")
	old.end()

	dir, conf := kmstest.HSM(t)
	s := &site{t: t, dir: dir, conf: conf, wrapped: wrapped}
	maps.Copy(conf, map[string]string{hadoopconf.SourceURI: uri, hadoopconf.InitiateMigration: "true",
		"claviger.audit.json.file": filepath.Join(dir, "audit.json"), "claviger.audit.node": "kms1.example.com",
		"hadoop.kms.key.authorization.enable": "true"})
	kmstest.WriteFile(t, filepath.Join(dir, "kms-acls.xml"), kmstest.SiteXML("default.key.acl.ALL", "root",
		"default.key.acl.READ", "alice,root", "default.key.acl.MANAGEMENT", "alice,root",
		"default.key.acl.GENERATE_EEK", "alice,root", "default.key.acl.DECRYPT_EEK", "alice,root",
		"keytrustee.kms.acl.UNDELETE", "alice"))
	s.start()
	for _, name := range []string{hostile, strings.Repeat("long", 50), "hbase", "warehouse"} {
		s.post("/v1/keys", `{"name":"`+strings.NewReplacer(`"`, `\"`).Replace(name)+`"}`)
	}
	s.request(http.MethodDelete, "/v1/key/hbase", "")
	return s
}

// start starts the KMS.
func (s *site) start() {
	s.t.Helper()
	address, err := porttest.Address()
	if err != nil {
		s.t.Fatal(err)
	}
	_, port, _ := strings.Cut(address, ":")
	s.conf["claviger.console.listen"], s.console = "localhost:"+port, "http://localhost:"+port
	kmstest.WriteSite(s.t, s.dir, s.conf)
	s.kms, s.stop = kmstest.Start(s.t, func(ctx context.Context, ready string) error {
		return kms.Serve(ctx, kms.Options{Dir: s.dir, ReadyFile: ready, Log: slog.New(slog.DiscardHandler),
			Level: new(slog.LevelVar)})
	})
}

// end stops the KMS.
func (s *site) end() {
	s.t.Helper()
	if err := s.stop(); err != nil {
		s.t.Fatal(err)
	}
}

// kerberize restarts the KMS with Kerberos, and returns the environment of processes with a ticket of alice.
func (s *site) kerberize() (env []string) {
	s.t.Helper()
	s.end()
	k := kdctest.Start(s.t)
	s.t.Setenv("KRB5_CONFIG", k.Krb5Conf)
	maps.Copy(s.conf, map[string]string{
		"hadoop.kms.authentication.type":                "kerberos",
		"hadoop.kms.authentication.kerberos.keytab":     k.Keytab("kms.keytab", "HTTP/localhost"),
		"hadoop.kms.authentication.kerberos.principal":  "HTTP/localhost",
		"hadoop.kms.authentication.kerberos.name.rules": `RULE:[1:$1@$0](.*@EXAMPLE\.TEST)s/@.*//`,
	})
	s.start()
	cache := k.Login(k.Keytab("alice.keytab", "alice"), "alice")
	return append(k.Env(), "KRB5CCNAME=FILE:"+cache)
}

func (s *site) post(path, body string) { s.t.Helper(); s.request(http.MethodPost, path, body) }

// generate makes an EDEK of a key.
func (s *site) generate(key string) edek {
	s.t.Helper()
	var list []edek
	text := s.request(http.MethodGet, "/v1/key/"+key+"/_eek?eek_op=generate&num_keys=1", "")
	if err := json.Unmarshal(text, &list); err != nil || len(list) != 1 {
		s.t.Fatalf("%s: %v", text, err)
	}
	return list[0]
}

// decrypt decrypts an EDEK.
func (s *site) decrypt(e edek) {
	s.t.Helper()
	key, _, _ := strings.Cut(e.Version, "@")
	s.post("/v1/keyversion/"+e.Version+"/_eek?eek_op=decrypt",
		`{"name":"`+key+`","iv":"`+e.IV+`","material":"`+e.Encrypted.Material+`"}`)
}

// request sends a request of root to the REST API, which must succeed, and returns the body of the answer.
func (s *site) request(method, path, body string) []byte {
	s.t.Helper()
	sep := "?"
	if strings.Contains(path, "?") {
		sep = "&"
	}
	var sent any
	if body != "" {
		sent = json.RawMessage(body)
	}
	status, text, err := kmstest.Send(s.t.Context(), http.DefaultClient, method, s.kms+path+sep+"user.name=root", sent)
	if err != nil || status >= http.StatusMultipleChoices {
		s.t.Fatalf("%s %s: %d %s, %v", method, path, status, text, err)
	}
	return text
}

// pages returns the paths of pages of the console, by short names.
func pages() map[string]string {
	return map[string]string{
		"overview": "/", "keys": "/keys", "key": "/keys?key=" + url.QueryEscape("finance"), "migration": "/migration",
		"hostile": "/keys?key=" + url.QueryEscape(hostile), "deleted": "/keys?key=hbase",
		"access": "/access?user=bob&operation=DECRYPT_EEK&key=finance", "audit": "/audit?sort=user",
	}
}
