package alerts

import (
	"cmp"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"maps"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"claviger/hadoopconf"
	"claviger/internal/certtest"
	"claviger/internal/faultmodule"
	"claviger/internal/logtest"
	"claviger/internal/softhsm"
	"claviger/kms"
	"claviger/kms/kmstest"
	"claviger/pkcs11"
	"claviger/pkcs11/worker"
	"claviger/test/hadoop"
)

// tokens is the folder of all tokens. SoftHSM finds the folder by an environment variable, so parallel tests share it.
var tokens string

func TestMain(m *testing.M) {
	worker.Main(os.Args)
	os.Exit(func() int {
		dir, err := os.MkdirTemp("", "alerts")
		if err != nil {
			panic(err)
		}
		defer os.RemoveAll(dir)
		tokens = dir
		// The scenarios wait most of the time, so all may run at once.
		flag.Parse()
		if err := flag.Set("test.parallel", strconv.Itoa(len(scenarios))); err != nil {
			panic(err)
		}
		return m.Run()
	}())
}

var tokenMutex sync.Mutex

// newToken makes a token.
func newToken(t *testing.T, label string) softhsm.Token {
	t.Helper()
	tokenMutex.Lock()
	defer tokenMutex.Unlock()
	token, err := softhsm.Create(tokens, label)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range token.Env {
		name, value, _ := strings.Cut(e, "=")
		if err := os.Setenv(name, value); err != nil { // the same for each token
			t.Fatal(err)
		}
	}
	return token
}

// target is a server whose metrics the test reads as Prometheus does.
type target struct {
	name string // job and instance, as claviger/kms1
	// metrics returns the text of /metrics, or an error if the server does not run.
	metrics func() (string, error)
}

// deployment holds the servers of a scenario, and the recording of their metrics.
type deployment struct {
	*recording
	servers []target
	kms     []*node
	// endFault ends the fault.
	endFault func()
	// Single scenarios use the fields below.
	sourceEDEK edek // under a key version of the source
	auditDir   string
	trustees   []*trusteeServer
}

// record reads /metrics of all servers several times, and appends the results as a phase.
func (d *deployment) record(ph phase) {
	d.t.Helper()
	ph.byServer = map[string][]scrape{}
	for i := range scrapes {
		if i > 0 {
			time.Sleep(cmp.Or(ph.pause, pause)) // like the interval of Prometheus: there is no condition to wait for
		}
		for _, s := range d.servers {
			read := scrape{at: time.Now()}
			if text, err := s.metrics(); err == nil {
				read.values = d.parse(text)
			}
			ph.byServer[s.name] = append(ph.byServer[s.name], read)
		}
	}
	if ph.slow() > 0 { // because of the fault, or because the machine is busy
		ph.allowed = append(slices.Clone(ph.allowed), "ClavigerSlow", "ClavigerVerySlow", "ClavigerHSMSlow")
		ph.allowed = slices.DeleteFunc(ph.allowed, func(a string) bool { return slices.Contains(ph.alerts, a) })
	}
	d.phases = append(d.phases, ph)
}

// recordHealthy records a phase without a fault. On a busy machine some requests are slow; recordHealthy then discards
// the phase and records a new one, at most 20 times.
func (d *deployment) recordHealthy(name string) {
	d.t.Helper()
	for tries := 1; ; tries++ {
		d.record(phase{name: name})
		last := len(d.phases) - 1
		n := d.phases[last].slow()
		if n == 0 || tries == 20 {
			if n > 0 {
				d.t.Logf("%s: alerts about time are not judged: the machine is too busy", name)
			}
			return
		}
		d.phases = d.phases[:last]
	}
}

// until waits until /metrics of a server matches a pattern.
func (d *deployment) until(s target, pattern string) {
	d.t.Helper()
	re := regexp.MustCompile(pattern)
	for end := time.Now().Add(30 * time.Second); ; time.Sleep(50 * time.Millisecond) {
		text, err := s.metrics()
		if err == nil && re.MatchString(text) {
			return
		}
		if time.Now().After(end) {
			lines := regexp.MustCompile(`(?m)^`+metricName.FindString(pattern)+`.*`).FindAllString(text, -1)
			d.t.Fatalf("%s: /metrics does not match %s: %v, %q", s.name, pattern, err, lines)
		}
	}
}

// untilHealthy waits until no check of a server fails.
func (d *deployment) untilHealthy() {
	d.t.Helper()
	fails := regexp.MustCompile(`(?m)^claviger_check_ok\{.*\} 0$`)
	for end := time.Now().Add(40 * time.Second); ; time.Sleep(50 * time.Millisecond) {
		var found []string
		for _, s := range d.servers {
			text, err := s.metrics()
			if err != nil {
				found = append(found, err.Error())
			}
			found = append(found, fails.FindAllString(text, -1)...)
		}
		if len(found) == 0 {
			return
		}
		if time.Now().After(end) {
			d.t.Fatalf("the servers are not healthy: %q", found)
		}
	}
}

