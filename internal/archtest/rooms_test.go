package archtest

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
)

const module = "claviger"

// pkg has the fields of `go list -json` that these tests use.
type pkg struct {
	Dir          string
	ImportPath   string
	Doc          string
	GoFiles      []string
	CgoFiles     []string
	TestGoFiles  []string
	XTestGoFiles []string
	Imports      []string
	TestImports  []string
	XTestImports []string
	Error        *struct{ Err string }
}

// room returns the name of the package as a room, the import path without the module: "provider/hsm"; "" is the root.
func (p *pkg) room() string { return roomOf(p.ImportPath) }

func roomOf(importPath string) string {
	return strings.TrimPrefix(strings.TrimPrefix(importPath, module), "/")
}

// sources returns the files of the program, without tests.
func (p *pkg) sources() []string { return slices.Concat(p.GoFiles, p.CgoFiles) }

func (p *pkg) allFiles() []string { return slices.Concat(p.sources(), p.TestGoFiles, p.XTestGoFiles) }

// roomsOf returns the rooms among import paths.
func roomsOf(imports []string) []string {
	var rooms []string
	for _, i := range imports {
		if i == module || strings.HasPrefix(i, module+"/") {
			rooms = append(rooms, roomOf(i))
		}
	}
	return rooms
}

func moduleRoot(t *testing.T) string {
	t.Helper()
	dir, err := filepath.Abs("../..")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(dir, "go.mod")); err != nil {
		t.Fatalf("the module's root should be %s: %v", dir, err)
	}
	return dir
}

// packages returns all packages of the module. No test changes them.
func packages(t *testing.T) []*pkg {
	t.Helper()
	all, err := listPackages()
	if err != nil {
		t.Fatal(err)
	}
	return all
}

// listPackages runs go list once for all tests: each run takes a second.
var listPackages = sync.OnceValues(func() ([]*pkg, error) {
	cmd := exec.Command("go", "list", "-e", "-json", "./...") //nolint:noctx // short
	cmd.Dir = filepath.Join("..", "..")
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("go list: %w\n%s", err, stderr.Bytes())
	}
	var all []*pkg
	for dec := json.NewDecoder(bytes.NewReader(out)); ; {
		p := new(pkg)
		if err := dec.Decode(p); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			return nil, fmt.Errorf("go list printed what is not JSON: %w", err)
		}
		if p.Error != nil {
			return nil, fmt.Errorf("%s: %s", p.ImportPath, p.Error.Err)
		}
		all = append(all, p)
	}
	if len(all) < 5 {
		return nil, fmt.Errorf("go list found %d packages; there are more", len(all))
	}
	return all, nil
})

// A rule names the rooms that a room may import. Patterns: "x" is room x, "x/*" is
// every room below x, "" is the root package.
type rule struct {
	room string
	may  []string
	why  string
}

var contracts = []string{"provider", "metastore", "authz", "audit"}

