package kms

import (
	"bytes"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"testing"

	"claviger"
	"claviger/hadoopconf"
	"claviger/kms/kmstest"
	"claviger/metastore"
	"claviger/metastore/sqlite"
)

// TestLargeStoreAtStart: a server that keeps delegation tokens in its metastore does not check each page of a large
// file before it serves. Such a check finds the damage that this file has.
func TestLargeStoreAtStart(t *testing.T) {
	path := filepath.Join(t.TempDir(), "claviger.db")
	s, err := sqlite.Open(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	c := &metastore.Content{Rows: map[string][][]any{}}
	for key := range 1000 {
		c.Rows["ez_key"] = append(c.Rows["ez_key"], []any{int64(key + 1), fmt.Sprint("key", key),
			claviger.DefaultCipher, int64(256), string(bytes.Repeat([]byte("description "), 1000)), "{}", int64(1)})
	}
	if err := s.Fill(t.Context(), c); err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	copy(data[len(data)/2:], bytes.Repeat([]byte{0xff}, 8<<10))
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
	if s, err := sqlite.Open(t.Context(), path); err == nil {
		_ = s.Close()
		t.Fatal("a check of all pages does not find the damage")
	}
	shared, err := openCluster(t.Context(), kmstest.Conf(t, map[string]string{
		hadoopconf.MetastoreURI: "sqlite://" + path}), slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	if shared.store == nil {
		t.Error("the tokens are not in the metastore")
	}
	if err := shared.Close(); err != nil {
		t.Error(err)
	}
}
