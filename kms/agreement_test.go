package kms

import (
	"bytes"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"claviger/hadoopconf"
	"claviger/internal/pgtest"
	"claviger/kms/kmstest"
	"claviger/metastore/postgres"
	"claviger/owner"
	"claviger/provider/hsm"
)

// TestNodesWithOtherSettings: a node reports another node that serves with other settings.
// The report has the names of the settings, not their values. It does not report a node that
// has ended.
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
		self := owner.Owner{ID: strconv.Itoa(pid), What: Command, Host: "kms1", PID: pid}
		release, err := store.Claim(ctx, self, false)
		if err != nil {
			t.Fatal(err)
		}
		dir := t.TempDir()
		all := map[string]string{hadoopconf.ProviderURI: "cloudera.hsmkp://file@" + filepath.Join(dir, "luna.keystore"),
			hadoopconf.MetastoreURI: uri}
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
	two, gone := node(2, map[string]string{hadoopconf.SourceURI: "kms://http@old.example:9600/kms",
		"hadoop.kms.proxyuser.hive.hosts": "*"})
	three, _ := node(3, nil)
	for i, a := range []*agreement{one, three, one} { // the paths of their keystore files differ
		if err := a.check(ctx); err != nil {
			t.Errorf("check %d, nodes with the same settings: %v", i, err)
		}
	}
	want := "the node on kms1 (process 2) has other values of " + hadoopconf.SourceURI + ", hadoop.kms.proxyuser.*"
	if err := two.check(ctx); err == nil || strings.Contains(err.Error(), "old.example") ||
		!strings.Contains(err.Error(), "process 1") || !strings.Contains(err.Error(), "process 3") {
		t.Errorf("the node with other settings: %v", err)
	}
	for range 2 {
		if err := one.check(ctx); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %q", err, want)
		}
	}
	if got := strings.Count(log.String(), want); got != 1 {
		t.Errorf("the log has it %d times: %s", got, log.String())
	}
	kmstest.WriteSite(t, one.conf.Dir(),
		map[string]string{hadoopconf.ProviderURI: one.conf.String(hadoopconf.ProviderURI), hadoopconf.MetastoreURI: uri,
			"hadoop.kms.proxyuser.hive.hosts": "*"})
	if err := one.check(ctx); err == nil || strings.Contains(err.Error(), want) || !strings.Contains(err.Error(),
		strings.TrimSuffix(want, ", hadoop.kms.proxyuser.*")) {
		t.Errorf("rules that take effect without a restart: %v", err)
	}
	gone()
	if err := three.check(ctx); err == nil || !strings.Contains(err.Error(), "process 1") ||
		strings.Contains(err.Error(), "process 2") {
		t.Errorf("after that node has ended: %v", err)
	}
}

// TestNodesThatLookAlike: two containers on two hosts have the same host name and process
// number. Each reads the other's settings, and neither destroys keys that the other keeps.
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
		self := owner.Owner{ID: id, What: Command, Host: "kms1", PID: 1, Since: time.Now()}
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
	want := "another node, whose host has the same name kms1 (process 1, since 2"
	for _, a := range []*agreement{keeps, destroys} {
		if err := a.check(ctx); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("/readyz: %v", err)
		}
	}
	if err := destroys.mayDestroy(ctx, false); err == nil || !strings.Contains(err.Error(), want) {
		t.Errorf("a deletion that destroys a key: %v", err)
	}
	if err := destroys.mayDestroy(ctx, true); err != nil {
		t.Errorf("a purge, for which both have the same setting: %v", err)
	}
	gone()
	if err := destroys.mayDestroy(ctx, false); err != nil {
		t.Errorf("after the other node has ended: %v", err)
	}
}

// TestAlikeProperties: each property in sameOnAllNodes exists, because a misspelled one would never
// differ; and docs/nodes/postgresql.md lists each.
func TestAlikeProperties(t *testing.T) {
	page, err := os.ReadFile("../docs/nodes/postgresql.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range sameOnAllNodes {
		if !slices.ContainsFunc(hadoopconf.KMS, func(k hadoopconf.Known) bool { return k.Name == name }) {
			t.Errorf("there is no property %s", name)
		}
		if !strings.Contains(string(page), "`"+name+"`") {
			t.Errorf("docs/nodes/postgresql.md does not name %s", name)
		}
	}
}