// rules has a rule for every room. The first rule that matches a package counts. A
// package without a rule fails the test, so that nobody adds a room by accident.
var rules = []rule{
	{"", []string{"secret"},
		"the root package has types that all rooms use; it imports the standard library and secret"},
	{"secret", []string{"typo"}, "every room may import secret, so secret imports only the comparison of words"},
	{"typo", nil, "it compares words that it gets"},
	{"shellword", nil, "it quotes words that it gets"},
	{"shares", nil, "a semaphore knows the names of its users, and not what it limits"},
	{"owner", nil, "owner knows files and processes"},
	{"filestamp", nil, "it reads the state of any file"},
	{"durable", nil, "durable knows files, and not their content"},
	{"durable/durabletest", []string{"durable"}, "the suite knows only the package that it tests"},
	{"trace", []string{""}, "every room may be a step of a traced request, so trace imports the root alone"},
	{"trace/otlp", []string{"trace"}, "it sends spans, and does not know what they are about"},
	{"terminal", []string{"", "typo"}, "it shows the output of commands, and does not know what they do"},
	{"provider", []string{"", "secret"}, "a contract imports only the root and secret"},
	{"metastore", []string{"", "secret", "owner"}, "a contract imports only the root, secret and owner"},
	{"authz", []string{"", "secret", "filestamp", "typo"},
		"a contract imports only the root and secret; authz also follows a file, and finds misspelt words"},
	{"audit", []string{"", "secret", "durable", "trace"},
		"a contract imports only the root and secret; audit also writes files that must last, while a request waits"},
	{"eek", []string{"", "secret"}, "key arithmetic needs an interface that encrypts blocks, and knows no provider"},
	{"pkcs11", []string{"", "secret", "durable", "filestamp", "pkcs11/cryptoki", "pkcs11/worker", "trace"},
		"pkcs11 knows no Hadoop"},
	{"pkcs11/cryptoki", nil, "it calls a library, and knows no tokens"},
	{"pkcs11/worker", []string{"secret", "pkcs11/cryptoki"}, "it passes calls on, and knows no tokens"},
	{"keyhsm", []string{"", "secret", "pkcs11", "keystore", "durable", "web"},
		"Key HSM knows its token, and neither trustees nor Hadoop"},
	{"keyhsm/host", []string{"", "secret", "keyhsm", "pkcs11", "durable", "owner", "web", "console", "buildinfo",
		"internal/softhsm"}, "it wires a Key HSM, as cmd does, and knows neither trustees nor Hadoop"},
	{"web", []string{"", "secret", "keystore", "durable"},
		"web serves any handler: it knows no keys, no providers and no configuration files"},
	{"tlskey", []string{"", "secret", "keystore", "pkcs11"}, "it signs handshakes, and knows no server"},
	{"tlskey/tlskeytest", []string{"pkcs11", "internal/softhsm"}, "it makes keys for tests"},
	{"gssapi", []string{"", "secret"}, "the binding to the Kerberos library knows no HTTP and no Hadoop"},
	{"libcrypto", nil, "the binding to OpenSSL's library signs with a key that it gets"},
	{"keystore", []string{"", "secret", "filestamp"}, "a codec of keystore files knows no provider"},
	{"kmswire", []string{"", "secret"}, "a codec of Hadoop's JSON knows no provider and no server"},
	{"hadoopconf", []string{"", "secret", "typo"}, "Hadoop's configuration files are a codec"},
	{"census", []string{"fsimage"}, "it counts an image, and knows no keys, no servers and no output"},
	{"namenode", []string{"secret"}, "it fetches a file, and does not know what is in it"},
	{"fsimage", nil, "the reader of a file format knows nothing else"},
	{"writable", nil, "a codec of Hadoop's Writables knows nothing else"},
	{"zookeeper", []string{"", "secret", "metastore", "writable"},
		"it implements the contract of shared data, and knows no Kerberos: its caller passes that"},
	{"provider/providertest", []string{"", "secret", "provider", "eek"},
		"the suite knows the contract and the arithmetic that it checks"},
	{"provider/builtin", []string{"", "secret", "provider", "provider/*", "metastore", "metastore/location",
		"hadoopconf", "pkcs11"}, "the one list of providers, and of their files"},
	{"provider/hsm", []string{"", "secret", "provider", "metastore", "pkcs11", "eek", "shares"},
		"a provider imports contracts and its codec"},
	{"provider/jceks", []string{"", "secret", "provider", "keystore", "eek", "durable", "owner"},
		"a provider imports contracts and its codec"},
	{"provider/kmsclient", []string{"", "secret", "provider", "kmswire", "hadoopconf", "eek", "trace"},
		"a provider imports contracts and its codec"},
	{"provider/memory", []string{"", "secret", "provider", "eek"}, "a provider imports contracts and its codec"},
	{"metastore/storetest", []string{"", "secret", "metastore", "owner"}, "the suite knows only the contract"},
	{"pgdb", []string{"", "secret"}, "a database does not know the data of its stores"},
	{"sqlitedb", []string{"", "durable", "owner"}, "a database does not know the data of its stores"},
	{"metastore/postgres", []string{"", "secret", "metastore", "owner", "pgdb", "durable"},
		"a store knows the contract alone, and its database"},
	{"metastore/sqlite", []string{"", "secret", "metastore", "owner", "sqlitedb", "durable"},
		"a store knows the contract alone, and its database"},
	{"metastore/location", []string{"", "secret", "provider", "hadoopconf", "metastore", "metastore/*", "durable"},
		"the one list of stores; it knows the contract of providers for the place of a keystore file"},
	{"trustee", []string{"", "secret", "durable"},
		"the protocol of the trustee and its clients knows neither keys nor Hadoop"},
	{"trustee/server", []string{"", "secret", "typo", "trustee", "keyhsm", "shares"},
		"a face: it knows the protocol, the contract of its store, the Key HSM, and fair shares of slots"},
	{"trustee/replica", []string{"", "typo", "trustee", "trustee/server"},
		"one of two servers: it knows the protocol, the contract of stores, and the interface of a server"},
	{"trustee/location", []string{"", "trustee", "trustee/server", "trustee/replica", "trustee/server/*", "durable",
		"keystore", "owner"}, "it makes and opens the store of a trustee's folder, and has the one list of stores"},
	{"trustee/host", []string{"", "secret", "tlskey", "trustee", "trustee/*", "keyhsm", "owner", "pgdb", "sqlitedb",
		"web", "console", "buildinfo"}, "it wires a trustee, as cmd does, and does not know Hadoop"},
	{"trustee/server/storetest", []string{"", "trustee", "trustee/server"}, "the suite knows the contract alone"},
	{"pgdb/pgdbtest", []string{"", "durable", "pgdb"}, "the suite knows only the package that it tests"},
	{"trustee/server/postgres", []string{"", "secret", "trustee", "trustee/server", "pgdb"},
		"a store knows the contract alone, and its database"},
	{"trustee/server/sqlite", []string{"", "secret", "trustee", "trustee/server", "trustee/replica",
		"sqlitedb", "durable"}, "a store knows the contract alone, and its database"},
	{"trustee/backup", []string{"", "secret", "trustee", "trustee/server", "durable"},
		"it knows a folder, and the contract of a store"},
	{"provider/keytrustee", []string{"", "secret", "typo", "provider", "trustee", "hadoopconf", "eek", "durable",
		"owner", "filestamp"}, "a provider imports contracts and its codec; it marks, locks and watches a folder"},
	{"keyring", append([]string{"", "secret", "eek", "shares", "trace"}, contracts...),
		"keyring imports contracts, eek, and the semaphore of the sources"},
	{"authn", append([]string{"", "secret", "writable", "hadoopconf", "gssapi"}, contracts...),
		"authentication knows no keys and no HTTP statuses"},
	{"migrate", append([]string{"", "secret", "typo", "eek"}, contracts...), "the engine works on contracts"},
	{"migrate/report", []string{"", "hadoopconf", "migrate"},
		"it only writes texts about the results of the engine"},
	{"migrate/verdict", []string{"", "census", "metastore", "migrate"},
		"it joins what others have read, and reads and prints nothing"},
	{"migrate/shred", []string{"", "durable", "owner", "hadoopconf", "trustee", "provider/keytrustee", "migrate",
		"terminal"},
		"it knows the files of a Key Trustee KMS, and neither keys nor stores"},
	{"migrate/evidence", []string{"", "audit", "buildinfo", "census", "durable", "migrate", "pkcs11", "provider/hsm",
		"secret"}, "it writes and verifies a file, and opens neither a store nor a token"},
	{"recovery", []string{"", "typo", "owner", "hadoopconf", "provider", "provider/builtin",
		"provider/hsm", "metastore", "metastore/*"},
		"it opens a store and a token, and repairs them together; it knows no server, and prints nothing"},
	{"kmsapi", append([]string{"", "secret", "keyring", "kmswire", "authn", "eek", "shares", "trace"}, contracts...),
		"a face imports keyring; it knows no provider"},
	{"buildinfo", []string{"console"}, "it shows the version of the build in a log and on the console"},
	{"console", []string{"", "secret", "metastore", "web"},
		"a face: it shows the measurements of other rooms, and knows no keys"},
	{"console/pages", []string{"", "audit", "authn", "authz", "console", "docs", "kmswire", "migrate"},
		"a face for browsers: it reads and changes keys by requests to the REST API alone"},
	{"docs", nil, "pages, which a program shows"},
	{"heap", nil, "it knows the memory of the process, and no room"},
	{"kms", []string{"", "audit", "authn", "authz", "buildinfo", "console", "console/pages",
		"filestamp", "gssapi", "hadoopconf", "heap", "keyring", "keystore", "kmsapi", "libcrypto", "metastore",
		"metastore/location", "migrate", "migrate/shred", "owner", "pgdb", "namenode", "pkcs11", "provider",
		"provider/builtin", "provider/hsm", "provider/keytrustee", "provider/kmsclient", "secret", "sqlitedb",
		"tlskey", "trace/otlp", "trustee", "typo", "web", "zookeeper"},
		"it wires a KMS from its configuration, and may import only what this list names"},
	{"kms/acls", []string{"", "typo", "authz", "hadoopconf", "kms", "metastore", "metastore/location"},
		"it answers questions about rules, and prints nothing"},
	{"doctor", []string{"", "owner", "secret", "terminal", "typo"},
		"it runs checks and shows their results, and knows no service"},
	{"doctor/doctortest", []string{"doctor", "terminal"}, "tests of checks run the doctor by it"},
	{"kms/diagnosis", []string{"", "authn", "authz", "doctor", "hadoopconf", "kms", "kms/acls", "metastore/location",
		"metastore/sqlite", "migrate", "namenode", "owner", "pkcs11", "provider", "provider/builtin", "provider/hsm",
		"recovery", "secret", "sqlitedb", "terminal", "web"}, "it checks a KMS with the code of the rooms below it"},
	{"keyhsm/diagnosis", []string{"doctor", "keyhsm", "keyhsm/host", "trustee/host"},
		"it shows the checks of a Key HSM to doctor"},
	{"trustee/diagnosis", []string{"", "doctor", "secret", "trustee", "trustee/host", "trustee/location",
		"trustee/server", "web"}, "it checks a trustee with the code of the rooms below it"},
	{"kms/edeks", []string{"", "audit", "census", "durable", "filestamp", "fsimage", "hadoopconf", "kms", "migrate",
		"migrate/report", "migrate/verdict", "namenode", "provider", "provider/hsm", "terminal"},
		"it wires censuses and verdicts for commands"},
	{"kms/evidence", []string{"", "buildinfo", "durable", "kms", "kms/edeks", "migrate", "migrate/evidence",
		"provider/hsm", "secret", "terminal"}, "it gathers the parts of an evidence file for a command"},
	{"kms/kmstest", []string{"hadoopconf", "pkcs11", "internal/*"},
		"tests of package kms use it, so it does not know kms"},
	{"demo", []string{"*"}, "the demo wires, as cmd does"},
	{"bench", []string{"", "durable", "kmswire", "provider", "provider/kmsclient", "secret", "terminal"},
		"it is a client: it knows no server"},
	{"cmd/*", []string{"*"}, "cmd wires"},
	{"deploy", nil, "it tests files for other programs"},
	{"test/*", []string{"*"}, "tests of the whole program wire rooms, as cmd does"},
	{"internal/*", []string{"", "secret", "internal/*"}, "test helpers and this test"},
}

