package migrate_test

import (
	"bytes"
	"encoding/json"
	"strings"
	"testing"

	"claviger"
	"claviger/internal/golden"
	"claviger/migrate"
)

// TestJSON: the JSON of plan, run, status, verify and finish has the documented field names.
func TestJSON(t *testing.T) {
	b := newTestMigration(t)
	b.add(t, "k", 1)
	p, err := b.engine(t).Plan(t.Context())
	must(t, err)
	v, err := b.engine(t).Verify(t.Context())
	must(t, err)
	r := b.run(t)
	r.Took = "1ms"
	s, err := b.engine(t).Status(t.Context())
	must(t, err)
	f, err := b.engine(t).Finish(t.Context(), migrate.FinishOptions{Since: noon, EDEKsDone: true,
		Get: func(string) (string, string, bool) { return "", "", false }})
	must(t, err)
	var out bytes.Buffer
	enc := json.NewEncoder(&out)
	enc.SetIndent("", "  ")
	for _, doc := range []any{p, r, s, v, f} {
		must(t, enc.Encode(doc))
	}
	golden.Compare(t, "testdata/json.golden", strings.ReplaceAll(out.String(), r.Keys[0].TargetVersions[0], "k@RANDOM"))
}

// TestNewRefuses: New refuses a wrong or incomplete configuration.
func TestNewRefuses(t *testing.T) {
	b := newTestMigration(t)
	b.cfg.Versions = "some"
	if _, err := migrate.New(b.cfg); !claviger.Is(err, claviger.Invalid) || !strings.Contains(err.Error(), `"some"`) {
		t.Errorf("%v", err)
	}
	b.cfg.Versions, b.cfg.Target = "", nil
	if _, err := migrate.New(b.cfg); err == nil {
		t.Error("an engine without a target")
	}
}
