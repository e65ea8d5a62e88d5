package diagnosis

import (
	"context"
	"errors"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"claviger"
	"claviger/doctor"
	"claviger/doctor/doctortest"
	"claviger/hadoopconf"
	"claviger/internal/faultmodule"
	"claviger/internal/golden"
	"claviger/internal/pgtest"
	"claviger/internal/porttest"
	"claviger/internal/softhsm"
	"claviger/internal/softhsm/softhsmtest"
	"claviger/kms"
	"claviger/kms/kmstest"
	"claviger/pkcs11"
	"claviger/pkcs11/worker"
	"claviger/provider"
	"claviger/provider/hsm"
)

func TestMain(m *testing.M) {
	worker.Main(os.Args)
	nodeMain()
	os.Exit(pgtest.Main(m.Run))
}

// lab is a site with an HSM whose library makes faults on demand.
type lab struct {
	t     *testing.T
	dir   string
	token softhsm.Token
	*faultmodule.Module
	props map[string]string
	acls  map[string]string
	file  pkcs11.FileConfig // content of the keystore file
	o     doctor.Options
}

// newLab makes a site that is healthy: a token, a configuration, rules. Nothing has started yet.
func newLab(t *testing.T) *lab {
	t.Helper()
	dir, tok := t.TempDir(), softhsmtest.New(t)
	l := &lab{t: t, dir: dir, token: tok, Module: faultmodule.New(t, tok.Module)}
	l.file = pkcs11.FileConfig{Module: l.Path, Token: tok.Label, PINFile: tok.PINFile, Profile: pkcs11.SoftHSM}
	l.props = map[string]string{
		hadoopconf.ProviderURI:  "cloudera.hsmkp://file@" + l.path("luna.keystore"),
		hadoopconf.MetastoreURI: "sqlite://" + l.path("c.db"),
		"hadoop.kms.http.host":  "127.0.0.1", "hadoop.kms.http.port": "0",
		"claviger.audit.file": l.path("audit.log"),
	}
	l.acls = map[string]string{"default.key.acl.MANAGEMENT": "admin", "default.key.acl.GENERATE_EEK": "hdfs",
		"default.key.acl.DECRYPT_EEK": "alice"}
	l.write()
	return l
}

func (l *lab) path(name string) string { return filepath.Join(l.dir, name) }

// write writes the files of the site.
func (l *lab) write() {
	l.t.Helper()
	kmstest.WriteFile(l.t, l.path("kms-site.xml"), siteXML(l.props))
	kmstest.WriteFile(l.t, l.path("kms-acls.xml"), siteXML(l.acls))
	if err := os.Remove(l.path("luna.keystore")); err != nil && !errors.Is(err, os.ErrNotExist) {
		l.t.Fatal(err)
	}
	if err := pkcs11.WriteKeystoreFile(l.path("luna.keystore"), l.file); err != nil {
		l.t.Fatal(err)
	}
}

// set gives a property another value.
func (l *lab) set(name, value string) {
	l.t.Helper()
	l.props[name] = value
	l.write()
}

// ownPort gives the site a port at which nothing listens.
func (l *lab) ownPort() {
	l.t.Helper()
	port, err := porttest.Free()
	if err != nil {
		l.t.Fatal(err)
	}
	l.set("hadoop.kms.http.port", strconv.Itoa(port))
}

// cloneStandby gives the site a standby, with a copy of each key.
func (l *lab) cloneStandby() {
	l.t.Helper()
	clone, err := l.token.Clone("standby")
	if err != nil {
		l.t.Fatal(err)
	}
	standby := l.file
	standby.Token = clone.Label
	if err := pkcs11.WriteKeystoreFile(l.path("standby.keystore"), standby); err != nil {
		l.t.Fatal(err)
	}
	l.file.Standby = l.path("standby.keystore")
	l.write()
}

// siteXML returns a configuration file, in the order of the names.
func siteXML(props map[string]string) string {
	var pairs []string
	for _, name := range slices.Sorted(maps.Keys(props)) {
		pairs = append(pairs, name, props[name])
	}
	return kmstest.SiteXML(pairs...)
}