func matches(pattern, room string) bool {
	if pattern == "*" {
		return true
	}
	if dir, ok := strings.CutSuffix(pattern, "/*"); ok {
		return strings.HasPrefix(room, dir+"/")
	}
	return pattern == room
}

func ruleFor(room string) *rule {
	for i := range rules {
		if matches(rules[i].room, room) {
			return &rules[i]
		}
	}
	return nil
}

// forbidden returns what p's program files import against its rule.
func forbidden(p *pkg) []string {
	r := ruleFor(p.room())
	if r == nil {
		return []string{"no rule: say in archtest what this room may import, and in " +
			"docs/architecture/rooms.md what it is"}
	}
	var bad []string
	for _, i := range roomsOf(p.Imports) {
		if i == "shellword" {
			continue // any room may show a command, with names from other machines
		}
		if !slices.ContainsFunc(r.may, func(pattern string) bool { return matches(pattern, i) }) {
			bad = append(bad, fmt.Sprintf("imports %s/%s: %s", module, i, r.why))
		}
	}
	return bad
}

// TestImportRules: no package imports what the rule of its room forbids.
func TestImportRules(t *testing.T) {
	for _, p := range packages(t) {
		for _, b := range forbidden(p) {
			t.Errorf("%s: %s", p.ImportPath, b)
		}
		if room := p.room(); room == "" || room == "secret" || room == "typo" || room == "shellword" {
			for _, i := range p.Imports {
				if strings.Contains(i, ".") {
					t.Errorf("%s imports %s: the standard library only", p.ImportPath, i)
				}
			}
		}
	}
}

