package zookeeper

import (
	"encoding/json"
	"io"
	"net/http"
	"net/url"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/go-zookeeper/zk"

	"claviger"
	"claviger/internal/kdctest"
	"claviger/internal/zktest"
	"claviger/metastore"
	"claviger/test/hadoop"
	"claviger/zookeeper"
)

const (
	auth   = "hadoop.kms.authentication."
	signer = auth + "signer.secret.provider"
	tokens = auth + "zk-dt-secret-manager."
	// secretNode is the default path of the secrets in kms-default.xml.
	secretNode = "/hadoop-kms/hadoop-auth-signature-secret"
)

// sharing returns the properties about ZooKeeper in the kms-site.xml of each server.
func sharing(servers, authType string) hadoop.Conf {
	return hadoop.Conf{
		signer:                                  "zookeeper",
		signer + ".zookeeper.connection.string": servers,
		signer + ".zookeeper.auth.type":         authType,
		tokens + "enable":                       "true",
		// The Java KMS reads this property, although the signer makes the connection.
		tokens + "zkAuthType": authType, auth + "token.validity": "600",
		"hadoop.kms.audit.aggregation.window.ms": "100",
		"hadoop.kms.proxyuser.alice.hosts":       "*",
		"hadoop.kms.proxyuser.alice.users":       "*",
	}
}

// startClaviger runs claviger kms with a new keystore file. again runs it again on the same files.
func startClaviger(t *testing.T, site hadoop.Conf, env ...string) (k *hadoop.KMS, again func() *hadoop.KMS) {
	t.Helper()
	dir := t.TempDir()
	hadoop.Conf{}.Write(t, filepath.Join(dir, "core-site.xml"))
	site.With(hadoop.Conf{
		"hadoop.kms.http.host":        "127.0.0.1",
		"hadoop.kms.key.provider.uri": "jceks://file@" + filepath.Join(dir, "kms.keystore"),
	}).Write(t, filepath.Join(dir, "kms-site.xml"))
	hadoop.OpenACLs().Write(t, filepath.Join(dir, "kms-acls.xml"))
	start := func() *hadoop.KMS { return hadoop.StartClaviger(t, hadoop.ClavigerOptions{Conf: dir, Env: env}) }
	return start(), start
}

// answer is the answer of a server.
type answer struct {
	status int
	body   string
	cookie string
}

var client = &http.Client{Timeout: time.Minute}

func send(t *testing.T, method, target string, header ...string) answer {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, target, nil)
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; i < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	resp, err := client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, 1<<20))
	if err != nil {
		t.Fatal(err)
	}
	a := answer{status: resp.StatusCode, body: string(body)}
	for _, c := range resp.Header["Set-Cookie"] {
		a.cookie, _, _ = strings.Cut(c, ";")
	}
	return a
}

const names = "/v1/keys/names"

// cookie logs in at a server and returns the cookie.
func cookie(t *testing.T, k *hadoop.KMS) string {
	t.Helper()
	a := send(t, http.MethodGet, k.URL+names+"?user.name=alice")
	if a.status != http.StatusOK || !strings.HasPrefix(a.cookie, "hadoop.auth=") {
		t.Fatalf("%s: %+v", k.Name, a)
	}
	return a.cookie
}

// takesCookie tries a cookie several times. A server with a late timer gets a new secret a moment after the
// others, and then clients log in again.
func takesCookie(t *testing.T, from, at *hadoop.KMS) {
	t.Helper()
	var a answer
	for range 50 {
		if a = send(t, http.MethodGet, at.URL+names, "Cookie", cookie(t, from)); a.status == http.StatusOK {
			return
		}
		time.Sleep(100 * time.Millisecond)
	}
	t.Errorf("%s refuses a cookie of %s: %+v", at.Name, from.Name, a)
}

// delegation requests a delegation token.
func delegation(t *testing.T, k *hadoop.KMS) string {
	t.Helper()
	a := send(t, http.MethodGet, k.URL+"/v1/?op=GETDELEGATIONTOKEN&renewer=yarn&user.name=alice")
	var token struct{ Token struct{ URLString string } }
	if err := json.Unmarshal([]byte(a.body), &token); err != nil || token.Token.URLString == "" {
		t.Fatalf("%s: %+v (%v)", k.Name, a, err)
	}
	return token.Token.URLString
}

// use returns the answer to a request with only a token.
func use(t *testing.T, k *hadoop.KMS, token string) answer {
	t.Helper()
	return send(t, http.MethodGet, k.URL+names, "X-Hadoop-Delegation-Token", token)
}

