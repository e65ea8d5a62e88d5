package diagnosis

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"claviger/doctor"
	"claviger/hadoopconf"
	"claviger/internal/faultmodule"
	"claviger/internal/golden"
	"claviger/internal/pgtest"
	"claviger/pkcs11"
)

// wantHealthy runs all checks; none may have a warning or failure. The latency of a loaded machine does not count.
func (l *lab) wantHealthy(when string) {
	l.t.Helper()
	logins := l.Calls(faultmodule.Login)
	text, err := l.check()
	for line := range strings.Lines(text) {
		f := strings.Fields(line)
		if len(f) > 1 && (f[0] == "warning" || f[0] == "failure") && !strings.HasSuffix(f[1], "-latency") {
			l.t.Errorf("%s: %s", when, line)
		}
	}
	if err != nil || !strings.Contains(text, "no failure, ") {
		l.t.Errorf("%s: %v\n%s", when, err, text)
	}
	if n := l.Calls(faultmodule.Login) - logins; n != 1 {
		l.t.Errorf("%s: %d logins, want 1", when, n)
	}
}

// TestHealthy: a healthy site has no warning: before its first start, with keys, and beside the running server. The
// doctor logs in once.
func TestHealthy(t *testing.T) {
	l := newLab(t)
	l.wantHealthy("before the first start")
	l.keys("payroll", "finance")
	l.wantHealthy("with keys")
	l.ownPort()
	l.wantHealthy("before the server")
	l.serve()
	l.wantHealthy("beside the server")
	if text, err := l.check("D-server-ready"); err != nil || !strings.Contains(text, "is ready; ") {
		t.Errorf("%v\n%s", err, text)
	}
}

// TestHealthyNodes is TestHealthy for several nodes on a metastore in PostgreSQL.
func TestHealthyNodes(t *testing.T) {
	l := newLab(t)
	l.set(hadoopconf.MetastoreURI, pgtest.Database(t))
	l.keys("payroll")
	l.wantHealthy("with keys")
	l.serve()
	l.serve()
	l.wantHealthy("beside two servers")
}

// TestHealthyKeystore is TestHealthy for a server without an HSM, which has no metastore.
func TestHealthyKeystore(t *testing.T) {
	l := newLab(t)
	delete(l.props, hadoopconf.MetastoreURI)
	l.set(hadoopconf.ProviderURI, "jceks://file@"+l.path("kms.jceks"))
	healthy := func(when, want string) {
		t.Helper()
		before := l.state()
		text, err := l.check()
		if err != nil || !strings.Contains(text, "no failure, no warning") || !strings.Contains(text, want) {
			t.Errorf("%s: %v\n%s", when, err, text)
		}
		if after := l.state(); after != before {
			t.Errorf("%s:\n%s\nafter:\n%s", when, before, after)
		}
	}
	healthy("before the first start", "kms.jceks (keys: 0)")
	l.keys("payroll")
	healthy("with a key", "kms.jceks (keys: 1)")
	l.serve()
	healthy("beside the server", "kms.jceks (keys: 1)")
}

// TestHealthyStandby: a standby with a copy of each key is healthy. There is one login at each token.
func TestHealthyStandby(t *testing.T) {
	l := newLab(t)
	l.keys("payroll")
	l.cloneStandby()
	logins := l.Calls(faultmodule.Login)
	text, err := l.check("D-hsm-standby")
	if err != nil || !strings.Contains(text, "has a copy of each key") || l.Calls(faultmodule.Login)-logins != 2 {
		t.Errorf("%v after %d logins\n%s", err, l.Calls(faultmodule.Login)-logins, text)
	}
}

// TestRoomAndSessions judges what SoftHSM does not report.
func TestRoomAndSessions(t *testing.T) {
	sections := map[string]string{}
	put := func(name string, list []doctor.Finding) {
		for _, f := range list {
			sections[name] = fmt.Sprintf("  %s  %s\n", f.Status, f.Measured)
		}
	}
	put("sessions: no limit", sessions(pkcs11.TokenState{Sessions: 3}, 30))
	put("sessions: enough", sessions(pkcs11.TokenState{Sessions: 3, MaxSessions: 64}, 30))
	put("sessions: too few", sessions(pkcs11.TokenState{Sessions: 3, MaxSessions: 16}, 30))
	put("room: not known", room(0, false, nil))
	put("room: enough", room(1000, true, nil))
	put("room: little", room(99, true, nil))
	put("room: none", room(0, true, nil))
	put("room: no answer", room(0, false, errors.New("the token does not answer")))
	golden.Sections(t, "testdata/room.golden", sections, true)
}

// state returns the content of each file of the site and of the token. A login writes token.object anew, and a key that
// is made and destroyed counts up generation: these files are SoftHSM's own.
func (l *lab) state() string {
	l.t.Helper()
	var b strings.Builder
	for _, dir := range []string{l.dir, filepath.Dir(l.token.PINFile)} {
		err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
			if err != nil || d.IsDir() || d.Name() == "generation" || d.Name() == "token.object" {
				return err
			}
			data, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			info, err := d.Info()
			if err == nil {
				fmt.Fprintf(&b, "%s %v %x\n", path, info.Mode(), sha256.Sum256(data))
			}
			return err
		})
		if err != nil {
			l.t.Fatal(err)
		}
	}
	l.open(func(ctx context.Context, tok *pkcs11.Token) error {
		keys, err := tok.List(ctx)
		fmt.Fprintf(&b, "%+v\n", keys)
		return err
	})
	return b.String()
}

// TestChangesNothing: the doctor changes no file of the site, makes none, and leaves no object on the token, before the
// first start and after it.
func TestChangesNothing(t *testing.T) {
	l := newLab(t)
	for _, keys := range [][]string{nil, {"payroll"}} {
		if keys != nil {
			l.keys(keys...)
		}
		before := l.state()
		if text, err := l.check(); err != nil {
			t.Fatalf("%v\n%s", err, text)
		}
		if after := l.state(); after != before {
			t.Errorf("before:\n%s\nafter:\n%s", before, after)
		}
	}
}

// TestWrongPINIsTriedOnce: a wrong PIN is tried once, and not again by the next run, because the token says that a
// wrong PIN was tried.
func TestWrongPINIsTriedOnce(t *testing.T) {
	l := newLab(t)
	l.keys("payroll")
	if err := os.WriteFile(l.token.PINFile, []byte("87654321"), 0o600); err != nil {
		t.Fatal(err)
	}
	sections := map[string]string{}
	for _, run := range []struct {
		name, id string
		logins   int
	}{{"wrong PIN", "D-hsm-login", 1}, {"wrong PIN, second run", "D-hsm-pin", 0}} {
		logins := l.Calls(faultmodule.Login)
		text, err := l.check()
		if n := l.Calls(faultmodule.Login) - logins; n != run.logins || err == nil {
			t.Errorf("%s: %d logins, want %d; %v", run.name, n, run.logins, err)
		}
		sections[run.name] = l.lines(text, run.id)
	}
	golden.Sections(t, "testdata/pin.golden", sections, true)
}