// importers are the rooms that may import kms. It wires the other rooms, so they must not import it.
var importers = []string{"cmd/*", "kms/*", "demo", "test/*"}

// TestImportersOfKMS: only commands and tests import kms.
func TestImportersOfKMS(t *testing.T) {
	for _, p := range packages(t) {
		if !slices.Contains(roomsOf(p.Imports), "kms") {
			continue
		}
		if !slices.ContainsFunc(importers, func(pattern string) bool { return matches(pattern, p.room()) }) {
			t.Errorf("%s imports kms, which only commands import", p.ImportPath)
		}
	}
}

// databases are the rooms that may import a driver, or what changes a schema. They
// open every database, so that all stores open theirs in the same way.
var databases = map[string]string{
	"modernc.org/sqlite":              "sqlitedb",
	"modernc.org/sqlite/lib":          "sqlitedb",
	"github.com/jackc/pgx/v5/pgxpool": "pgdb",
	"github.com/pressly/goose/v3":     "pgdb sqlitedb",
}

// TestTraces: the types of OpenTelemetry stay in trace, and its SDK in trace/otlp. The others know the spans of trace.
func TestTraces(t *testing.T) {
	for _, p := range packages(t) {
		for _, i := range p.Imports {
			if !strings.HasPrefix(i, "go.opentelemetry.io/") || p.room() == "trace/otlp" ||
				p.room() == "internal/otlptest" {
				continue
			}
			if p.room() != "trace" || strings.HasPrefix(i, "go.opentelemetry.io/otel/sdk") {
				t.Errorf("%s imports %s: spans are made by trace, and sent by trace/otlp", p.ImportPath, i)
			}
		}
	}
}

