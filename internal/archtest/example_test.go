package archtest

import (
	"go/doc"
	"go/parser"
	"go/token"
	"path/filepath"
	"strings"
	"testing"
)

// noExample has the reasons why packages have no runnable example.
var noExample = map[string]string{
	"bench":                    "it loads a running KMS; docs/performance.md shows it",
	"buildinfo":                "its output differs with each build",
	"console/pages":            "it needs a KMS",
	"docs":                     "pages of text",
	"demo":                     "it plays with real servers, for a minute",
	"deploy":                   "it has tests alone",
	"gssapi":                   "it needs a KDC",
	"heap":                     "its effect shows only under load",
	"keyhsm":                   "it needs an RSA pair in a token",
	"keyhsm/host":              "it needs a token",
	"trustee/host":             "it serves until it is stopped",
	"keyhsm/diagnosis":         "docs/doctor.md shows it",
	"trustee/diagnosis":        "docs/doctor.md shows it",
	"kms/diagnosis":            "docs/doctor.md shows it",
	"kms/edeks":                "docs/census.md shows it",
	"kms/evidence":             "docs/evidence.md shows it",
	"kms/kmstest":              "it serves tests of the server",
	"kms":                      "README.md shows it",
	"kmsapi":                   "its example is each recording in testdata/wire",
	"metastore":                "a contract; metastore/sqlite has an example",
	"pkcs11/cryptoki":          "pkcs11 has an example",
	"pkcs11/worker":            "a program starts itself as a worker",
	"metastore/location":       "it chooses between stores that have examples",
	"metastore/postgres":       "it needs PostgreSQL",
	"metastore/storetest":      "a suite, which its stores run",
	"migrate":                  "docs/migration shows it, held by TestPage",
	"migrate/report":           "docs/migration shows what it prints",
	"migrate/shred":            "it destroys files",
	"namenode":                 "it needs a NameNode",
	"pgdb":                     "it needs PostgreSQL",
	"pgdb/pgdbtest":            "a suite, which its users run",
	"provider/builtin":         "a list",
	"provider/hsm":             "it needs a token",
	"provider/keytrustee":      "it needs a Key Trustee Server",
	"provider/kmsclient":       "it needs another KMS",
	"provider/providertest":    "a suite, which each provider runs",
	"recovery":                 "the scripts of cmd/claviger show it",
	"sqlitedb":                 "metastore/sqlite shows how a store uses it",
	"doctor/doctortest":        "it serves tests of checks",
	"durable/durabletest":      "a suite, which writers run",
	"trace/otlp":               "it needs a collector",
	"trustee/backup":           "it needs a store with deposits",
	"trustee/location":         "it chooses between stores that have tests",
	"trustee/replica":          "it needs two servers",
	"trustee/server":           "it needs a client with an identity; docs/trustee.md shows it",
	"trustee/server/postgres":  "it needs PostgreSQL",
	"trustee/server/sqlite":    "its use is that of any store of trustee/server",
	"trustee/server/storetest": "a suite, which its stores run",
	"tlskey":                   "it needs a private key in a token",
	"tlskey/tlskeytest":        "it serves tests of servers",
	"web":                      "it serves until it is stopped",
}

// TestExamples: each package that others could import has an example that a test runs.
func TestExamples(t *testing.T) {
	used := map[string]bool{}
	for _, p := range packages(t) {
		room := p.room()
		if strings.HasPrefix(room, "cmd/") || strings.HasPrefix(room, "internal/") || strings.HasPrefix(room, "test/") {
			continue
		}
		has := false
		for _, name := range p.XTestGoFiles {
			has = has || runnable(t, filepath.Join(p.Dir, name))
		}
		switch reason := noExample[room]; {
		case !has && reason == "":
			t.Errorf("%s has no example with an output: add one, or add the reason to noExample", p.ImportPath)
		case has && reason != "":
			t.Errorf("%s has an example: take it out of noExample", p.ImportPath)
		}
		used[room] = true
	}
	for room := range noExample {
		if !used[room] && room != "kms" {
			t.Errorf("noExample names %s, which is not a package", room)
		}
	}
}

// runnable reports whether file has an example that go test runs.
func runnable(t *testing.T, file string) bool {
	t.Helper()
	f, err := parser.ParseFile(token.NewFileSet(), file, nil, parser.ParseComments)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range doc.Examples(f) {
		if e.Output != "" {
			return true
		}
	}
	return false
}