// keys makes keys, as a server does.
func (l *lab) keys(names ...string) {
	l.t.Helper()
	s, err := kms.Open(l.t.Context(), l.dir, "test", hsm.Make, slog.New(slog.DiscardHandler))
	if err != nil {
		l.t.Fatal(err)
	}
	for _, name := range names {
		if _, err := s.Primary.Create(l.t.Context(), provider.Spec{Name: name, Cipher: claviger.DefaultCipher,
			BitLength: 128}); err != nil {
			l.t.Fatal(err)
		}
	}
	if err := s.Close(); err != nil {
		l.t.Fatal(err)
	}
}

// open opens the token itself, for changes that no server makes.
func (l *lab) open(work func(ctx context.Context, tok *pkcs11.Token) error) {
	l.t.Helper()
	cfg, err := l.file.Config(l.path("luna.keystore"))
	if err != nil {
		l.t.Fatal(err)
	}
	tok, err := pkcs11.Open(l.t.Context(), cfg)
	if err != nil {
		l.t.Fatal(err)
	}
	if err := errors.Join(work(l.t.Context(), tok), tok.Close()); err != nil {
		l.t.Fatal(err)
	}
}

// serve starts a server on the site, which stops when the test ends.
func (l *lab) serve() {
	l.t.Helper()
	serve(l.t, l.dir)
}

// serve starts a server with a configuration folder.
func serve(t *testing.T, dir string) (url string) {
	t.Helper()
	return kmstest.Serve(t, func(ctx context.Context, ready string) error {
		return kms.Serve(ctx, kms.Options{Dir: dir, Port: -1, ReadyFile: ready,
			Log: slog.New(slog.DiscardHandler), Level: new(slog.LevelVar)})
	})
}

// check runs the doctor, and returns its text without the first line.
func (l *lab) check(ids ...string) (string, error) {
	l.t.Helper()
	o := l.o
	o.Conf, o.Only = l.dir, ids
	text, err := doctortest.Run(l.t, o, Role())
	_, text, _ = strings.Cut(text, "\n")
	return text, err
}

// changing are the parts of a text that differ in each run.
var changing = []golden.Mask{
	{`TOKENS/tokens/[0-9a-f-]{36}`, "TOKENS/tokens/FOLDER"}, {`by /\S+softhsm2\.so`, "by SOFTHSM"},
	{`serial [0-9a-f]{16}`, "serial SERIAL"}, {`slot \d+`, "slot SLOT"}, {`\d+\.\d\d ms`, "TIME"},
	{`\d+\.\d MB`, "SIZE"}, {`(127\.0\.0\.1|localhost):\d\d\d+`, "$1:PORT"},
	{`is -?\d+[hm][0-9hms]+ behind`, "is AGE behind"}, {`version \d+`, "version N"}, {`id [0-9a-f]{32}`, "id ID"},
	{`try [0-9a-f]{16}`, "try ID"}, {`since \d{4}-\d\d-\d\d`, "since DAY"},
	{`\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ`, "AT"}, {`process \d+ on \S+,`, "process PID on HOST,"},
	{`/[^ :;,]*softhsm/tokens/[0-9a-f-]{36}`, "TOKEN"}, {`uid \d+`, "uid UID"},
	{`client [0-9A-F]{40}`, "client FINGERPRINT"}, {`0x[0-9A-F]{8,}`, "CODE"},
	{`(?m)^(  \w+ +D-\S+) +`, "$1  "}, // the longest ID of the run decides how wide the column is
}

// lines returns the lines of the check in the text, without what differs in each run.
func (l *lab) lines(text, id string) string {
	text = doctortest.Lines(text, id)
	for _, path := range [][2]string{{l.dir, "DIR"}, {l.Path, "MODULE"}, {filepath.Dir(l.token.PINFile), "TOKENS"}} {
		text = strings.ReplaceAll(text, path[0], path[1])
	}
	return golden.Masked(text, changing)
}
