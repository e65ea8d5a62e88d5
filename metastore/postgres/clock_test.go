package postgres_test

import (
	"net/url"
	"testing"
	"time"

	"claviger"
	"claviger/internal/pgtest"
	"claviger/metastore"
	"claviger/metastore/postgres"
)

// shiftedClock returns the URI of a database in which clock_timestamp() is off by an interval.
func shiftedClock(t *testing.T, by string) (uri string) {
	t.Helper()
	uri = pgtest.Database(t)
	u, err := url.Parse(uri)
	if err != nil {
		t.Fatal(err)
	}
	pgtest.Shared(t).Exec(t, u.Path[1:], `CREATE SCHEMA shifted`,
		`CREATE FUNCTION shifted.clock_timestamp() RETURNS timestamptz LANGUAGE sql VOLATILE AS
			$$ SELECT pg_catalog.clock_timestamp() + interval '`+by+`' $$`)
	q := u.Query()
	q.Set("search_path", "public,shifted,pg_catalog")
	u.RawQuery = q.Encode()
	return u.String()
}

// TestClocks checks a database whose clock differs from this host's. Clocks returns the difference, the time of a
// deletion is the later of both clocks, and the time of a use is not later than the database's clock.
func TestClocks(t *testing.T) {
	const month = 30 * 24 * time.Hour
	for by, ahead := range map[string]time.Duration{"30 days": -month, "-30 days": month} {
		ctx := t.Context()
		s, err := postgres.Open(ctx, postgres.Config{URI: shiftedClock(t, by)})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = s.Close() })
		c, err := s.Clocks(ctx)
		if err != nil || (c.Ahead-ahead).Abs() > 10*time.Second || c.Check() == nil {
			t.Errorf("%s: %+v, %v: %v", by, c, err, c.Check())
		}
		k := metastore.Key{Metadata: claviger.Metadata{Name: "k", Cipher: claviger.DefaultCipher, BitLength: 128,
			Created: time.UnixMilli(1)},
			List: []metastore.Version{{ID: "0", Object: "00", Created: time.UnixMilli(1), Check: []byte{1}}}}
		if err := s.Insert(ctx, k); err != nil {
			t.Fatal(err)
		}
		if err := s.RecordUses(ctx, []metastore.LastUse{{Version: "k@0", Last: time.Now()}}); err != nil {
			t.Fatal(err)
		}
		if err := s.SoftDelete(ctx, "k"); err != nil {
			t.Fatal(err)
		}
		list, err := s.DeletedKeys(ctx)
		if err != nil || len(list) != 1 || list[0].Since.Sub(c.Latest()).Abs() > 10*time.Second {
			t.Errorf("%s: deleted %+v, want %v (%v)", by, list, c.Latest(), err)
		}
		last, _, err := s.LastUses(ctx, "k@0")
		if err != nil || last[0].Sub(c.Earliest()).Abs() > 10*time.Second {
			t.Errorf("%s: used %v, want %v (%v)", by, last, c.Earliest(), err)
		}
	}
}