// node is a KMS in this process.
type node struct {
	t        *testing.T
	dir      string
	token    softhsm.Token
	module   *faultmodule.Module
	ca       *certtest.Authority
	http     *http.Client
	mu       sync.Mutex
	url      string // "" while it does not run
	stop     func() error
	log      logtest.Buffer
	stopLoad func()
	// losesRecords: the KMS loses records of the audit log, and returns an error for them when it stops.
	losesRecords bool
}

var openACLs = kmstest.SiteXML("default.key.acl.MANAGEMENT", "*", "default.key.acl.GENERATE_EEK", "*",
	"default.key.acl.DECRYPT_EEK", "*", "default.key.acl.READ", "*")

// newNode makes the folder of a KMS with a keystore file. properties are added to its kms-site.xml.
func newNode(t *testing.T, properties map[string]string) *node {
	t.Helper()
	n := &node{t: t, dir: t.TempDir(), http: &http.Client{Transport: &http.Transport{}, Timeout: 30 * time.Second}}
	site := map[string]string{
		hadoopconf.ProviderURI: "jceks://file@" + filepath.Join(n.dir, "kms.keystore"),
		"hadoop.kms.http.host": "127.0.0.1", "claviger.audit.file": filepath.Join(n.dir, "audit.log"),
	}
	maps.Copy(site, properties)
	kmstest.WriteSite(t, n.dir, site)
	kmstest.WriteFile(t, filepath.Join(n.dir, "kms-acls.xml"), openACLs)
	return n
}

// newHSMNode is newNode for a KMS with its own token. The module of the token makes faults.
func newHSMNode(t *testing.T, label string, properties map[string]string) *node {
	t.Helper()
	dir := t.TempDir()
	file := filepath.Join(dir, "luna.keystore")
	site := map[string]string{
		hadoopconf.ProviderURI: "cloudera.hsmkp://file@" + file, hadoopconf.MetastoreURI: "sqlite://" +
			filepath.Join(dir, "claviger.db"),
	}
	maps.Copy(site, properties)
	n := newNode(t, site)
	n.token = newToken(t, label)
	n.module = faultmodule.New(t, n.token.Module)
	if err := pkcs11.WriteKeystoreFile(file, pkcs11.FileConfig{Module: n.module.Path, Token: label,
		PINFile: n.token.PINFile, Profile: pkcs11.SoftHSM}); err != nil {
		t.Fatal(err)
	}
	return n
}

// withTLS makes the node serve https with a certificate that expires at that time.
func (n *node) withTLS(ends time.Time) {
	n.t.Helper()
	n.ca = certtest.NewUntil(n.t, n.dir, time.Now().Add(400*24*time.Hour))
	kmstest.WriteFile(n.t, filepath.Join(n.dir, "ssl-server.xml"), kmstest.SiteXML("ssl.server.keystore.type", "pem",
		"ssl.server.keystore.location", n.certificate(ends)))
	n.http.Transport = &http.Transport{TLSClientConfig: &tls.Config{RootCAs: n.ca.Pool(), MinVersion: tls.VersionTLS12}}
}

// certificate writes a new certificate over the former one, and returns the file.
func (n *node) certificate(ends time.Time) string {
	n.ca.Ends = ends
	return n.ca.Issue("server", "127.0.0.1")
}

// start starts the node.
func (n *node) start() {
	n.t.Helper()
	url, stop := kmstest.Start(n.t, func(ctx context.Context, ready string) error {
		return kms.Serve(ctx, kms.Options{Dir: n.dir, ReadyFile: ready, Level: new(slog.LevelVar),
			Log: slog.New(slog.NewTextHandler(&n.log, nil))})
	})
	n.mu.Lock()
	defer n.mu.Unlock()
	n.url, n.stop = url, stop
}

// end stops the node if it runs.
func (n *node) end() {
	n.mu.Lock()
	stop := n.stop
	n.url, n.stop = "", nil
	n.mu.Unlock()
	if stop == nil {
		return
	}
	if err := stop(); err != nil && !n.losesRecords {
		n.t.Errorf("the KMS ended: %v", err)
	}
	n.http.CloseIdleConnections()
}

// request sends a request in the name of user u.
func (n *node) request(ctx context.Context, method, path string, body any) (status int, answer []byte, err error) {
	n.mu.Lock()
	url := n.url
	n.mu.Unlock()
	if url == "" {
		return 0, nil, errors.New("the KMS does not run")
	}
	return kmstest.Send(ctx, n.http, method, strings.TrimSuffix(url, "/kms")+path, body)
}

// want sends a request that must have that status.
func (n *node) want(want int, method, path string, body any) []byte {
	n.t.Helper()
	status, answer, err := n.request(n.t.Context(), method, path, body)
	if err != nil || status != want {
		n.t.Fatalf("%s %s: %d %s, %v; want %d", method, path, status, answer, err, want)
	}
	return answer
}

