package recovery

import (
	"context"
	"encoding/json"
	"log/slog"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"claviger"
	"claviger/hadoopconf"
	"claviger/internal/pgtest"
	"claviger/kms/kmstest"
	"claviger/metastore"
	"claviger/metastore/postgres"
)

// TestVerifyPostgres restores a dump as docs/backup.md describes, and verifies the database.
func TestVerifyPostgres(t *testing.T) {
	ctx := t.Context()
	server := pgtest.Shared(t)
	from, to, partial := server.Database(t), server.Database(t), server.Database(t)
	fill := func(s *postgres.Store) error {
		k := metastore.Key{Metadata: claviger.Metadata{Name: "zone1", Cipher: claviger.DefaultCipher, BitLength: 128,
			Created: time.Now()}}
		for _, id := range []string{"0", "1"} {
			k.List = append(k.List, metastore.Version{ID: id, Object: "000000000000000" + id, Created: time.Now(),
				Check: make([]byte, 8)})
		}
		if err := s.Insert(ctx, k); err != nil {
			return err
		}
		return s.SetSetting(ctx, "hsm.token.serial", "5e71a1")
	}
	s, err := postgres.Open(ctx, postgres.Config{URI: from})
	if err == nil {
		err = fill(s)
	}
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	dump := filepath.Join(t.TempDir(), "claviger.dump")
	for _, args := range [][]string{
		{"pg_dump", "--format=custom", "--file=" + dump, "--exclude-table-data=master_key",
			"--exclude-table-data=delegation", "--exclude-table-data=signer_secrets", from},
		{"pg_restore", "--exit-on-error", "--single-transaction", "--no-owner", "--role=" + pgtest.Superuser,
			"--dbname=" + to, dump},
		// Like an interrupted restore: all rows exist, but no constraints and indexes.
		{"pg_restore", "--section=pre-data", "--section=data", "--no-owner", "--dbname=" + partial, dump},
	} {
		if out, err := exec.CommandContext(ctx, args[0], args[1:]...).CombinedOutput(); err != nil {
			t.Fatalf("%q: %v: %s", args, err, out)
		}
	}
	dir := t.TempDir()
	site := func(uri string) *hadoopconf.Conf {
		return kmstest.Conf(t, map[string]string{
			hadoopconf.ProviderURI:  "cloudera.hsmkp://file@" + filepath.Join(dir, "luna.keystore"),
			hadoopconf.MetastoreURI: uri,
		})
	}
	r, err := Verify(context.WithoutCancel(ctx), site(to), "", false, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	if r.Keys != 1 || r.Versions != 2 || r.TokenSerial != "5e71a1" || r.Token != nil {
		text, _ := json.Marshal(r)
		t.Errorf("report %s", text)
	}

	_, err = Verify(context.WithoutCancel(ctx), site(partial), "", false, slog.New(slog.DiscardHandler))
	if err == nil || !strings.Contains(err.Error(), "parts of its schema") ||
		!strings.Contains(err.Error(), "--single-transaction") {
		t.Errorf("Verify after an interrupted restore: %v", err)
	}
}
