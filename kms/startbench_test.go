package kms

import (
	"context"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"log/slog"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"claviger"
	"claviger/hadoopconf"
	"claviger/internal/hosttest"
	"claviger/internal/pgtest"
	"claviger/internal/softhsm/softhsmtest"
	"claviger/kms/kmstest"
	"claviger/metastore"
	"claviger/metastore/postgres"
	"claviger/metastore/sqlite"
	"claviger/pkcs11"
)

// versionsOfMany is the number of versions of each key of manyKeys, as in testdata/manykeys/manykeys.c.
const versionsOfMany = 3

// manyKeys makes a library whose token shows many keys, and a folder with its keystore file. check is the check value
// of each version.
func manyKeys(b *testing.B, keys int) (dir, keystore string, check []byte) {
	b.Helper()
	headers, err := exec.CommandContext(b.Context(), "go", "list", "-f", "{{.Dir}}", "github.com/miekg/pkcs11").Output()
	if err != nil {
		b.Fatal(err)
	}
	dir, tok := b.TempDir(), softhsmtest.New(b)
	library := filepath.Join(dir, "manykeys.so")
	cc := exec.CommandContext(b.Context(), "cc", "-shared", "-fPIC", "-O1", "-Wall", "-Wextra", //nolint:gosec // ours
		"-Wno-unused-parameter", "-Werror", "-I", strings.TrimSpace(string(headers)), "-o", library,
		"testdata/manykeys/manykeys.c", "-ldl", "-lpthread")
	if out, err := cc.CombinedOutput(); err != nil {
		b.Fatalf("%v\n%s", err, out)
	}
	b.Setenv("MANYKEYS_MODULE", tok.Module)
	b.Setenv("MANYKEYS_KEYS", fmt.Sprint(keys))
	file := pkcs11.FileConfig{Module: tok.Module, Token: tok.Label, PINFile: tok.PINFile, Profile: pkcs11.SoftHSM}
	cfg, err := file.Config(filepath.Join(dir, "one.keystore"))
	if err != nil {
		b.Fatal(err)
	}
	behind, err := pkcs11.Open(b.Context(), cfg)
	if err != nil {
		b.Fatal(err)
	}
	id := []byte("the value")
	if err := behind.GenerateKey(b.Context(), id, "value", 256); err != nil {
		b.Fatal(err)
	}
	if check, err = behind.CheckValue(b.Context(), id, "value"); err != nil {
		b.Fatal(err)
	}
	if err := behind.Close(); err != nil {
		b.Fatal(err)
	}
	// Not the profile of SoftHSM, in which other searches wait for the survey.
	file.Module, file.Profile = library, pkcs11.Generic
	keystore = filepath.Join(dir, "many.keystore")
	if err := pkcs11.WriteKeystoreFile(keystore, file); err != nil {
		b.Fatal(err)
	}
	return dir, keystore, check
}

// contentOfMany returns the records of manyKeys.
func contentOfMany(keys int, check []byte) *metastore.Content {
	c := &metastore.Content{Rows: map[string][][]any{}}
	for key := range keys {
		name, row := fmt.Sprintf("key%06d", key), int64(key+1)
		c.Rows["ez_key"] = append(c.Rows["ez_key"], []any{row, name, claviger.DefaultCipher, int64(256), nil,
			`{"key.acl.name":"` + name + `"}`, int64(1)})
		for version := range versionsOfMany {
			id := binary.BigEndian.AppendUint32(nil, uint32(key))   //nolint:gosec // small
			id = binary.BigEndian.AppendUint32(id, uint32(version)) //nolint:gosec // small
			c.Rows["key_version"] = append(c.Rows["key_version"], []any{row, int64(version), fmt.Sprint(version),
				hex.EncodeToString(id), int64(1), check})
		}
		c.Rows["key_number"] = append(c.Rows["key_number"], []any{name, int64(0), int64(versionsOfMany)})
	}
	return c
}

// storeOfMany is a metastore that can be filled.
type storeOfMany interface {
	metastore.Movable
	Close() error
}

// openStoreOfMany makes an empty metastore, and returns its URI.
func openStoreOfMany(b *testing.B, kind, dir string) (s storeOfMany, uri string) {
	b.Helper()
	var err error
	if kind == "sqlite" {
		path := filepath.Join(dir, "claviger.db")
		s, err = sqlite.Open(b.Context(), path)
		uri = "sqlite://" + path
	} else {
		uri = pgtest.Shared(b).Database(b)
		s, err = postgres.Open(b.Context(), postgres.Config{URI: uri})
	}
	if err != nil {
		b.Fatal(err)
	}
	return s, uri
}

// BenchmarkServe measures the start of a whole server, to the first EDEK of a key that it has not used before. The
// library runs in a process of its own.
func BenchmarkServe(b *testing.B) {
	for _, keys := range []int{1_000, 100_000} {
		for _, kind := range []string{"sqlite", "postgres"} {
			b.Run(fmt.Sprintf("%s/%d", kind, keys), func(b *testing.B) {
				dir := siteOfMany(b, kind, keys)
				// The first start binds token and metastore, and compares all versions.
				endOfMany(b, dir, startOfMany(b, dir, keys, 10*time.Minute))
				for b.Loop() {
					stop := startOfMany(b, dir, keys, time.Minute)
					b.StopTimer()
					endOfMany(b, dir, stop)
					b.StartTimer()
				}
			})
		}
	}
}

// siteOfMany makes the folder of a server with a token and a metastore with many keys.
func siteOfMany(b *testing.B, kind string, keys int) (dir string) {
	b.Helper()
	dir, keystore, check := manyKeys(b, keys)
	s, uri := openStoreOfMany(b, kind, dir)
	if err := s.Fill(b.Context(), contentOfMany(keys, check)); err != nil {
		b.Fatal(err)
	}
	if err := s.Close(); err != nil {
		b.Fatal(err)
	}
	kmstest.WriteSite(b, dir, map[string]string{
		hadoopconf.ProviderURI: "cloudera.hsmkp://file@" + keystore, hadoopconf.MetastoreURI: uri,
		"hadoop.kms.http.host": "127.0.0.1", "hadoop.kms.key.authorization.enable": "false",
		"claviger.audit.file": filepath.Join(dir, "audit.log")})
	return dir
}

// startOfMany starts the server, and returns when it has made an EDEK of the last key.
func startOfMany(b *testing.B, dir string, keys int, limit time.Duration) (stop func() error) {
	b.Helper()
	ready := filepath.Join(dir, "ready")
	url, stop := hosttest.StartWithin(b, limit, ready, func(ctx context.Context) error {
		return Serve(ctx, Options{Dir: dir, Port: 0, ReadyFile: ready, Log: slog.New(slog.DiscardHandler)})
	})
	status, body := kmstest.Get(b, url, fmt.Sprintf("/kms/v1/key/key%06d/_eek?eek_op=generate&num_keys=1", keys-1),
		"bench")
	if status != http.StatusOK {
		b.Fatalf("%d: %s", status, body)
	}
	return stop
}

// endOfMany stops the server.
func endOfMany(b *testing.B, dir string, stop func() error) {
	b.Helper()
	if err := stop(); err != nil {
		b.Fatal(err)
	}
	_ = os.Remove(filepath.Join(dir, "ready")) // the server may have removed it
}
