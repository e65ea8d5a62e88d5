package diagnosis

import (
	"context"
	"database/sql"
	"errors"
	"io/fs"
	"math"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	p11 "github.com/miekg/pkcs11"

	"claviger/hadoopconf"
	"claviger/internal/faultmodule"
	"claviger/internal/golden"
	"claviger/internal/softhsm"
	"claviger/internal/softhsm/softhsmtest"
	"claviger/kms/kmstest"
	"claviger/metastore"
	"claviger/metastore/sqlite"
	"claviger/pkcs11"
	"claviger/recovery"
)

// failure provokes what one check finds.
type failure struct {
	name, id string
	keys     bool // the site has the keys finance and payroll
	provoke  func(l *lab)
}

// set returns a provocation: a property with another value.
func set(name, value string) func(*lab) {
	return func(l *lab) { l.set(name, strings.ReplaceAll(value, "DIR", l.dir)) }
}

// rule is set for kms-acls.xml.
func rule(name, value string) func(*lab) {
	return func(l *lab) {
		l.acls[name] = value
		l.write()
	}
}

// token returns a provocation: a keystore file with another content.
func token(change func(*pkcs11.FileConfig)) func(*lab) {
	return func(l *lab) {
		change(&l.file)
		l.write()
	}
}

// fails returns a provocation: a function of the HSM's library fails, except for its first calls.
func fails(f faultmodule.Function, code uint) func(*lab) {
	return func(l *lab) {
		l.Order(f, faultmodule.Order{Action: faultmodule.Fail, Value: code, Times: faultmodule.Always})
	}
}

func (l *lab) must(err error) {
	l.t.Helper()
	if err != nil {
		l.t.Fatal(err)
	}
}

// atPort starts a server at the port of the site, and returns the port.
func (l *lab) atPort(h http.Handler) (port string) {
	l.t.Helper()
	other := httptest.NewServer(h)
	l.t.Cleanup(other.Close)
	_, port, err := net.SplitHostPort(other.Listener.Addr().String())
	l.must(err)
	l.set("hadoop.kms.http.port", port)
	return port
}

// answers is atPort for a server with one answer.
func (l *lab) answers(text string) { l.atPort(late(http.StatusOK, text)) }

// mode returns a provocation: a file with another mode.
func mode(name string, m fs.FileMode) func(*lab) {
	return func(l *lab) { l.must(os.Chmod(l.path(name), m)) }
}

// configurationFailures are failures that need no HSM.
var configurationFailures = []failure{
	{"a folder without files", "D-conf-read", false, func(l *lab) { l.must(os.Remove(l.path("kms-site.xml"))) }},
	{"a file that is no XML", "D-conf-read", false, func(l *lab) {
		l.must(os.WriteFile(l.path("kms-site.xml"), []byte("<configuration><property>"), 0o600))
	}},
	{"root beside files of another user", "D-conf-user", false, func(l *lab) {
		l.must(os.Chown(l.token.PINFile, 1, 1))
	}},
	{"a misspelt property", "D-conf-names", false, set("hadoop.kms.http.prt", "1")},
	{"a value of another type", "D-conf-values", false, set("hadoop.kms.http.port", "http")},
	{"values that contradict each other", "D-conf-values", false, func(l *lab) {
		set("claviger.audit.hadoop.enabled", "false")(l)
		set("hadoop.kms.ssl.enabled", "true")(l)
		set(hadoopconf.InitiateMigration, "true")(l)
	}},
	{"an unknown scheme", "D-conf-values", false, set(hadoopconf.ProviderURI, "vault://file@/x")},
	{"a folder that does not exist", "D-conf-files", false, set("claviger.audit.file", "DIR/logs/audit.log")},
	{"files of root", "D-conf-files", false, func(l *lab) {
		l.o.User = "daemon"
		l.enterable()
	}},
	{"a folder of root with files of the service", "D-conf-files", true, func(l *lab) {
		l.o.User = "daemon"
		kmstest.WriteFile(l.t, l.path("audit.log"), "") // each file exists, and new ones cannot be made
		l.give("daemon")
		l.must(os.Chown(l.dir, 0, 0))
	}},
	{"a PIN that everybody reads", "D-conf-secrets", false, func(l *lab) {
		l.must(os.Chmod(l.token.PINFile, 0o644)) //nolint:gosec // the test needs it
	}},
	{"rules that everybody writes", "D-conf-secrets", false, mode("kms-acls.xml", 0o666)},
	{"no rules", "D-acl-nobody", false, func(l *lab) { l.must(os.Remove(l.path("kms-acls.xml"))) }},
	{"no rule of keys", "D-acl-nobody", false, func(l *lab) { l.acls = nil; l.write() }},
	{"rules without effect, and no rules of keys", "D-acl-nobody", false, func(l *lab) {
		set("hadoop.kms.key.authorization.enable", "false")(l)
		l.must(os.Remove(l.path("kms-acls.xml")))
	}},
	{"a rule with a misspelt name", "D-acl-rules", false, rule("default.key.acl.DECRPT_EEK", "bob")},
	{"a keystore that is no keystore", "D-provider-open", false, func(l *lab) {
		l.set(hadoopconf.ProviderURI, "jceks://file@"+l.path("kms.jceks"))
		l.must(os.WriteFile(l.path("kms.jceks"), []byte("no keystore"), 0o600))
	}},
	{"a superuser who may decrypt, by the rules of operations", "D-acl-hdfs", false,
		rule("hadoop.kms.blacklist.DECRYPT_EEK", "oozie")},
}

