package faults

import (
	"bytes"
	"context"
	"crypto/sha256"
	"flag"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"claviger/internal/pagetest"
	"claviger/internal/softhsm"
	"claviger/test/hadoop"
)

var update = flag.Bool("update", false, "write the golden files")

const timeout = 60 * time.Second

// site has everything that a server needs: a token, a keystore file that names the token, and a configuration
// folder.
type site struct {
	t      *testing.T
	root   string // everything is below it
	conf   string
	token  softhsm.Token
	props  hadoop.Conf
	env    []string
	killed func() // ends the last process that background started
}

func newSite(t *testing.T) *site {
	t.Helper()
	root := t.TempDir()
	s := &site{t: t, root: root, conf: filepath.Join(root, "conf")}
	if err := os.Mkdir(s.conf, 0o700); err != nil {
		t.Fatal(err)
	}
	var err error
	if s.token, err = softhsm.Create(filepath.Join(root, "token"), "kms"); err != nil {
		t.Fatal(err)
	}
	s.env = s.token.Env
	s.props = hadoop.Conf{
		"hadoop.kms.http.host":        "127.0.0.1",
		"hadoop.kms.key.provider.uri": "cloudera.hsmkp://file@" + s.path("conf/luna.keystore"),
		"claviger.metastore.uri":      "sqlite://" + s.path("conf/claviger.db"),
	}
	s.keystore("")
	hadoop.OpenACLs().Write(t, s.path("conf/kms-acls.xml"))
	return s
}

func (s *site) path(name string) string { return filepath.Join(s.root, name) }

func (s *site) write(name, text string) string {
	s.t.Helper()
	if err := os.WriteFile(s.path(name), []byte(text), 0o600); err != nil {
		s.t.Fatal(err)
	}
	return s.path(name)
}

// keystore writes the file that names the token. line replaces a line of the file, for example "pin-file = x".
func (s *site) keystore(line string) {
	lines := []string{"module = " + s.token.Module, "token = " + s.token.Label, "pin-file = " + s.token.PINFile,
		"profile = softhsm"}
	name, _, _ := strings.Cut(line, " ")
	same := func(l string) bool { return name != "" && strings.HasPrefix(l, name+" ") }
	if i := slices.IndexFunc(lines, same); i >= 0 {
		lines[i] = line
	} else if line != "" {
		lines = append(lines, line)
	}
	s.write("conf/luna.keystore", strings.Join(lines, "\n")+"\n")
}

// set sets a property, or removes it if value is "".
func (s *site) set(name, value string) {
	if value == "" {
		delete(s.props, name)
		return
	}
	s.props[name] = value
}

// run runs claviger until it ends, and returns its output and its exit status.
func (s *site) run(args ...string) (string, int) {
	s.t.Helper()
	if _, err := os.Stat(s.path("conf/kms-site.xml")); err != nil {
		s.props.Write(s.t, s.path("conf/kms-site.xml"))
	}
	bin := hadoop.Binary(s.t) // the first call builds the program
	ctx, cancel := context.WithTimeout(s.t.Context(), timeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, bin, args...)
	cmd.Env = append(os.Environ(), s.env...)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	err := cmd.Run()
	if ctx.Err() != nil {
		s.t.Fatalf("claviger %v did not end: %s", args, out.String())
	}
	if _, exit := err.(*exec.ExitError); err != nil && !exit { //nolint:errorlint // Run returns it as it is
		s.t.Fatal(err)
	}
	return out.String(), cmd.ProcessState.ExitCode()
}

// start returns the command line of the server.
func (s *site) start() []string {
	return []string{"kms", "--conf", s.conf, "--http-port", "0", "--ready-file", s.path("ready")}
}

// snapshot lists the files of the site with their hashes. It leaves out SQLite's files, and the files of the
// token, which counts logins.
func (s *site) snapshot() string {
	s.t.Helper()
	var b strings.Builder
	err := filepath.WalkDir(s.root, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || strings.HasPrefix(path, s.path("token")) || strings.Contains(d.Name(), ".db") ||
			d.Name() == "kms-site.xml" {
			return err
		}
		data, err := os.ReadFile(path)
		fmt.Fprintf(&b, "%s %x\n", strings.TrimPrefix(path, s.root), sha256.Sum256(data))
		return err
	})
	if err != nil {
		s.t.Fatal(err)
	}
	return b.String()
}

