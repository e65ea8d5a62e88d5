package recovery

import (
	"errors"
	"fmt"
	"log/slog"
	"net/url"
	"path/filepath"
	"slices"
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

// TestAccept checks that Accept lists the changes that nodes have found missing, and gives them up only with giveUp.
func TestAccept(t *testing.T) {
	ctx := t.Context()
	server := pgtest.Shared(t)
	uri := server.Database(t)
	store, err := postgres.Open(ctx, postgres.Config{URI: uri})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = store.Close() }() // an error does not matter
	dir := t.TempDir()
	conf := kmstest.Conf(t, map[string]string{
		hadoopconf.ProviderURI:  "cloudera.hsmkp://file@" + filepath.Join(dir, "luna.keystore"),
		hadoopconf.MetastoreURI: uri,
	})
	run := func(giveUp bool) (*Losses, error) {
		t.Helper()
		return Accept(ctx, conf, giveUp, slog.New(slog.DiscardHandler))
	}
	if l, err := run(false); err != nil || !l.Tracked || l.Found() {
		t.Errorf("%+v, %v", l, err)
	}
	u, err := url.Parse(uri)
	if err != nil {
		t.Fatal(err)
	}
	zone3 := metastore.Key{
		Metadata: claviger.Metadata{Name: "zone3", Cipher: claviger.DefaultCipher, BitLength: 128,
			Created: time.Now()},
		List: []metastore.Version{{ID: "0", Object: "00", Created: time.Now(), Check: make([]byte, 8)}},
	}
	if err := store.Insert(ctx, zone3); err != nil {
		t.Fatal(err)
	}
	const ahead = 4102444800000 // the clock of the lost server was ahead
	for _, row := range []string{
		`'aa', 7, 'zone1', 1700000000000, 1700000001000, ''`,
		fmt.Sprintf(`'bb', 8, 'zone2', %d, 1700000001000, ''`, ahead),
		`'cc', 9, 'zone3', 1700000000000, 1700000001000, 'deleted'`,
	} {
		server.Exec(t, strings.TrimPrefix(u.Path, "/"),
			`INSERT INTO lost_change (id, seq, key, at, told, change) VALUES (`+row+`)`)
	}
	l, err := run(false)
	if !errors.As(err, new(*claviger.RefusedError)) || len(l.Lost) != 3 || l.GivenUp {
		t.Fatalf("without giving up: %+v, %v", l, err)
	}
	if !strings.Contains(l.NotCompared, "luna.keystore") || l.TokenUnknown == "" {
		t.Errorf("the token: %q, %q", l.NotCompared, l.TokenUnknown)
	}
	if want := (Loss{Key: "zone1", At: "2023-11-14T22:13:20Z", Now: "not in the store"}); !slices.Contains(l.Lost,
		want) {
		t.Errorf("%+v is not in %+v", want, l.Lost)
	}
	if !slices.ContainsFunc(l.Lost, func(c Loss) bool {
		return c.Key == "zone3" && c.Change == "deleted" && strings.Contains(c.Now, "delete it again")
	}) {
		t.Errorf("%+v does not say that zone3 is back", l.Lost)
	}
	if lost, err := store.Lost(ctx); err != nil || len(lost) != 3 {
		t.Errorf("without giveUp the changes were given up: %v, %v", lost, err)
	}
	if l, err := run(true); err != nil || !l.GivenUp || !l.Found() {
		t.Errorf("giving up: %+v, %v", l, err)
	}
	if lost, err := store.Lost(ctx); err != nil || len(lost) != 0 {
		t.Errorf("the changes were not given up: %v, %v", lost, err)
	}
	if given, _, err := store.Setting(ctx, "history.accepted"); err != nil || given < fmt.Sprint(ahead) {
		t.Errorf("given up until %q, %v", given, err)
	}
}