// storeFailures are failures of the metastore, and of rules about its keys.
var storeFailures = []failure{
	{"no place", "D-store-place", false, set(hadoopconf.MetastoreURI, "mysql://db/x")},
	{"a damaged file", "D-store-integrity", true, func(l *lab) { l.damage() }},
	{"a file that is no metastore", "D-store-integrity", false, func(l *lab) {
		l.must(os.WriteFile(l.path("c.db"), []byte("text"), 0o600))
	}},
	{"an older schema", "D-store-schema", true, func(l *lab) {
		db, err := sql.Open("sqlite", l.path("c.db"))
		l.must(err)
		_, err = db.ExecContext(l.t.Context(), "DELETE FROM goose_db_version WHERE version_id > 4")
		l.must(errors.Join(err, db.Close()))
	}},
	{"a full file system", "D-store-size", true, func(l *lab) { replace(l.t, &storeRoom, math.MaxInt64) }},
	{"a slow metastore", "D-store-latency", true, func(l *lab) { replace(l.t, &storeLatency, 0) }},
	{"a time in the future", "D-store-clock", true, func(l *lab) {
		store, err := sqlite.Open(l.t.Context(), l.path("c.db"))
		l.must(err)
		l.must(errors.Join(store.RecordUses(l.t.Context(), []metastore.LastUse{{Version: "payroll@0",
			Last: time.Date(2199, 1, 1, 0, 0, 0, 0, time.UTC)}}), store.Close()))
	}},
	{"another program at the port", "D-server-ready", false, func(l *lab) {
		l.atPort(http.NotFoundHandler())
	}},
	{"a server that does not say why it is not ready", "D-server-ready", false, func(l *lab) {
		l.answers(`{"ready": false, "checks": [{"name": "write", "ok": true}]}`)
	}},
	{"a server that checks nothing", "D-server-ready", false, func(l *lab) {
		l.answers(`{"ready": true, "checks": []}`)
	}},
	{"a server that is not ready", "D-server-ready", false, func(l *lab) {
		l.keys("payroll")
		l.ownPort()
		l.serve()
		fails(faultmodule.EncryptInit, p11.CKR_DEVICE_ERROR)(l)
	}},
	{"a node without an address, and one that is late and not ready", "D-server-nodes", false, func(l *lab) {
		port := l.atPort(late(http.StatusOK, `{"ready": false, "checks": []}`))
		l.hdfs(hdfsPath, "kms://http@127.0.0.1;kms-2.invalid:"+port+"/kms")
	}},
	{"other settings than a running server", "D-store-nodes", true, func(l *lab) {
		l.serve()
		set("hadoop.security.key.default.bitlength", "256")(l)
	}},
	{"no backup", "D-store-backup", true, func(l *lab) { l.o.Backup = l.path("c.db") }},
	{"an old backup", "D-store-backup", true, func(l *lab) {
		conf, err := hadoopconf.LoadKMS(l.dir, os.LookupEnv)
		l.must(err)
		l.o.Backup = l.path("backup")
		_, err = recovery.Backup(l.t.Context(), conf, l.o.Backup)
		l.must(err)
		replace(l.t, &now, func() time.Time { return time.Now().Add(30 * 24 * time.Hour) })
	}},
	{"a superuser who may decrypt", "D-acl-hdfs", true, func(l *lab) {
		rule("hadoop.kms.blacklist.DECRYPT_EEK", "oozie")(l)
		rule("default.key.acl.DECRYPT_EEK", "*")(l)
	}},
	{"a key that nobody may use for decrypting", "D-acl-keys", true, func(l *lab) {
		rule("key.acl.finance.MANAGEMENT", "admin")(l)
		rule("hadoop.kms.acl.GENERATE_EEK", "hdfs")(l)
	}},
}

