package main

import (
	"bytes"
	"errors"
	"io"
	"log/slog"
	"maps"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"claviger/hadoopconf"
	"claviger/internal/pgtest"
	"claviger/kms/kmstest"
	"claviger/metastore/postgres"
	"claviger/owner"
	"claviger/provider/hsm"
)

// TestNodesWithOtherSettings: a node tells of another that serves with other settings, by
// their names and without their values; of one that has gone it tells nothing.
func TestNodesWithOtherSettings(t *testing.T) {
	ctx := t.Context()
	uri := pgtest.Database(t)
	var log bytes.Buffer
	node := func(pid int, props map[string]string) (*agreement, func()) {
		t.Helper()
		store, err := postgres.Open(ctx, postgres.Config{URI: uri})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = store.Close() })
		self := owner.Owner{ID: strconv.Itoa(pid), What: kmsCommand, Host: "kms1", PID: pid}
		release, err := store.Claim(ctx, self, false)
		if err != nil {
			t.Fatal(err)
		}
		dir := t.TempDir()
		all := map[string]string{hadoopconf.ProviderURI: "cloudera.hsmkp://file@" + filepath.Join(dir, "luna.keystore"), hadoopconf.MetastoreURI: uri}
		for name, value := range props {
			all[name] = value
		}
		kmstest.WriteSite(t, dir, all)
		conf, err := hadoopconf.LoadKMS(dir, os.LookupEnv)
		if err != nil {
			t.Fatal(err)
		}
		return &agreement{conf: conf, store: store, log: slog.New(slog.NewTextHandler(&log, nil)), self: self}, release
	}
	one, _ := node(1, nil)
	two, gone := node(2, map[string]string{hadoopconf.SourceURI: "kms://http@old.example:9600/kms", "hadoop.kms.proxyuser.hive.hosts": "*"})
	three, _ := node(3, nil)
	for i, a := range []*agreement{one, three, one} { // their keystore files have other places
		if err := a.check(ctx); err != nil {
			t.Errorf("look %d, nodes with the same settings: %v", i, err)
		}
	}
	want := "the node on kms1 (process 2) has other values of " + hadoopconf.SourceURI + ", hadoop.kms.proxyuser.*"
	if err := two.check(ctx); err == nil || strings.Contains(err.Error(), "old.example") || !strings.Contains(err.Error(), "process 1") || !strings.Contains(err.Error(), "process 3") {
		t.Errorf("the node with others: %v", err)
	}
	for range 2 {
		if err := one.check(ctx); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %q", err, want)
		}
	}
	if got := strings.Count(log.String(), want); got != 1 {
		t.Errorf("the log has it %d times: %s", got, log.String())
	}
	kmstest.WriteSite(t, one.conf.Dir(), map[string]string{hadoopconf.ProviderURI: one.conf.String(hadoopconf.ProviderURI), hadoopconf.MetastoreURI: uri, "hadoop.kms.proxyuser.hive.hosts": "*"})
	if err := one.check(ctx); err == nil || strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), strings.TrimSuffix(want, ", hadoop.kms.proxyuser.*")) {
		t.Errorf("rules that are taken without a restart: %v", err)
	}
	gone()
	if err := three.check(ctx); err == nil || !strings.Contains(err.Error(), "process 1") || strings.Contains(err.Error(), "process 2") {
		t.Errorf("after that node has gone: %v", err)
	}
}

// TestNodesThatLookAlike: two containers on two hosts have one host name and process number.
// Each sees the other's settings, and none destroys keys that the other keeps.
func TestNodesThatLookAlike(t *testing.T) {
	ctx, uri := t.Context(), pgtest.Database(t)
	node := func(id, soft string) (*agreement, func()) {
		t.Helper()
		dir := t.TempDir()
		kmstest.WriteSite(t, dir, map[string]string{hadoopconf.MetastoreURI: uri, hsm.PropertySoftDelete: soft})
		conf, err := hadoopconf.LoadKMS(dir, os.LookupEnv)
		if err != nil {
			t.Fatal(err)
		}
		store, err := postgres.Open(ctx, postgres.Config{URI: uri})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = store.Close() })
		self := owner.Owner{ID: id, What: kmsCommand, Host: "kms1", PID: 1, Since: time.Now()}
		release, err := store.Claim(ctx, self, false)
		if err != nil {
			t.Fatal(err)
		}
		return &agreement{conf: conf, store: store, log: slog.New(slog.DiscardHandler), self: self}, release
	}
	destroys, _ := node("aa", "false")
	if err := destroys.mayDestroy(ctx, false); err != nil {
		t.Errorf("the only node: %v", err)
	}
	keeps, gone := node("bb", "true")
	want := "another node whose host is named kms1, as this one's, (process 1, since 2"
	for _, a := range []*agreement{keeps, destroys} {
		if err := a.check(ctx); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("/readyz: %v", err)
		}
	}
	if err := destroys.mayDestroy(ctx, false); err == nil || !strings.Contains(err.Error(), want) {
		t.Errorf("a deletion that destroys: %v", err)
	}
	if err := destroys.mayDestroy(ctx, true); err != nil {
		t.Errorf("a purge, of which both hold the same: %v", err)
	}
	gone()
	if err := destroys.mayDestroy(ctx, false); err != nil {
		t.Errorf("after the other has gone: %v", err)
	}
}

// TestAlikeAreKnown: a property that is misspelt would never differ; and the page lists all.
func TestAlikeAreKnown(t *testing.T) {
	page, err := os.ReadFile("../../docs/nodes.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range alike {
		if !slices.ContainsFunc(hadoopconf.KMS, func(k hadoopconf.Known) bool { return k.Name == name }) {
			t.Errorf("there is no property %s", name)
		}
		if !strings.Contains(string(page), "`"+name+"`") {
			t.Errorf("docs/nodes.md does not name %s", name)
		}
	}
}

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
		acls := "<configuration><property><name>keytrustee.kms.acl.PURGE</name><value>*</value></property></configuration>"
		if err := os.WriteFile(filepath.Join(conf, "kms-acls.xml"), []byte(acls), 0o600); err != nil {
			t.Fatal(err)
		}
		ready, log := filepath.Join(conf, "ready"), new(bytes.Buffer)
		cmd := exec.Command("claviger", "kms", "--conf", conf, "--http-port", "0", "--ready-file", ready) //nolint:noctx,gosec // end ends it
		if containers {
			cmd = exec.Command("sh", append([]string{"-c", `hostname kms && exec "$@"`, "sh"}, cmd.Args...)...) //nolint:noctx,gosec // end ends it
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
			r, err := http.NewRequestWithContext(t.Context(), method, strings.TrimSpace(string(url))+path+sep+"user.name=alice", strings.NewReader(body))
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
	want := func(what string, do func(method, path, body string) (int, string), method, path, body string, status int, says ...string) {
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
	keeps, endKeeps := node("keeps", map[string]string{minUnused: "0"})
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
	want("a purge", keeps, http.MethodPost, purge, "", http.StatusServiceUnavailable, "StandbyException", minUnused, other, "another value")
	endDestroys()
	want("a purge by the last node", keeps, http.MethodPost, purge, "", http.StatusOK)
	want("a creation", keeps, http.MethodPost, "/v1/keys", `{"name":"other"}`, http.StatusCreated)
	endKeeps()
	destroys, _ = node("destroys2", map[string]string{hsm.PropertySoftDelete: "false"})
	want("a deletion by the last node", destroys, http.MethodDelete, "/v1/key/other", "", http.StatusOK)
}
