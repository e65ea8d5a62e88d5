package alerts

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"testing"
	"time"

	"claviger/internal/hosttest"
	"claviger/internal/porttest"
	"claviger/trustee"
	"claviger/trustee/host"
	"claviger/trustee/location"
	"claviger/trustee/server"
	"claviger/web"
)

// trusteeServer is one of two Key Trustee Servers.
type trusteeServer struct {
	t    *testing.T
	conf host.Config
	url  string // of its metrics; "" while it does not run
	log  hosttest.Log
	stop func()
}

var servesMetrics = regexp.MustCompile(`msg="serving metrics" url=(\S+/metrics)`)

func (k *trusteeServer) start() {
	k.t.Helper()
	k.conf.ReadyFile = filepath.Join(k.t.TempDir(), "ready")
	_, k.stop = hosttest.Start(k.t, k.conf.ReadyFile, func(ctx context.Context) error { return host.Run(ctx, k.conf) })
	found := servesMetrics.FindAllStringSubmatch(k.log.String(), -1)
	k.url = found[len(found)-1][1]
}

func (k *trusteeServer) end() {
	if k.stop != nil {
		k.stop()
	}
	k.stop, k.url = nil, ""
}

func (k *trusteeServer) metrics() (string, error) {
	if k.url == "" {
		return "", errors.New("the trustee does not run")
	}
	ctx, cancel := context.WithTimeout(k.t.Context(), 10*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, k.url, nil)
	if err != nil {
		return "", err
	}
	req.Close = true
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return "", err
	}
	text, err := io.ReadAll(resp.Body)
	return string(text), errors.Join(err, resp.Body.Close())
}

// trusteeDeployment starts two Key Trustee Servers, one active and one passive.
func trusteeDeployment(t *testing.T) *deployment {
	t.Helper()
	identity := func(comment string) *trustee.Identity {
		id, err := trustee.NewIdentity("keytrustee", comment, "keytrustee@h", 2048, time.Now())
		if err != nil {
			t.Fatal(err)
		}
		return id
	}
	first, second := filepath.Join(t.TempDir(), ".keytrustee"), filepath.Join(t.TempDir(), ".keytrustee")
	if _, err := trustee.NewFolder(first, identity("keytrustee Server Key")); err != nil {
		t.Fatal(err)
	}
	for _, dir := range []string{first, second} {
		if dir == second {
			copyFolder(t, first, second)
		}
		if _, err := location.Init(t.Context(), dir, location.InitOptions{Hosts: []string{"127.0.0.1"},
			Empty: dir == second}); err != nil {
			t.Fatal(err)
		}
	}
	d := &deployment{recording: &recording{t: t, kinds: map[string]string{}}}
	for _, dir := range []string{first, second} {
		address, err := porttest.Address()
		if err != nil {
			t.Fatal(err)
		}
		k := &trusteeServer{t: t, conf: host.Config{Folder: dir, Listen: address, Metrics: "127.0.0.1:0",
			Connections: web.ConnectionLimits{Total: 1024}}}
		k.conf.Log = k.log.Logger()
		k.conf.Pair.Cert = filepath.Join(first, trustee.TLSCert) // both have the same certificate
		d.trustees = append(d.trustees, k)
	}
	a, b := d.trustees[0], d.trustees[1]
	a.conf.Pair.URL, a.conf.Pair.First = "https://"+b.conf.Listen, server.RoleActive
	b.conf.Pair.URL, b.conf.Pair.First = "https://"+a.conf.Listen, server.RolePassive
	b.start()
	a.start()
	t.Cleanup(func() { a.end(); b.end() })
	d.servers = []target{{"claviger-trustee/kt1", a.metrics}, {"claviger-trustee/kt2", b.metrics}}
	d.until(d.servers[0], `(?m)^claviger_trustee_synced 1$`)
	return d
}

// copyFolder copies the folder of a trustee without its store. Nobody else may read the copy.
func copyFolder(t *testing.T, from, to string) {
	t.Helper()
	err := os.CopyFS(to, os.DirFS(from))
	if err == nil {
		err = os.Remove(filepath.Join(to, location.FileName))
	}
	if err == nil {
		err = filepath.WalkDir(to, func(path string, d fs.DirEntry, err error) error {
			if err != nil {
				return err
			}
			if d.IsDir() {
				return os.Chmod(path, 0o700) //nolint:gosec // a folder
			}
			return os.Chmod(path, 0o600)
		})
	}
	if err != nil {
		t.Fatal(err)
	}
}

var trusteeFaults = []fault{{
	phase: phase{name: "the passive trustee is down",
		alerts: []string{"ClavigerTrusteeDown", "ClavigerTrusteeNotSynced", "ClavigerNoChanges"}},
	symptom: `(?s)claviger_ready\{for="write"\} 0.*\nclaviger_trustee_synced 0\n`, // in the order of /metrics
	begin:   func(d *deployment) { d.trustees[1].end() },
	repair:  func(d *deployment) { d.trustees[1].start() },
}}
