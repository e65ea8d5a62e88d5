package hadoop

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"testing"
)

// nextMigration is a change of the schema as the next release may make it: it only adds.
const nextMigration = `-- +goose Up
ALTER TABLE ez_key ADD COLUMN next_column text NOT NULL DEFAULT 'of the next release';
ALTER TABLE key_version ADD COLUMN next_column bigint;
CREATE TABLE next_table (id bigint PRIMARY KEY);
CREATE INDEX key_version_next ON key_version (next_column);
`

var schemaNumber = regexp.MustCompile(`const schemaVersion = (\d+)\n`)

// next builds the program with one more migration of the metastore in PostgreSQL. version is that of its schema.
var next = sync.OnceValues(func() (n nextProgram, err error) {
	const file = "metastore/postgres/postgres.go"
	source, err := os.ReadFile(filepath.Join(Root(), file))
	if err != nil {
		return n, err
	}
	found := schemaNumber.FindSubmatch(source)
	if found == nil {
		return n, fmt.Errorf("%s has no number of the schema", file)
	}
	now, _ := strconv.Atoi(string(found[1])) // it has digits alone
	n.schema = now + 1
	n.path, err = build("claviger-next", map[string]string{
		file: strings.Replace(string(source), string(found[0]), fmt.Sprintf("const schemaVersion = %d\n", n.schema), 1),
		fmt.Sprintf("metastore/postgres/migrations/%05d_next.sql", n.schema): nextMigration,
	})
	return n, err
})

type nextProgram struct {
	path   string
	schema int
}

// NextBinary returns the path of a program as the next release may be, and the version of its metastore's schema, which
// is one higher than that of Binary. The programs differ in nothing else.
func NextBinary(t testing.TB) (path string, schema int) {
	t.Helper()
	if os.Getenv("CLAVIGER_BIN") != "" {
		t.Skip("CLAVIGER_BIN names another program, whose next release cannot be built")
	}
	n, err := next()
	if err != nil {
		t.Fatalf("building the next release: %v", err)
	}
	return n.path, n.schema
}

// writeOverlay writes the files of an overlay into a folder, and the list of them that go build reads.
func writeOverlay(dir string, files map[string]string) (list string, err error) {
	replace := map[string]string{}
	for path, text := range files {
		to := filepath.Join(dir, "overlay-"+filepath.Base(path))
		if err := os.WriteFile(to, []byte(text), 0o600); err != nil {
			return "", err
		}
		replace[filepath.Join(Root(), path)] = to
	}
	text, err := json.Marshal(map[string]any{"Replace": replace})
	if err != nil {
		return "", err
	}
	list = filepath.Join(dir, "overlay.json")
	return list, os.WriteFile(list, text, 0o600)
}