func renew(t *testing.T, k *hadoop.KMS, token string) int64 {
	t.Helper()
	a := send(t, http.MethodPut, k.URL+"/v1/?op=RENEWDELEGATIONTOKEN&user.name=yarn&token="+url.QueryEscape(token))
	var until struct{ Long int64 }
	if err := json.Unmarshal([]byte(a.body), &until); err != nil || a.status != http.StatusOK {
		t.Errorf("%s does not renew: %+v (%v)", k.Name, a, err)
	}
	return until.Long
}

// tokensAmong uses, renews and cancels the tokens of each server at the others.
func tokensAmong(t *testing.T, servers ...*hadoop.KMS) {
	t.Helper()
	for i, from := range servers {
		token := delegation(t, from)
		var until int64
		for _, k := range servers {
			if a := use(t, k, token); a.status != http.StatusOK {
				t.Errorf("%s refuses a token of %s: %+v", k.Name, from.Name, a)
			}
			time.Sleep(10 * time.Millisecond) // the times of two renewals must differ
			next := renew(t, k, token)
			if next <= until {
				t.Errorf("%s renews a token until %d, but it was valid until %d", k.Name, next, until)
			}
			until = next
		}
		canceller := servers[(i+1)%len(servers)]
		if a := send(t, http.MethodPut, canceller.URL+"/v1/?op=CANCELDELEGATIONTOKEN&token="+
			url.QueryEscape(token)); a.status != http.StatusOK {
			t.Errorf("%s does not cancel a token of %s: %+v", canceller.Name, from.Name, a)
		}
		for _, k := range servers {
			a := use(t, k, token)
			// The Java KMS learns of the cancellation by a watch. Our server must know at once.
			for try := 0; try < 100 && k.Name == "java-kms" && a.status == http.StatusOK; try++ {
				time.Sleep(50 * time.Millisecond)
				a = use(t, k, token)
			}
			if a.status != http.StatusForbidden {
				t.Errorf("%s accepts a token of %s that %s has cancelled: %+v", k.Name, from.Name, canceller.Name, a)
			}
		}
	}
}

// view opens the secrets like one of our nodes, with SASL unless in is nil.
func view(t *testing.T, servers, owner string, in func() (zookeeper.Initiator, error)) *zookeeper.Signers {
	t.Helper()
	s, err := zookeeper.NewSigners(open(t, servers, owner, in), secretNode)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func open(t *testing.T, servers, owner string, in func() (zookeeper.Initiator, error)) *zookeeper.Client {
	t.Helper()
	e, err := zookeeper.ParseEnsemble(servers)
	if err != nil {
		t.Fatal(err)
	}
	conf := zookeeper.Config{Ensemble: e, Property: "of the test", SessionTimeout: 10 * time.Second,
		ConnectTimeout: 5 * time.Second, RetryTimeout: 10 * time.Second, Owner: owner}
	if in != nil {
		conf.SASL = initiate(in)
	}
	c, err := zookeeper.Open(conf)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	})
	return c
}

// awaitRolls waits until the secrets have been rolled n times more.
func awaitRolls(t *testing.T, s *zookeeper.Signers, n int64) {
	t.Helper()
	var begin int64
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(50 * time.Millisecond) {
		now, ok, err := s.SignerSecrets(t.Context())
		if err != nil || !ok {
			t.Fatalf("secrets: %v, %v", ok, err)
		}
		if begin == 0 {
			begin = now.Version
		}
		if now.Version >= begin+n {
			return
		}
		if time.Now().After(deadline) {
			t.Fatal("no server rolls the secrets")
		}
	}
}