var (
	logLine = regexp.MustCompile(`(?m)^time=\S+ level=\S+ msg=.*\n`)
	serial  = regexp.MustCompile(`serial [0-9a-f]{16}`)
	slot    = regexp.MustCompile(`slot \d+`)
	port    = regexp.MustCompile(`127\.0\.0\.1:\d+|localhost:\d+`)
	check   = regexp.MustCompile(`value [0-9a-f]{16}|says [0-9a-f]{16}`)
	ckaID   = regexp.MustCompile(`CKA_ID [0-9a-f]{16}`)
	boundTo = regexp.MustCompile(`\(id [0-9a-f]{32}, bound since [0-9-]{10}\)`)
	request = regexp.MustCompile(`request id [0-9a-f]+-\d+`)
)

// plain replaces the parts of a message that differ between runs.
func (s *site) plain(text string) string {
	text = logLine.ReplaceAllString(text, "")
	for _, r := range [][2]string{{s.conf, "/etc/claviger"}, {s.path("token"), "/etc/claviger/token"},
		{s.root, "/var/lib/claviger"}, {s.token.Module, "/usr/lib/libCryptoki2_64.so"}} {
		text = strings.ReplaceAll(text, r[0], r[1])
	}
	text = serial.ReplaceAllString(text, "serial 0123456789abcdef")
	text = slot.ReplaceAllString(text, "slot 1")
	text = port.ReplaceAllString(text, "kms-1.example.com:9600")
	text = check.ReplaceAllStringFunc(text, func(m string) string {
		w, _, _ := strings.Cut(m, " ")
		return w + " 0011223344556677"
	})
	text = ckaID.ReplaceAllString(text, "CKA_ID 0123456789abcdef")
	text = boundTo.ReplaceAllString(text, "(id 0123456789abcdef0123456789abcdef, bound since 2026-01-31)")
	text = request.ReplaceAllString(text, "request id 01234567-1")
	return text
}

