package main

import (
	"bytes"
	"errors"
	"fmt"
	"net/url"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"claviger"
	"claviger/hadoopconf"
	"claviger/internal/pgtest"
	"claviger/metastore"
	"claviger/metastore/postgres"
)

// TestMetastoreAccept: what nodes have found missing is listed, and given up only with
// --yes.
func TestMetastoreAccept(t *testing.T) {
	ctx := t.Context()
	server := pgtest.Shared(t)
	uri := server.Database(t)
	store, err := postgres.Open(ctx, postgres.Config{URI: uri})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = store.Close() }() // its end is no matter
	dir := t.TempDir()
	writeSite(t, dir, map[string]string{hadoopconf.ProviderURI: "cloudera.hsmkp://file@" + filepath.Join(dir, "luna.keystore"), hadoopconf.MetastoreURI: uri})
	run := func(yes bool) (string, error) {
		var out bytes.Buffer
		err := acceptLosses(ctx, &out, dir, yes)
		return out.String(), err
	}
	if out, err := run(false); err != nil || !strings.Contains(out, "No node has told") {
		t.Errorf("%q, %v", out, err)
	}
	u, err := url.Parse(uri)
	if err != nil {
		t.Fatal(err)
	}
	zone3 := metastore.Key{Metadata: claviger.Metadata{Name: "zone3", Cipher: claviger.DefaultCipher, BitLength: 128, Created: time.Now()}, List: []metastore.Version{{ID: "0", Object: "00", Created: time.Now(), Check: make([]byte, 8)}}}
	if err := store.Insert(ctx, zone3); err != nil {
		t.Fatal(err)
	}
	server.Exec(t, strings.TrimPrefix(u.Path, "/"), `INSERT INTO lost_change (id, seq, key, at, told) VALUES ('aa', 7, 'zone1', 1700000000000, 1700000001000)`)
	const ahead = 4102444800000 // by the clock of a server that is gone
	server.Exec(t, strings.TrimPrefix(u.Path, "/"), fmt.Sprintf(`INSERT INTO lost_change (id, seq, key, at, told) VALUES ('bb', 8, 'zone2', %d, 1700000001000)`, ahead))
	server.Exec(t, strings.TrimPrefix(u.Path, "/"), `INSERT INTO lost_change (id, seq, key, at, told, change) VALUES ('cc', 9, 'zone3', 1700000000000, 1700000001000, 'deleted')`)
	for _, want := range []string{`zone1 +2023-11-14T22:13:20Z +not known +not in the store\n`, `zone3 +2023-11-14T22:13:20Z +deleted +BACK, .* delete it again`, `What the token tells is left out: .*luna.keystore`} {
		if out, _ := run(false); !regexp.MustCompile(want).MatchString(out) {
			t.Errorf("%q is not in %s", want, out)
		}
	}
	var coded *exitError
	if out, err := run(false); !errors.As(err, &coded) || coded.code != exitRefused || !strings.Contains(out, "zone1") || !strings.Contains(out, "2023-11-14T22:13:20Z") {
		t.Errorf("without --yes: %q, %v", out, err)
	}
	if lost, err := store.Lost(ctx); err != nil || len(lost) != 3 {
		t.Errorf("without --yes it was given up: %v, %v", lost, err)
	}
	if out, err := run(true); err != nil || !strings.Contains(out, "Given up") {
		t.Errorf("with --yes: %q, %v", out, err)
	}
	if lost, err := store.Lost(ctx); err != nil || len(lost) != 0 {
		t.Errorf("with --yes it was not given up: %v, %v", lost, err)
	}
	if given, _, err := store.Setting(ctx, "history.accepted"); err != nil || given < fmt.Sprint(ahead) {
		t.Errorf("given up until %q, %v", given, err)
	}
}