// hsmFailures are failures of the HSM.
var hsmFailures = []failure{
	{"no library", "D-hsm-library", false, token(func(c *pkcs11.FileConfig) { c.Module = "/nowhere/libhsm.so" })},
	{"a library that everybody may write", "D-hsm-library", false, func(l *lab) {
		l.must(os.Chmod(l.Path, 0o666)) //nolint:gosec // the fault of the test
	}},
	{"no keystore file", "D-hsm-library", false, func(l *lab) { l.must(os.Remove(l.path("luna.keystore"))) }},
	{"no such token", "D-hsm-token", false, token(func(c *pkcs11.FileConfig) { c.Token = "other" })},
	{"a damaged token", "D-hsm-token", true, func(l *lab) {
		module, err := softhsm.Module() // the name of the library says that the token is SoftHSM's
		l.must(err)
		token(func(c *pkcs11.FileConfig) { c.Module = module })(l)
		files, err := filepath.Glob(filepath.Join(filepath.Dir(l.token.PINFile), "tokens", "*", "token.object"))
		l.must(err)
		for _, f := range files {
			if strings.HasSuffix(strings.ReplaceAll(filepath.Dir(f), "-", ""), l.token.Serial) {
				l.must(os.Truncate(f, 0))
			}
		}
	}},
	{"an HSM that hangs", "D-hsm-token", false, func(l *lab) {
		token(func(c *pkcs11.FileConfig) { c.CallLimit = time.Second })(l)
		l.Order(faultmodule.GetSlotList, faultmodule.Order{Action: faultmodule.Hang, Times: faultmodule.Always})
	}},
	{"no PIN", "D-hsm-pin", false, func(l *lab) { l.must(os.Remove(l.token.PINFile)) }},
	{"a login that fails", "D-hsm-login", false, fails(faultmodule.Login, p11.CKR_DEVICE_ERROR)},
	{"no mechanism", "D-hsm-mechanism", false, fails(faultmodule.EncryptInit, p11.CKR_FUNCTION_NOT_SUPPORTED)},
	{"a mechanism that is slow", "D-hsm-mechanism", false, func(l *lab) { l.RefuseMechanism(p11.CKM_AES_ECB) }},
	{"a key that cannot be destroyed", "D-hsm-template", false, fails(faultmodule.DestroyObject, p11.CKR_DEVICE_ERROR)},
	{"an HSM that is far away", "D-hsm-latency", true, func(l *lab) { l.SetLatency(40 * time.Millisecond) }},
	{"another metastore", "D-hsm-fit", true, func(l *lab) {
		for _, name := range []string{"c.db", "c.db-wal", "c.db-shm"} {
			if err := os.Remove(l.path(name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
				l.t.Fatal(err)
			}
		}
	}},
	{"a lost key", "D-hsm-missing", true, func(l *lab) {
		l.open(func(ctx context.Context, tok *pkcs11.Token) error {
			keys, err := tok.FindLabel(ctx, "payroll@0")
			l.must(err)
			return tok.Destroy(ctx, keys[0].ID, "payroll@0")
		})
	}},
	{"a key without a record", "D-hsm-unknown", true, func(l *lab) {
		l.open(func(ctx context.Context, tok *pkcs11.Token) error {
			return tok.GenerateKey(ctx, []byte{1, 2, 3, 4, 5, 6, 7, 8}, "stranger@0", 256)
		})
	}},
	{"a key that can leave the token", "D-hsm-attributes", true, func(l *lab) { l.extractable("open@0") }},
	{"a key that was brought in", "D-hsm-attributes", true, func(l *lab) { l.imported("brought@0") }},
	{"a standby that is the token itself", "D-hsm-standby", true, func(l *lab) {
		l.must(pkcs11.WriteKeystoreFile(l.path("standby.keystore"), l.file))
		l.file.Standby = l.path("standby.keystore")
		l.write()
	}},
	{"a standby without the newest key", "D-hsm-standby", true, func(l *lab) {
		l.cloneStandby()
		l.keys("newest")
	}},
}

// damage damages the metastore.
func (l *lab) damage() {
	l.t.Helper()
	data, err := os.ReadFile(l.path("c.db"))
	l.must(err)
	for i := 8192; i < 9000; i++ {
		data[i] = 0xff
	}
	l.must(os.WriteFile(l.path("c.db"), data, 0o600))
}

// enterable lets every user enter the folders of the site and of the token.
func (l *lab) enterable() {
	l.t.Helper()
	softhsmtest.LetEnter(l.t, l.dir, filepath.Dir(l.token.PINFile))
}

// give gives the files of the site and the PIN to a user.
func (l *lab) give(name string) {
	l.t.Helper()
	l.enterable()
	found, err := user.Lookup(name)
	l.must(err)
	uid, err := strconv.Atoi(found.Uid)
	l.must(err)
	l.must(filepath.WalkDir(l.dir, func(path string, _ fs.DirEntry, err error) error {
		return errors.Join(err, os.Chown(path, uid, -1))
	}))
	l.must(os.Chown(l.token.PINFile, uid, -1))
}

// TestWithoutStore: if the metastore is damaged, the HSM is checked all the same, and what needs the records of the
// metastore is skipped.
func TestWithoutStore(t *testing.T) {
	l := newLab(t)
	l.keys("payroll")
	l.damage()
	text, _ := l.check()
	for id, want := range map[string]string{
		"D-hsm-login":    "ok       D-hsm-login  the token accepts the PIN",
		"D-hsm-template": "ok       D-hsm-template  a key was made",
		"D-hsm-latency":  "skipped  D-hsm-latency  the metastore, which names the keys, cannot be read",
		"D-hsm-fit":      "skipped  D-hsm-fit  the metastore cannot be read",
		"D-hsm-missing":  "skipped  D-hsm-missing  D-hsm-fit was skipped",
		"D-seed-source":  "skipped  D-seed-source  the metastore, which has the journal",
		"D-acl-keys":     "skipped  D-acl-keys  D-store-integrity failed",
		"D-acl-hdfs":     "ok       D-acl-hdfs  hdfs may not decrypt",
	} {
		if got := l.lines(text, id); !strings.Contains(got, want) {
			t.Errorf("%q, want %q", got, want)
		}
	}
}

// procedureFailures are failures of the requirements of Cloudera's procedure.
var procedureFailures = []failure{
	{"a source of an unknown scheme", "D-seed-source", true, set(hadoopconf.SourceURI, "kms://ftp@kms-1:9600/kms")},
	{"a key that can leave the token", "D-seed-isolation", true, func(l *lab) {
		l.source()
		l.extractable("open@0")
	}},
	{"a source on this host", "D-seed-hosts", true, func(l *lab) { l.source() }},
	{"a source that does not answer", "D-seed-active", true, set(hadoopconf.SourceURI, "kms://http@127.0.0.1:1/kms")},
	{"HDFS uses this server already", "D-seed-default", true, func(l *lab) {
		l.source()
		set("hadoop.kms.http.port", "9600")(l)
		l.o.HDFS = l.t.TempDir()
		kmstest.WriteFile(l.t, filepath.Join(l.o.HDFS, "core-site.xml"), kmstest.SiteXML(
			"hadoop.security.key.provider.path", "kms://http@127.0.0.1:9600/kms"))
	}},
	{"an HSM that is far away", "D-seed-latency", true, func(l *lab) {
		l.source()
		l.SetLatency(40 * time.Millisecond)
	}},
}

// source starts another KMS on this host, from which keys would be migrated.
func (l *lab) source() {
	l.t.Helper()
	dir := l.t.TempDir()
	kmstest.WriteSite(l.t, dir, map[string]string{
		hadoopconf.ProviderURI: "jceks://file@" + filepath.Join(dir, "k.jceks"),
		"hadoop.kms.http.host": "127.0.0.1", "hadoop.kms.http.port": "0",
		"claviger.audit.file": filepath.Join(dir, "audit.log")})
	url := serve(l.t, dir)
	set(hadoopconf.SourceURI, "kms://"+strings.Replace(strings.TrimSuffix(url, "/"), "://", "@", 1))(l)
}

// extractable makes a key that can leave the token.
func (l *lab) extractable(label string) {
	l.t.Helper()
	l.withSession(func(lib *p11.Ctx, session p11.SessionHandle) {
		_, err := lib.GenerateKey(session, []*p11.Mechanism{p11.NewMechanism(p11.CKM_AES_KEY_GEN, nil)},
			append(keyAttributes(label, true), p11.NewAttribute(p11.CKA_VALUE_LEN, 32)))
		l.must(err)
	})
}

// imported makes a key whose material comes from outside of the token.
func (l *lab) imported(label string) {
	l.t.Helper()
	l.withSession(func(lib *p11.Ctx, session p11.SessionHandle) {
		_, err := lib.CreateObject(session, append(keyAttributes(label, false),
			p11.NewAttribute(p11.CKA_VALUE, make([]byte, 32))))
		l.must(err)
	})
}

// keyAttributes are the attributes of an AES key on the token.
func keyAttributes(label string, extractable bool) []*p11.Attribute {
	return []*p11.Attribute{
		p11.NewAttribute(p11.CKA_CLASS, p11.CKO_SECRET_KEY), p11.NewAttribute(p11.CKA_KEY_TYPE, p11.CKK_AES),
		p11.NewAttribute(p11.CKA_TOKEN, true), p11.NewAttribute(p11.CKA_SENSITIVE, true),
		p11.NewAttribute(p11.CKA_EXTRACTABLE, extractable), p11.NewAttribute(p11.CKA_ENCRYPT, true),
		p11.NewAttribute(p11.CKA_LABEL, label), p11.NewAttribute(p11.CKA_ID, []byte{8, 7, 6, 5, 4, 3, 2, 1}),
	}
}

// withSession logs in to the token by the library itself.
func (l *lab) withSession(work func(*p11.Ctx, p11.SessionHandle)) {
	l.t.Helper()
	lib := p11.New(l.token.Module)
	defer lib.Destroy()
	l.must(lib.Initialize())
	defer lib.Finalize() //nolint:errcheck // the test has what it needs
	slots, err := lib.GetSlotList(true)
	l.must(err)
	i := slices.IndexFunc(slots, func(slot uint) bool {
		info, err := lib.GetTokenInfo(slot)
		return err == nil && strings.TrimSpace(info.Label) == l.token.Label
	})
	session, err := lib.OpenSession(slots[i], p11.CKF_SERIAL_SESSION|p11.CKF_RW_SESSION)
	l.must(err)
	pin, err := os.ReadFile(l.token.PINFile)
	l.must(err)
	l.must(lib.Login(session, p11.CKU_USER, strings.TrimSpace(string(pin))))
	work(lib, session)
}

// TestFailures provokes each warning and failure that can be provoked, and compares the text with testdata.
func TestFailures(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("only root judges the rights of other users; run `make test` as root for it")
	}
	for file, list := range map[string][]failure{"configuration.golden": configurationFailures,
		"store.golden": storeFailures, "hsm.golden": hsmFailures, "procedure.golden": procedureFailures} {
		t.Run(strings.TrimSuffix(file, ".golden"), func(t *testing.T) { provokeAll(t, file, list) })
	}
}

// provokeAll provokes each failure of a list, and compares the texts with a file of testdata.
func provokeAll(t *testing.T, file string, list []failure) {
	sections := map[string]string{}
	for _, f := range list {
		t.Run(f.name, func(t *testing.T) {
			l := newLab(t)
			if f.keys {
				l.keys("finance", "payroll")
			}
			f.provoke(l)
			text, _ := l.check(f.id)
			got := l.lines(text, f.id)
			if bad := strings.Contains(got, "  warning  ") || strings.Contains(got, "  failure  "); !bad &&
				f.id != "D-seed-isolation" { // D-hsm-attributes fails, so this is skipped
				t.Errorf("%s finds nothing:\n%s", f.id, text)
			}
			sections[f.name] = got
		})
	}
	golden.Sections(t, "testdata/"+file, sections, len(sections) == len(list))
}

// replace sets a variable for the rest of a test.
func replace[T any](t *testing.T, variable *T, value T) {
	t.Helper()
	before := *variable
	*variable = value
	t.Cleanup(func() { *variable = before })
}
