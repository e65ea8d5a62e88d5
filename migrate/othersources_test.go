package migrate_test

import (
	"strings"
	"testing"
	"time"

	"claviger"
	"claviger/migrate"
	"claviger/provider/memory"
)

// TestOtherSource: the plan fails if the configured Key Trustee folder belongs to another KMS. Otherwise EDEKs of
// the source's keys would open nowhere after the source has stopped.
func TestOtherSource(t *testing.T) {
	const check = "keys at the other source"
	for _, tt := range []struct {
		name     string
		fill     func(t *testing.T, to *memory.Provider) // makes the folder's keys
		hidden   bool                                    // the source does not show the names of versions
		numbered bool                                    // the source numbers its versions
		status   migrate.Status
		want     string
	}{
		{"the source's folder",
			func(t *testing.T, to *memory.Provider) { addTo(t, to, "a", 2, 0); addTo(t, to, "b", 1, 0) },
			false, false, migrate.OK, "has the 2 keys of the source"},
		{"another KMS's folder", func(t *testing.T, to *memory.Provider) { addTo(t, to, "else", 1, 0) }, false, false,
			migrate.Failure, "lacks 2 (a, b)"},
		{"another KMS's folder, names not shown",
			func(t *testing.T, to *memory.Provider) { addTo(t, to, "else", 1, 0) }, true,
			false, migrate.Failure, "lacks 2 (a, b)"},
		{"other keys of the same names", func(t *testing.T, to *memory.Provider) {
			later := func(m *claviger.Metadata) { m.Created = born.Add(time.Hour) }
			addTo(t, to, "a", 2, 0, later)
			addTo(t, to, "b", 1, 0, later)
		}, false, false, migrate.Failure, "has, with another time or number of versions, 2 (a, b)"},
		{"an older copy of the source's folder",
			func(t *testing.T, to *memory.Provider) { addTo(t, to, "a", 1, 0); addTo(t, to, "b", 1, 0) },
			false, false, migrate.Failure, "number of versions, 1 (a)"},
		{"another KMS's folder, the source numbers its versions",
			func(t *testing.T, to *memory.Provider) { addTo(t, to, "else", 1, 0) }, false,
			true, migrate.Warning, "lacks 2 (a, b)"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			b := newTestMigration(t)
			b.source = memory.New(memory.Config{OpaqueIDs: !tt.numbered, SequentialIDs: tt.numbered,
				URI: b.source.URI()})
			b.cfg.Source = &remoteKMS{stub: stub{Source: b.source, noNames: tt.hidden}}
			b.add(t, "a", 2)
			b.add(t, "b", 1)
			other := memory.New(memory.Config{OpaqueIDs: true, URI: "keytrustee://file@/x/.keytrustee"})
			defer other.Close()
			tt.fill(t, other)
			b.cfg.Probes.OtherSources = []migrate.Source{other}
			p, err := b.engine(t).Plan(t.Context())
			must(t, err)
			c := checkOf(t, p, check)
			if c.Status != tt.status || !strings.Contains(c.Measured, tt.want) ||
				(c.Cure != "") != (tt.status != migrate.OK) {
				t.Errorf("%+v; want %s, %q", c, tt.status, tt.want)
			}
			if tt.status == migrate.Failure && p.Ready() {
				t.Error("the plan is ready")
			}
		})
	}
}
