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

// TestDestroysOnlyInAgreement: two nodes, of which one destroys keys at their deletion and
// the other purges keys at once. Neither does while the other would have kept them; nor in
// containers on two hosts, whose host names and PIDs are the same ones.
func TestDestroysOnlyInAgreement(t *testing.T) {
	t.Run("hosts", func(t *testing.T) { destroysOnlyInAgreement(t, false) })
	t.Run("containers", func(t *testing.T) { destroysOnlyInAgreement(t, true) })
}

func destroysOnlyInAgreement(t *testing.T, containers bool) {
	t.Helper()
	dir, site := kmstest.HSM(t)
	uri := pgtest.Database(t)
	node := func(name string, props map[string]string) (do func(method, path, body string) (int, string), end func()) {
		t.Helper()
		conf := filepath.Join(dir, name)
		if err := os.Mkdir(conf, 0o700); err != nil {
			t.Fatal(err)
		}
		all := maps.Clone(site)
		all[hadoopconf.MetastoreURI], all["claviger.audit.file"] = uri, filepath.Join(conf, "audit.log")
		maps.Copy(all, props)
		kmstest.WriteSite(t, conf, all)
		acls := "<configuration><property><name>keytrustee.kms.acl.PURGE</name><value>*</value></property>" +
			"</configuration>"
		if err := os.WriteFile(filepath.Join(conf, "kms-acls.xml"), []byte(acls), 0o600); err != nil {
			t.Fatal(err)
		}
		ready, log := filepath.Join(conf, "ready"), new(bytes.Buffer)
		//nolint:noctx,gosec // end ends it
		cmd := exec.Command("claviger", "kms", "--conf", conf, "--http-port", "0", "--ready-file", ready)
		if containers {
			//nolint:noctx,gosec // end ends it
			cmd = exec.Command("sh", append([]string{"-c", `hostname kms && exec "$@"`, "sh"}, cmd.Args...)...)
			cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWUTS | syscall.CLONE_NEWPID}
		}
		cmd.Stderr = log
		if err := cmd.Start(); containers && errors.Is(err, syscall.EPERM) {
			t.Skip("this machine lets no namespace be made: ", err)
		} else if err != nil {
			t.Fatal(err)
		}
		var once sync.Once
		end = func() {
			once.Do(func() {
				_ = cmd.Process.Signal(syscall.SIGTERM) // it may have ended
				if err := cmd.Wait(); err != nil {
					t.Errorf("%s: %v\n%s", name, err, log)
				}
			})
		}
		t.Cleanup(end)
		var url []byte
		for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(20 * time.Millisecond) {
			var err error
			if url, err = os.ReadFile(ready); err == nil {
				break
			}
			if time.Now().After(deadline) {
				t.Fatalf("%s does not start", name)
			}
		}
		return func(method, path, body string) (int, string) {
			t.Helper()
			sep := map[bool]string{true: "&", false: "?"}[strings.Contains(path, "?")]
			r, err := http.NewRequestWithContext(t.Context(), method,
				strings.TrimSpace(string(url))+path+sep+"user.name=alice", strings.NewReader(body))
			if err != nil {
				t.Fatal(err)
			}
			r.Header.Set("Content-Type", "application/json")
			resp, err := http.DefaultClient.Do(r)
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = resp.Body.Close() }()
			answer, err := io.ReadAll(resp.Body)
			if err != nil {
				t.Fatal(err)
			}
			return resp.StatusCode, string(answer)
		}, end
	}
	want := func(what string, do func(method, path, body string) (int, string), method, path, body string,
		status int, says ...string) {
		t.Helper()
		got, answer := do(method, path, body)
		if got != status {
			t.Errorf("%s: %d %s, want %d", what, got, answer, status)
		}
		for _, s := range says {
			if !strings.Contains(answer, s) {
				t.Errorf("%s: the answer does not say %q: %s", what, s, answer)
			}
		}
	}
	keeps, endKeeps := node("keeps", map[string]string{purgeMinUnused: "0"})
	destroys, endDestroys := node("destroys", map[string]string{hsm.PropertySoftDelete: "false"})
	other := "the node on "
	if containers {
		other = "another node whose host is named kms, as this one's, (process 1, since 2"
	}
	const purge = "/v1/trustee/key/k?trusteeOp=purge"
	create := `{"name":"k"}`
	want("a creation", keeps, http.MethodPost, "/v1/keys", create, http.StatusCreated)
	want("a deletion that destroys", destroys, http.MethodDelete, "/v1/key/k", "", http.StatusServiceUnavailable,
		"StandbyException", hsm.PropertySoftDelete, other, "another value")
	want("the key", destroys, http.MethodGet, "/v1/key/k/_metadata", "", http.StatusOK, `"k"`)
	want("a deletion that keeps", keeps, http.MethodDelete, "/v1/key/k", "", http.StatusOK)
	want("a purge", keeps, http.MethodPost, purge, "", http.StatusServiceUnavailable, "StandbyException",
		purgeMinUnused, other, "another value")
	endDestroys()
	want("a purge by the last node", keeps, http.MethodPost, purge, "", http.StatusOK)
	want("a creation", keeps, http.MethodPost, "/v1/keys", `{"name":"other"}`, http.StatusCreated)
	endKeeps()
	destroys, _ = node("destroys2", map[string]string{hsm.PropertySoftDelete: "false"})
	want("a deletion by the last node", destroys, http.MethodDelete, "/v1/key/other", "", http.StatusOK)
}

// purgeMinUnused is how long a key must have been unused before it can be purged.
const purgeMinUnused = "claviger.purge.min.unused"