// TestSideBySide: a Java KMS and two claviger servers on one ZooKeeper accept the cookies and delegation tokens of each
// other.
func TestSideBySide(t *testing.T) {
	hadoop.Require(t)
	server := zktest.Start(t, zktest.Options{Jars: hadoop.Jars(t)})
	site := sharing(server.Addr, "none")
	java := hadoop.StartJavaKMS(t, hadoop.KMSOptions{Site: site})
	one, _ := startClaviger(t, site)
	two, _ := startClaviger(t, site)
	for _, from := range []*hadoop.KMS{java, one, two} {
		for _, at := range []*hadoop.KMS{java, one, two} {
			takesCookie(t, from, at)
		}
	}
	tokensAmong(t, java, one, two)

	// The other servers accept the tokens of a killed node, and so does a node that starts.
	token := delegation(t, one)
	one.Kill()
	one, _ = startClaviger(t, site)
	for _, k := range []*hadoop.KMS{java, one, two} {
		if a := use(t, k, token); a.status != http.StatusOK {
			t.Errorf("%s refuses a killed node's token: %+v", k.Name, a)
		}
	}

	// Without ZooKeeper, cookies are accepted. Nobody can know whether a token is still valid.
	before := cookie(t, one)
	server.Kill()
	if a := send(t, http.MethodGet, two.URL+names, "Cookie", before); a.status != http.StatusOK {
		t.Errorf("without ZooKeeper a cookie is refused: %+v", a)
	}
	if a := use(t, two, token); a.status != http.StatusServiceUnavailable {
		t.Errorf("without ZooKeeper a token: %+v", a)
	}
	server.Start()
	for _, k := range []*hadoop.KMS{one, two} {
		a := use(t, k, token)
		for try := 0; try < 50 && a.status == http.StatusServiceUnavailable; try++ {
			time.Sleep(100 * time.Millisecond)
			a = use(t, k, token)
		}
		if a.status != http.StatusOK {
			t.Errorf("%s, with ZooKeeper back: %+v", k.Name, a)
		}
	}
	tokensAmong(t, one, two)
}

// TestRolling: the secret has a lifetime of three seconds. Each server rolls the secret for both while the other
// does not run.
func TestRolling(t *testing.T) {
	hadoop.Require(t)
	server := zktest.Start(t, zktest.Options{Jars: hadoop.Jars(t)})
	site := sharing(server.Addr, "none").With(hadoop.Conf{auth + "token.validity": "3"})
	java := hadoop.StartJavaKMS(t, hadoop.KMSOptions{Site: site})
	ourKMS, again := startClaviger(t, site)
	secrets := view(t, server.Addr, "", nil)
	both := func() {
		t.Helper()
		takesCookie(t, java, ourKMS)
		takesCookie(t, ourKMS, java)
	}
	both()
	awaitRolls(t, secrets, 1)
	both()
	ourKMS.Kill()
	awaitRolls(t, secrets, 2) // by the Java KMS
	ourKMS = again()
	both()
	java.Kill()
	awaitRolls(t, secrets, 2) // by our KMS
	java = hadoop.StartJavaKMS(t, hadoop.KMSOptions{Site: site})
	both()
	awaitRolls(t, secrets, 1)
	both()
}

// TestSASL tests step 8 of the migration: the servers log in to ZooKeeper with Kerberos, and only they can read
// the shared data.
func TestSASL(t *testing.T) {
	hadoop.Require(t)
	kdc := kdctest.Start(t)
	t.Setenv("KRB5_CONFIG", kdc.Krb5Conf)
	keytab := kdc.Keytab("kms.keytab", "kms/localhost", "kms/otherhost", "other/localhost")
	server := zktest.Start(t, zktest.Options{Jars: hadoop.Jars(t), SASL: &zktest.SASL{
		Krb5Conf: kdc.Krb5Conf, Keytab: kdc.Keytab("zookeeper.keytab", "zookeeper/localhost"),
		Principal: "zookeeper/localhost@" + kdctest.Realm,
	}})
	servers := strings.Replace(server.Addr, "127.0.0.1", "localhost", 1)
	site := func(principal string) hadoop.Conf {
		return sharing(servers, "sasl").With(hadoop.Conf{
			signer + ".zookeeper.kerberos.keytab":    keytab,
			signer + ".zookeeper.kerberos.principal": principal + "@" + kdctest.Realm,
		})
	}
	java := hadoop.StartJavaKMS(
		t, hadoop.KMSOptions{Site: site("kms/otherhost"),
			Env: []string{"JAVA_TOOL_OPTIONS=-Djava.security.krb5.conf=" + kdc.Krb5Conf}})
	ourKMS, _ := startClaviger(t, site("kms/localhost"), "KRB5_CONFIG="+kdc.Krb5Conf)
	takesCookie(t, java, ourKMS)
	takesCookie(t, ourKMS, java)
	tokensAmong(t, java, ourKMS)

	// The servers log in again to a restarted ZooKeeper.
	server.Stop()
	server.Start()
	tokensAmong(t, ourKMS, java)

	as := func(principal string) func() (zookeeper.Initiator, error) {
		return func() (zookeeper.Initiator, error) { return initiator(keytab, principal, "zookeeper@localhost") }
	}
	if s, ok, err := view(t, servers, "kms", as("kms/localhost")).SignerSecrets(t.Context()); err != nil || !ok ||
		len(s.Current) != 32 {
		t.Errorf("as kms: %v, %v, %v", s, ok, err)
	}
	for who, s := range map[string]*zookeeper.Signers{"nobody": view(t, servers, "", nil),
		"other": view(t, servers, "other", as("other/localhost"))} {
		got, ok, err := s.SignerSecrets(t.Context())
		if err == nil || !strings.Contains(err.Error(), secretNode) {
			t.Errorf("%s reads the secrets: %v, %v, %v", who, got, ok, err)
		}
	}
	refusesOpenNodes(t, server.Addr, open(t, servers, "kms", as("kms/localhost")))
}