// golden compares a message with its golden file, and checks that a page shows it.
func golden(t *testing.T, name, text string) {
	t.Helper()
	path := filepath.Join("testdata", name+".golden")
	if *update {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if text != string(want) {
		t.Errorf("the message is\n%s\nwant\n%s", text, want)
	}
	shown(t, text)
}

// shown fails the test unless a code block of a page shows a text. The pages fold long lines at a space, so all white
// space counts as one space.
func shown(t *testing.T, text string) {
	t.Helper()
	page := pagetest.OneLine(pagetest.Topic(t, "faults"))
	if !strings.Contains(page, pagetest.OneLine("```\n"+text+"\n```")) {
		t.Errorf("no page of docs/faults shows\n%s", text)
	}
}

// TestElsewhere: the pages show messages that tests of other packages provoke, because they need a full disk.
func TestElsewhere(t *testing.T) {
	for _, path := range []string{"provider/jceks/testdata/disk-full.golden"} {
		text, err := os.ReadFile(filepath.Join(hadoop.Root(), path))
		if err != nil {
			t.Fatal(err)
		}
		shown(t, string(text))
	}
}

// TestEveryGolden: each golden file belongs to a fault.
func TestEveryGolden(t *testing.T) {
	files, err := filepath.Glob("testdata/*.golden")
	if err != nil || len(files) == 0 {
		t.Fatalf("%d files, %v", len(files), err)
	}
	for _, f := range files {
		name := strings.TrimSuffix(filepath.Base(f), ".golden")
		if starts[name] == nil && requests[name].send == nil && trusteeFaults[name].set == nil &&
			clients[name].set == nil {
			t.Errorf("%s belongs to no case", f)
		}
	}
}

// starts are the faults that stop a command. Each function makes the fault and returns the command.
var starts = map[string]func(*site) []string{
	"wrong-pin": func(s *site) []string {
		s.keystore("pin-file = " + s.write("conf/pin", "87654321\n"))
		return s.start()
	},
	"pin-file-missing": func(s *site) []string {
		s.keystore("pin-file = " + s.path("conf/nowhere"))
		return s.start()
	},
	"pin-file-open": func(s *site) []string {
		path := s.write("conf/pin", "12345678\n")
		if err := os.Chmod(path, 0o644); err != nil { //nolint:gosec // that is the fault
			s.t.Fatal(err)
		}
		s.keystore("pin-file = " + path)
		return s.start()
	},
	"module-missing": func(s *site) []string {
		s.keystore("module = /nowhere/libCryptoki2_64.so")
		return s.start()
	},
	"module-no-library": func(s *site) []string {
		s.keystore("module = " + s.write("conf/module.so", "no library"))
		return s.start()
	},
	"token-uninitialised": func(s *site) []string {
		s.keystore("token = nobody")
		s.write("conf/luna.keystore", strings.Replace(s.read("conf/luna.keystore"), "token = nobody", "slot = 1", 1))
		return s.start()
	},
	"token-unknown": func(s *site) []string {
		s.keystore("token = nobody")
		return s.start()
	},
	"token-twice": func(s *site) []string {
		if _, err := softhsm.Create(s.path("token"), s.token.Label); err != nil {
			s.t.Fatal(err)
		}
		return s.start()
	},
	"keystore-missing": func(s *site) []string {
		if err := os.Remove(s.path("conf/luna.keystore")); err != nil {
			s.t.Fatal(err)
		}
		return s.start()
	},
	"keystore-wrong-form": func(s *site) []string {
		s.write("conf/luna.keystore", "module: /usr/lib/libCryptoki2_64.so\n")
		return s.start()
	},
	"keystore-unknown-name": func(s *site) []string {
		s.keystore("pin = 12345678")
		return s.start()
	},
	"keystore-overwrite": func(s *site) []string {
		return []string{"hsm", "init", "--module", s.token.Module, "--token", s.token.Label, "--pin-file",
			s.token.PINFile, s.path("conf/luna.keystore")}
	},
	"metastore-other-token": func(s *site) []string {
		k := s.serve()
		s.create(k, "k1")
		k.Stop()
		other, err := softhsm.Create(s.path("token/other"), "other")
		if err != nil {
			s.t.Fatal(err)
		}
		s.env = other.Env
		s.keystore("token = other")
		return s.start()
	},
	"metastore-empty": func(s *site) []string {
		k := s.serve()
		s.create(k, "k1")
		k.Stop()
		s.set("claviger.metastore.uri", "sqlite://"+s.path("conf/clavigre.db"))
		s.props.Write(s.t, s.path("conf/kms-site.xml"))
		return s.start()
	},
	"token-wiped": func(s *site) []string {
		k := s.serve()
		s.create(k, "k1")
		s.create(k, "k2")
		k.Stop()
		if err := s.token.Wipe(); err != nil {
			s.t.Fatal(err)
		}
		return s.start()
	},
	"metastore-bound": func(s *site) []string {
		s.serve().Stop()
		s.set("claviger.metastore.uri", "sqlite://"+s.path("conf/clavigre.db"))
		s.props.Write(s.t, s.path("conf/kms-site.xml"))
		return s.start()
	},
	"metastore-not-named": func(s *site) []string {
		delete(s.props, "claviger.metastore.uri")
		s.set("hadoop.kms.key.provider.uri", "pkcs11:token="+s.token.Label+"?module-path="+s.token.Module+
			"&pin-source=file:"+s.token.PINFile)
		return s.start()
	},
	"metastore-forgotten": func(s *site) []string {
		delete(s.props, "claviger.metastore.uri")
		if err := os.Mkdir(s.path("home"), 0o700); err != nil {
			s.t.Fatal(err)
		}
		s.write("home/claviger.db", "")
		s.env = append(slices.Clone(s.env), "HOME="+s.path("home"))
		return s.start()
	},
	"metastore-folder-missing": func(s *site) []string {
		s.set("claviger.metastore.uri", "sqlite://"+s.path("nowhere/claviger.db"))
		return s.start()
	},
	"metastore-wrong-uri": func(s *site) []string {
		s.set("claviger.metastore.uri", "mysql://db/claviger")
		return s.start()
	},
	"metastore-damaged": func(s *site) []string {
		s.write("conf/claviger.db", strings.Repeat("not a database\n", 1000))
		return s.start()
	},
	"property-wrong": func(s *site) []string {
		s.set("claviger.delete.soft", "bogus")
		return s.start()
	},
	"xml-malformed": func(s *site) []string {
		s.write("conf/kms-site.xml",
			"<configuration>\n<property><name>hadoop.kms.http.port</name><value>9600</property>\n</configuration>\n")
		return s.start()
	},
	"acls-malformed": func(s *site) []string {
		s.write("conf/kms-acls.xml", "<configuration>\n<property>\n")
		return s.start()
	},
	"rules-of-another-manager": func(s *site) []string {
		s.set("hadoop.kms.security.authorization.manager",
			"org.apache.ranger.authorization.kms.authorizer.RangerKmsAuthorizer")
		return s.start()
	},
	"rules-of-ranger-beside": func(s *site) []string {
		s.write("conf/dbks-site.xml", "<configuration/>\n")
		return s.start()
	},
	"value-not-a-number": func(s *site) []string {
		s.set("hadoop.kms.http.port", "ninety-six hundred")
		return []string{"kms", "--conf", s.conf}
	},
	"value-not-a-boolean": func(s *site) []string {
		s.set("hadoop.kms.cache.enable", "yes")
		return s.start()
	},
	"provider-unknown-scheme": func(s *site) []string {
		s.set("hadoop.kms.key.provider.uri", "vault://file@/var/lib/vault")
		return s.start()
	},
	"source-uri-twice": func(s *site) []string {
		const name = "hadoop.kms.key.provider.reencryption.source.uri"
		prop := func(v string) string {
			return "<property><name>" + name + "</name><value>" + v + "</value></property>\n"
		}
		s.write("conf/kms-site.xml", "<configuration>\n"+prop("kms://https@kms-1.example.com:16000/kms")+
			prop("kms://http@kms-1.example.com:16000/kms")+"</configuration>\n")
		return s.start()
	},
	"migration-without-source": func(s *site) []string {
		s.set("cloudera.hsmkp.initiatemigration", "true")
		return s.start()
	},
	"source-unreachable": func(s *site) []string {
		s.set("hadoop.kms.key.provider.reencryption.source.uri", "kms://http@127.0.0.1:1/kms")
		s.set("cloudera.hsmkp.initiatemigration", "true")
		return s.start()
	},
	"source-http-where-https": func(s *site) []string {
		s.set("hadoop.kms.key.provider.reencryption.source.uri", "kms://http@127.0.0.1:"+s.tlsServer()+"/kms")
		s.set("cloudera.hsmkp.initiatemigration", "true")
		return s.start()
	},
	"jceks-damaged": func(s *site) []string {
		s.jceks()
		data := []byte(s.read("kms.keystore"))
		data[len(data)/2] ^= 0xff
		s.write("kms.keystore", string(data))
		return s.start()
	},
	"jceks-wrong-password": func(s *site) []string {
		s.jceks()
		s.env = append(slices.Clone(s.env), "HADOOP_KEYSTORE_PASSWORD=guess")
		return s.start()
	},
	"jceks-not-a-keystore": func(s *site) []string {
		s.set("hadoop.kms.key.provider.uri", "jceks://file@"+s.write("kms.keystore", "text"))
		return s.start()
	},
	"kerberos-without-keytab": func(s *site) []string {
		s.set("hadoop.kms.authentication.type", "kerberos")
		s.set("hadoop.kms.authentication.kerberos.principal", "HTTP/kms-1.example.com")
		s.set("hadoop.kms.authentication.kerberos.keytab", s.path("http.keytab"))
		return s.start()
	},
	"kerberos-lookahead": func(s *site) []string {
		s.set("hadoop.security.auth_to_local", "RULE:[1:$1]s/(?=admin)admin/root/")
		return s.start()
	},
	"zookeeper-sasl-without-keytab": func(s *site) []string {
		const signer = "hadoop.kms.authentication.signer.secret.provider"
		s.set(signer, "zookeeper")
		s.set(signer+".zookeeper.connection.string", "zk1.example.com:2181")
		s.set(signer+".zookeeper.auth.type", "sasl")
		s.set(signer+".zookeeper.kerberos.keytab", s.path("kms.keytab"))
		s.set(signer+".zookeeper.kerberos.principal", "kms/kms-1.example.com@EXAMPLE.COM")
		return s.start()
	},
	"tls-without-keystore": func(s *site) []string {
		s.set("hadoop.kms.ssl.enabled", "true")
		return s.start()
	},
	"console-simple": func(s *site) []string {
		s.set("claviger.console.listen", ":9601")
		return s.start()
	},
	"port-in-use": func(s *site) []string {
		l, err := net.Listen("tcp", "127.0.0.1:0") //nolint:noctx // closed below
		if err != nil {
			s.t.Fatal(err)
		}
		s.t.Cleanup(func() { _ = l.Close() })
		_, p, _ := net.SplitHostPort(l.Addr().String())
		return []string{"kms", "--conf", s.conf, "--http-port", p}
	},
}

func (s *site) read(name string) string {
	s.t.Helper()
	data, err := os.ReadFile(s.path(name))
	if err != nil {
		s.t.Fatal(err)
	}
	return string(data)
}

// serve starts the server, and fails the test if it does not start.
func (s *site) serve() *hadoop.KMS {
	s.t.Helper()
	s.props.Write(s.t, s.path("conf/kms-site.xml"))
	return hadoop.StartClaviger(s.t, hadoop.ClavigerOptions{Conf: s.conf, Env: s.env})
}

// jceks makes the site use a keystore file with a key.
func (s *site) jceks() {
	s.t.Helper()
	s.set("hadoop.kms.key.provider.uri", "jceks://file@"+s.path("kms.keystore"))
	k := s.serve()
	s.create(k, "k1")
	k.Stop()
}

// TestStarts: a server with a fault in its configuration or files ends with the documented status and message, and a
// second start changes nothing.
func TestStarts(t *testing.T) {
	for name, fault := range starts {
		t.Run(name, func(t *testing.T) {
			s := newSite(t)
			args := fault(s)
			out, status := s.run(args...)
			want := 1
			if strings.Contains(out, "refuses the PIN") {
				want = 4
			}
			if status != want {
				t.Errorf("exit status %d, want %d", status, want)
			}
			if _, err := os.Stat(s.path("ready")); err == nil {
				t.Error("the server said that it was ready")
			}
			// The first run may have made files that a server needs. A second run changes nothing, and prints the
			// same message.
			before := s.snapshot()
			again, _ := s.run(args...)
			if s.plain(again) != s.plain(out) {
				t.Errorf("a second run says\n%s\nthe first\n%s", s.plain(again), s.plain(out))
			}
			if after := s.snapshot(); after != before {
				t.Errorf("a failed run has changed files:\n%s\nwas\n%s", after, before)
			}
			golden(t, name, s.plain(out))
		})
	}
}

// TestWrongPINDoesNotLock: after many starts with a wrong PIN, the right PIN still opens the token. With their
// exit status, systemd does not restart the server.
func TestWrongPINDoesNotLock(t *testing.T) {
	s := newSite(t)
	s.keystore("pin-file = " + s.write("conf/pin", "87654321\n"))
	for range 3 {
		if _, status := s.run(s.start()...); status != 4 {
			t.Fatalf("exit status %d", status)
		}
	}
	s.keystore("")
	s.serve()
}

// TestNoFunctionNames: the pages show no name of a function in our code, which would mean nothing to an operator, not
// even in the text of a peer.
func TestNoFunctionNames(t *testing.T) {
	function := regexp.MustCompile(`(?m)(?:^|[ (\x60])([a-z0-9]+(?:\.[A-Za-z0-9]+)*\.[A-Z][A-Za-z]*|` +
		`(?:server|trustee)\.[a-z-]+): .*`)
	for _, m := range function.FindAllStringSubmatch(pagetest.Topic(t, "faults"), -1) {
		if p, _, _ := strings.Cut(m[1], "."); p == "java" || p == "org" {
			continue // names of Java classes
		}
		t.Errorf("docs/faults shows the name of a function: %s", m[0])
	}
	if !function.MatchString("property x: hsm.Open: no token") ||
		!function.MatchString("property x: keyhsm.Client.Status: Key HSM") ||
		!function.MatchString("(trustee.peer-hello: Post") {
		t.Error("the pattern does not find the names of functions")
	}
}
