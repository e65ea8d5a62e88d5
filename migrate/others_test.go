package migrate_test

import (
	"strings"
	"testing"
	"time"

	"claviger"
	"claviger/migrate"
	"claviger/provider/memory"
)

// TestOtherSource: a folder that answers and is another KMS's fails the plan, before old
// EDEKs open nowhere once the source has stopped.
func TestOtherSource(t *testing.T) {
	const name = "keys at the other source"
	for _, tt := range []struct {
		what   string
		fill   func(t *testing.T, to *memory.Provider)
		hidden bool
		number bool
		status migrate.Status
		want   string
	}{
		{"the source's", func(t *testing.T, to *memory.Provider) { addTo(t, to, "a", 2, 0); addTo(t, to, "b", 1, 0) },
			false, false, migrate.OK, "has the 2 keys of the source"},
		{"another's", func(t *testing.T, to *memory.Provider) { addTo(t, to, "else", 1, 0) }, false, false,
			migrate.Failure, "lacks 2 (a, b)"},
		{"another's, names not shown", func(t *testing.T, to *memory.Provider) { addTo(t, to, "else", 1, 0) }, true,
			false, migrate.Failure, "lacks 2 (a, b)"},
		{"of keys of the same names", func(t *testing.T, to *memory.Provider) {
			later := func(m *claviger.Metadata) { m.Created = born.Add(time.Hour) }
			addTo(t, to, "a", 2, 0, later)
			addTo(t, to, "b", 1, 0, later)
		}, false, false, migrate.Failure, "has, with another time or number of versions, 2 (a, b)"},
		{"an older one", func(t *testing.T, to *memory.Provider) { addTo(t, to, "a", 1, 0); addTo(t, to, "b", 1, 0) },
			false, false, migrate.Failure, "number of versions, 1 (a)"},
		{"beside a source of numbers", func(t *testing.T, to *memory.Provider) { addTo(t, to, "else", 1, 0) }, false,
			true, migrate.Warning, "lacks 2 (a, b)"},
	} {
		t.Run(tt.what, func(t *testing.T) {
			b := newBench(t)
			b.source = memory.New(memory.Config{OpaqueIDs: !tt.number, SequentialIDs: tt.number, URI: b.source.URI()})
			b.cfg.Source = &farKMS{stub: stub{Source: b.source, noNames: tt.hidden}}
			b.add(t, "a", 2)
			b.add(t, "b", 1)
			other := memory.New(memory.Config{OpaqueIDs: true, URI: "keytrustee://file@/x/.keytrustee"})
			defer other.Close()
			tt.fill(t, other)
			b.cfg.Probes.Others = []migrate.Source{other}
			p, err := b.engine(t).Plan(t.Context())
			must(t, err)
			c := checkOf(t, p, name)
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