// TestDatabases: only the packages of a database import its driver.
func TestDatabases(t *testing.T) {
	for _, p := range packages(t) {
		for _, i := range p.Imports {
			rooms, ok := databases[i]
			if ok && !slices.Contains(strings.Fields(rooms), p.room()) && !strings.HasPrefix(p.room(), "internal/") {
				t.Errorf("%s imports %s: a store is opened by %s", p.ImportPath, i, rooms)
			}
		}
	}
}

// TestImportRuleChecks: the checker finds imports that break the rules.
func TestImportRuleChecks(t *testing.T) {
	for _, c := range []struct {
		room, imports string
		ok            bool
	}{
		{"provider/hsm", "claviger/pkcs11", true},
		{"provider/hsm", "claviger/keyring", false},
		{"provider/hsm", "claviger/provider/jceks", false},
		{"provider/jceks", "claviger/metastore/sqlite", false},
		{"keyring", "claviger/provider", true},
		{"keyring", "claviger/provider/hsm", false},
		{"keyring", "claviger/metastore/sqlite", false},
		{"kmsapi", "claviger/keyring", true},
		{"kmsapi", "claviger/provider/hsm", false},
		{"pkcs11", "claviger/kmswire", false},
		{"secret", "claviger", false},
		{"provider", "claviger/metastore", false},
		{"cmd/claviger", "claviger/provider/builtin", true},
		{"nowhere", "claviger", false},
	} {
		got := forbidden(&pkg{ImportPath: module + "/" + c.room, Imports: []string{c.imports}})
		if (len(got) == 0) != c.ok {
			t.Errorf("%s importing %s: found %q, allowed should be %v", c.room, c.imports, got, c.ok)
		}
	}
}