// metrics returns the text of /metrics.
func (n *node) metrics() (string, error) {
	status, text, err := n.request(n.t.Context(), http.MethodGet, "/metrics", nil)
	if err == nil && status != http.StatusOK {
		err = fmt.Errorf("%d %s", status, text)
	}
	return string(text), err
}

// create makes a key.
func (n *node) create(key string) {
	n.t.Helper()
	n.want(http.StatusCreated, http.MethodPost, "/kms/v1/keys?user.name=u", map[string]any{"name": key})
}

// edek is an EDEK in the JSON of the REST API.
type edek struct {
	Version   string `json:"versionName"`
	IV        string `json:"iv"`
	Encrypted struct {
		Material string `json:"material"`
	} `json:"encryptedKeyVersion"`
}

// generate requests EDEKs of a key.
func (n *node) generate(ctx context.Context, key string, count int) (made []edek, err error) {
	status, answer, err := n.request(ctx, http.MethodGet,
		fmt.Sprintf("/kms/v1/key/%s/_eek?eek_op=generate&num_keys=%d&user.name=u", key, count), nil)
	if err == nil && status != http.StatusOK {
		err = fmt.Errorf("%d %s", status, answer)
	}
	if err != nil {
		return nil, err
	}
	return made, json.Unmarshal(answer, &made)
}

// decrypt opens an EDEK, and returns the status.
func (n *node) decrypt(ctx context.Context, e edek) (status int) {
	key, _, _ := strings.Cut(e.Version, "@")
	status, _, _ = n.request(ctx, http.MethodPost, "/kms/v1/keyversion/"+e.Version+"/_eek?eek_op=decrypt&user.name=u",
		map[string]any{"name": key, "iv": e.IV, "material": e.Encrypted.Material})
	return status
}

// load generates and decrypts EDEKs of a key until stopLoad. Failures are not errors, because the node has faults.
func (n *node) load(key string) {
	n.t.Helper()
	made, err := n.generate(n.t.Context(), key, 1)
	if err != nil {
		n.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var clients sync.WaitGroup
	for _, use := range []func(){
		func() { _, _ = n.generate(ctx, key, 2) },
		func() { n.decrypt(ctx, made[0]) },
	} {
		clients.Go(func() {
			for ctx.Err() == nil {
				use()
				select {
				case <-ctx.Done():
				case <-time.After(20 * time.Millisecond):
				}
			}
		})
	}
	n.stopLoad = func() { cancel(); clients.Wait() }
}

// newDeployment starts the nodes. Their names are kms1, kms2 and so on.
func newDeployment(t *testing.T, nodes ...*node) *deployment {
	t.Helper()
	d := &deployment{recording: &recording{t: t, kinds: map[string]string{}}, kms: nodes}
	for i, n := range nodes {
		n.start()
		t.Cleanup(n.end)
		d.servers = append(d.servers, target{fmt.Sprintf("claviger/kms%d", i+1), n.metrics})
	}
	return d
}

// withLoad starts the load of each KMS, on a new key, and returns d.
func (d *deployment) withLoad() *deployment {
	d.t.Helper()
	for _, n := range d.kms {
		n.create("zone")
		n.load("zone")
		d.t.Cleanup(n.stopLoad)
	}
	return d
}

// command runs claviger as a runbook says, and returns its output and its exit status.
func command(t *testing.T, args ...string) (out string, status int) {
	t.Helper()
	bin := hadoop.Binary(t) // the first call builds the program
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, bin, args...)
	text, err := cmd.CombinedOutput()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	return string(text), cmd.ProcessState.ExitCode()
}

// checkCommand runs a command that the page of an alert names, and checks its exit status and its output.
func (d *deployment) checkCommand(alert, named string, status int, pattern string, args ...string) {
	d.t.Helper()
	if !strings.Contains(pageOf(d.t, alert), named) {
		d.t.Errorf("the page of %s does not name %q", alert, named)
	}
	out, got := command(d.t, args...)
	if got != status || !regexp.MustCompile(pattern).MatchString(out) {
		d.t.Errorf("claviger %q: exit status %d, want %d and %s\n%s", args, got, status, pattern, out)
	}
}

// checkReadyz fails the test unless /readyz of the first KMS reports that check as failed, with an error that matches.
func (d *deployment) checkReadyz(check, pattern string) {
	d.t.Helper()
	_, text, err := d.kms[0].request(d.t.Context(), http.MethodGet, "/readyz", nil)
	var r kmstest.Readiness
	if err == nil {
		err = json.Unmarshal(text, &r)
	}
	for _, c := range r.Checks {
		if c.Name == check && !c.OK && regexp.MustCompile(pattern).MatchString(c.Error) {
			return
		}
	}
	d.t.Errorf("/readyz does not say of %s: %s (%v)\n%s", check, pattern, err, text)
}
