package main

import (
	"bytes"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"claviger/hadoopconf"
	"claviger/internal/pgtest"
	"claviger/metastore/postgres"
	"claviger/owner"
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
		self := owner.Owner{What: kmsCommand, Host: "kms1", PID: pid}
		release, err := store.Claim(ctx, self, false)
		if err != nil {
			t.Fatal(err)
		}
		dir := t.TempDir()
		all := map[string]string{hadoopconf.ProviderURI: "cloudera.hsmkp://file@" + filepath.Join(dir, "luna.keystore"), hadoopconf.MetastoreURI: uri}
		for name, value := range props {
			all[name] = value
		}
		writeSite(t, dir, all)
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
	writeSite(t, one.conf.Dir(), map[string]string{hadoopconf.ProviderURI: one.conf.String(hadoopconf.ProviderURI), hadoopconf.MetastoreURI: uri, "hadoop.kms.proxyuser.hive.hosts": "*"})
	if err := one.check(ctx); err == nil || strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), strings.TrimSuffix(want, ", hadoop.kms.proxyuser.*")) {
		t.Errorf("rules that are taken without a restart: %v", err)
	}
	gone()
	if err := three.check(ctx); err == nil || !strings.Contains(err.Error(), "process 1") || strings.Contains(err.Error(), "process 2") {
		t.Errorf("after that node has gone: %v", err)
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