// refusesOpenNodes: our server refuses secrets and tokens that a client without a login has written, or could
// write.
func refusesOpenNodes(t *testing.T, addr string, client *zookeeper.Client) {
	t.Helper()
	nobody, _, err := zk.Connect([]string{addr}, 10*time.Second, zk.WithLogger(quiet{}))
	if err != nil {
		t.Fatal(err)
	}
	defer nobody.Close()
	world, kms := zk.WorldACL(zk.PermAll), []zk.ACL{{Perms: zk.PermAll, Scheme: "sasl", ID: "kms"}}
	plant := func(path string, data []byte, acl []zk.ACL) {
		t.Helper()
		if _, err := nobody.Create(path, data, 0, acl); err != nil {
			t.Fatalf("%s: %v", path, err)
		}
	}
	refused := func(what, path string, err error) {
		t.Helper()
		if !claviger.Is(err, claviger.Unavailable) || !strings.Contains(err.Error(), path+" admits everybody") {
			t.Errorf("%s: %v; want a refusal that names %s", what, err, path)
		}
	}
	// Two secrets of 4 bytes, no earlier secret, and a rollover in 2100.
	secrets := []byte("\x00\x00\x00\x00" + "\x00\x00\x00\x04next" + "\x00\x00\x00\x04mine" + "\x00\x00\x00\x00" +
		"\x00\x00\x03\xbb\x2c\xc3\xd8\x00")
	signers := func(path string) error {
		s, err := zookeeper.NewSigners(client, path)
		if err != nil {
			t.Fatal(err)
		}
		_, _, err = s.SignerSecrets(t.Context())
		return err
	}
	plant("/planted", secrets, world)
	refused("secrets that everybody may write", "/planted", signers("/planted"))
	plant("/readable", secrets, append([]zk.ACL{{Perms: zk.PermRead, Scheme: "world", ID: "anyone"}}, kms...))
	refused("secrets that everybody may read", "/readable", signers("/readable"))
	plant("/parent", nil, world)
	refused("secrets to be made where everybody may make them", "/parent", signers("/parent/secret"))
	plant("/parent/secret", secrets, kms)
	refused("secrets made where everybody may make them", "/parent", signers("/parent/secret"))

	plant("/mine", nil, kms)
	if err := signers("/mine/secret"); err != nil {
		t.Errorf("below a node of our own: %v", err)
	}
	shared, err := zookeeper.NewTokens(client, "opened")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := shared.NextSequences(t.Context(), 10); err != nil {
		t.Fatal(err)
	}
	id := []byte("\x00\x05alice\x03kms\x00\x00\x00\x01\x01") // see authn's identifier
	d := metastore.Delegation{Sequence: 1, Identifier: id, Password: []byte("password"), Renew: time.UnixMilli(1 << 42)}
	if err := shared.PutDelegation(t.Context(), d); err != nil {
		t.Fatal(err)
	}
	if got, ok, err := shared.Delegation(t.Context(), 1); err != nil || !ok || string(got.Password) != "password" {
		t.Errorf("a token of ours: %v, %v, %v", got, ok, err)
	}
	plant("/open", nil, world)
	plant("/open/ZKDTSMRoot", nil, world)
	plant("/open/ZKDTSMRoot/ZKDTSMTokensRoot", nil, world)
	plant("/open/ZKDTSMRoot/ZKDTSMTokensRoot/DT_7",
		append(append([]byte{}, id...), "\x00\x00\x04\x00\x00\x00\x00\x00\x00\x00\x00\x08password"...), kms)
	if shared, err = zookeeper.NewTokens(client, "open"); err != nil {
		t.Fatal(err)
	}
	_, _, err = shared.Delegation(t.Context(), 7)
	refused("a token that everybody could make", "/open", err)
	_, err = shared.NextSequences(t.Context(), 10)
	if err == nil {
		err = shared.PutDelegation(t.Context(), d)
	}
	refused("a token to be put where everybody may read its neighbours' names", "/open", err)
}

// quiet discards the log of the ZooKeeper library.
type quiet struct{}

func (quiet) Printf(string, ...any) {}
