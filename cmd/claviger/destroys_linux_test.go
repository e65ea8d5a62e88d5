package main

import (
	"bytes"
	"errors"
	"io"
	"maps"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"claviger/hadoopconf"
	"claviger/internal/pgtest"
	"claviger/kms/kmstest"
	"claviger/provider/hsm"
)

// TestDestroysOnlyInAgreement: of two nodes, one destroys keys at their deletion, and the other purges keys at once. No
// node does so while the other one would keep the keys. This holds in containers on two hosts, too, which have the same
// host name and the same PIDs.
func TestDestroysOnlyInAgreement(t *testing.T) {
	t.Run("hosts", func(t *testing.T) { destroysOnlyInAgreement(t, false) })
	t.Run("containers", func(t *testing.T) { destroysOnlyInAgreement(t, true) })
}

func destroysOnlyInAgreement(t *testing.T, containers bool) {
	t.Helper()
	dir, site := kmstest.HSM(t)
	site[hadoopconf.MetastoreURI] = pgtest.Database(t)
	purges := startProcess(t, dir, "purges", site, map[string]string{purgeMinUnused: "0"}, containers)
	destroys := startProcess(t, dir, "destroys", site, map[string]string{hsm.PropertySoftDelete: "false"}, containers)
	other := "the node on "
	if containers {
		other = "another node, whose host has the same name kms (process 1, since 2"
	}
	const purge = "/v1/trustee/key/k?trusteeOp=purge"
	purges.want("a creation", http.MethodPost, "/v1/keys", `{"name":"k"}`, http.StatusCreated)
	destroys.want("a deletion that destroys", http.MethodDelete, "/v1/key/k", "", http.StatusServiceUnavailable,
		"StandbyException", hsm.PropertySoftDelete, other, "another value")
	destroys.want("the key", http.MethodGet, "/v1/key/k/_metadata", "", http.StatusOK, `"k"`)
	purges.want("a deletion that keeps", http.MethodDelete, "/v1/key/k", "", http.StatusOK)
	purges.want("a purge", http.MethodPost, purge, "", http.StatusServiceUnavailable, "StandbyException",
		purgeMinUnused, other, "another value")
	destroys.stop()
	purges.want("a purge by the last node", http.MethodPost, purge, "", http.StatusOK)
	purges.want("a creation", http.MethodPost, "/v1/keys", `{"name":"other"}`, http.StatusCreated)
	purges.stop()
	last := startProcess(t, dir, "last", site, map[string]string{hsm.PropertySoftDelete: "false"}, containers)
	last.want("a deletion by the last node", http.MethodDelete, "/v1/key/other", "", http.StatusOK)
}

// process is a KMS in its own process.
type process struct {
	t    *testing.T
	name string
	url  string
	stop func() // may be called again
}

// startProcess starts a KMS with a configuration folder below dir: the properties of site and props. In a container it
// has its own PIDs and host name. The test is skipped if the machine allows no containers.
func startProcess(t *testing.T, dir, name string, site, props map[string]string, container bool) *process {
	t.Helper()
	conf := filepath.Join(dir, name)
	if err := os.Mkdir(conf, 0o700); err != nil {
		t.Fatal(err)
	}
	all := maps.Clone(site)
	all["claviger.audit.file"] = filepath.Join(conf, "audit.log")
	maps.Copy(all, props)
	kmstest.WriteSite(t, conf, all)
	kmstest.WriteFile(t, filepath.Join(conf, "kms-acls.xml"), kmstest.SiteXML("keytrustee.kms.acl.PURGE", "*"))
	ready, log := filepath.Join(conf, "ready"), new(bytes.Buffer)
	//nolint:noctx,gosec // stop ends it
	cmd := exec.Command("claviger", "kms", "--conf", conf, "--http-port", "0", "--ready-file", ready)
	if container {
		//nolint:noctx,gosec // stop ends it
		cmd = exec.Command("sh", append([]string{"-c", `hostname kms && exec "$@"`, "sh"}, cmd.Args...)...)
		cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWUTS | syscall.CLONE_NEWPID}
	}
	cmd.Stderr = log
	if err := cmd.Start(); container && errors.Is(err, syscall.EPERM) {
		t.Skip("this machine allows no namespaces: ", err)
	} else if err != nil {
		t.Fatal(err)
	}
	p := &process{t: t, name: name, stop: sync.OnceFunc(func() {
		_ = cmd.Process.Signal(syscall.SIGTERM) // the process may have ended
		if err := cmd.Wait(); err != nil {
			t.Errorf("%s: %v\n%s", name, err, log)
		}
	})}
	t.Cleanup(p.stop)
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		if url, err := os.ReadFile(ready); err == nil {
			p.url = strings.TrimSpace(string(url))
			return p
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s does not start", name)
		}
	}
}

// want sends a request as alice. The answer must have a status, and hold some texts.
func (p *process) want(what, method, path, body string, status int, texts ...string) {
	p.t.Helper()
	sep := map[bool]string{true: "&", false: "?"}[strings.Contains(path, "?")]
	r, err := http.NewRequestWithContext(p.t.Context(), method, p.url+path+sep+"user.name=alice",
		strings.NewReader(body))
	if err != nil {
		p.t.Fatal(err)
	}
	r.Header.Set("Content-Type", "application/json")
	resp, err := http.DefaultClient.Do(r)
	if err != nil {
		p.t.Fatal(err)
	}
	defer func() { _ = resp.Body.Close() }()
	answer, err := io.ReadAll(resp.Body)
	if err != nil {
		p.t.Fatal(err)
	}
	if resp.StatusCode != status {
		p.t.Errorf("%s: %d %s, want %d", what, resp.StatusCode, answer, status)
	}
	for _, text := range texts {
		if !strings.Contains(string(answer), text) {
			p.t.Errorf("%s: the answer lacks %q: %s", what, text, answer)
		}
	}
}

// purgeMinUnused is the property for the time in which a key must be unused before a purge.
const purgeMinUnused = "claviger.purge.min.unused"
