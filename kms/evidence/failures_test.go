package evidence

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	p11 "github.com/miekg/pkcs11"
	"github.com/spf13/cobra"

	"claviger/hadoopconf"
	"claviger/kms"
	"claviger/kms/kmstest"
	"claviger/metastore"
	"claviger/metastore/sqlite"
	"claviger/migrate"
	"claviger/migrate/evidence"
	"claviger/pkcs11"
	"claviger/provider"
	"claviger/provider/hsm"
)

// testFailures: a part that cannot be read, or a file that cannot be written, is an error. The report does not leave it
// out.
func testFailures(t *testing.T, l *lab) {
	t.Helper()
	l.o.Overwrite = true
	fails := func(what, want string) {
		t.Helper()
		if _, err := l.report(t); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", what, err, want)
		}
	}
	out := l.o.Out
	l.o.Out, l.o.Overwrite = "/proc/report.zip", false // in this folder no file can be made
	fails("a file that cannot be made", "/proc")
	l.o.Out, l.o.Overwrite = out, true

	head := filepath.Join(l.dir, "audit.json.head")
	sound, err := os.ReadFile(head)
	if err != nil {
		t.Fatal(err)
	}
	kmstest.WriteFile(t, head, "no head")
	fails("a damaged head", "the head of the audit log in")
	kmstest.WriteFile(t, head, string(sound))

	l.withStore(t, func(s metastore.Store) {
		if err := s.Put(t.Context(), "strange", "item", []byte("no JSON")); err != nil {
			t.Fatal(err)
		}
	})
	fails("a damaged journal", "the journal's record of run strange is damaged")
	l.withStore(t, func(s metastore.Store) {
		if err := s.Put(t.Context(), "strange", "item", []byte("{}")); err != nil {
			t.Fatal(err)
		}
	})
	testFailingHSM(t, l)
}

// withStore opens the metastore of the site.
func (l *lab) withStore(t *testing.T, work func(metastore.Store)) {
	t.Helper()
	s, err := sqlite.Open(t.Context(), filepath.Join(l.dir, "c.db"))
	if err != nil {
		t.Fatal(err)
	}
	work(s)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
}

// testFailingHSM: if the HSM does not say how it protects a version, that is an error.
func testFailingHSM(t *testing.T, l *lab) {
	t.Helper()
	var meter pkcs11.Meter
	l.withStore(t, func(s metastore.Store) {
		p, err := hsm.Open(t.Context(), "cloudera.hsmkp://file@"+filepath.Join(l.dir, "luna.keystore"),
			provider.Env{Log: slog.New(slog.DiscardHandler), Get: func(string) (string, bool) { return "", false }},
			hsm.Options{Access: hsm.Read, Wrap: meter.Wrap,
				Store: func(context.Context, func(context.Context, string) error) (metastore.Store, error) {
					return s, nil
				}})
		if err != nil {
			t.Fatal(err)
		}
		r := &evidence.Report{Status: &migrate.StatusReport{Keys: []migrate.KeyStatus{{Key: "finance"}}}}
		svc := &kms.Service{Primary: p}
		if err := keys(t.Context(), r, svc); err != nil || len(r.Keys.Versions) == 0 {
			t.Errorf("%+v, %v", r.Keys, err)
		}
		r.Keys = nil
		meter.Fail("FindObjectsInit", 1000, p11.Error(p11.CKR_FUNCTION_FAILED))
		if err := keys(t.Context(), r, svc); err == nil || r.Keys != nil {
			t.Errorf("while the HSM fails: %+v, %v", r.Keys, err)
		}
		meter.Heal()
		if err := p.Close(); err != nil {
			t.Fatal(err)
		}
	})
}

// TestNoAuditLog: the report of a site without an audit log says that it lacks one.
func TestNoAuditLog(t *testing.T) {
	dir := t.TempDir()
	kmstest.WriteSite(t, dir, map[string]string{
		hadoopconf.ProviderURI:  "jceks://file@" + filepath.Join(dir, "kms.keystore"),
		hadoopconf.MetastoreURI: "sqlite://" + filepath.Join(dir, "c.db"),
	})
	svc, err := kms.Open(t.Context(), dir, "test", hsm.Make, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	defer svc.Close()
	r := new(evidence.Report)
	err = auditHeads(t.Context(), r, svc)
	at := slices.IndexFunc(r.About.Parts, func(p evidence.Part) bool { return strings.Contains(p.Why, "no audit log") })
	if err != nil || len(r.Audit) != 0 || at < 0 || r.About.Parts[at].Made {
		t.Errorf("%+v, %v", r.About.Parts, err)
	}
}

// run runs one of the commands with a command line.
func run(cmd *cobra.Command, out io.Writer, args ...string) error {
	cmd.SilenceErrors, cmd.SilenceUsage = true, true
	cmd.SetOut(out)
	cmd.SetArgs(args)
	return cmd.Execute()
}

// testFlags: each flag of the commands has its effect.
func testFlags(t *testing.T, l *lab) {
	t.Helper()
	var o Options
	cmd := &cobra.Command{Use: Use, RunE: func(*cobra.Command, []string) error { return nil }}
	o.Define(cmd)
	if err := run(cmd, io.Discard, "--out", "a", "--key", "b", "--verdict", "c", "--overwrite"); err != nil ||
		o.Out != "a" || o.Key != "b" || o.VerdictFile != "c" || !o.Overwrite {
		t.Errorf("%+v, %v", o, err)
	}
	for _, missing := range [][]string{{"--out", "a"}, {"--key", "b"}} {
		cmd := &cobra.Command{Use: Use, RunE: func(*cobra.Command, []string) error { return nil }}
		new(Options).Define(cmd)
		if err := run(cmd, io.Discard, missing...); err == nil || !strings.Contains(err.Error(), "required flag") {
			t.Errorf("%q alone: %v", missing, err)
		}
	}
	if err := run(verifyCommand(), io.Discard, l.o.Out, "--public-key", l.public); err != nil {
		t.Error(err)
	}
}

// fullDisk fails each write.
type fullDisk struct{}

func (fullDisk) Write([]byte) (int, error) { return 0, syscall.ENOSPC }

// TestKeygen: keygen makes a pair of keys. It overwrites no file, does not take - for a name, and reports an output
// that cannot be written.
func TestKeygen(t *testing.T) {
	t.Chdir(t.TempDir())
	if err := run(keygenCommand(), io.Discard, "a.key"); err != nil {
		t.Fatal(err)
	}
	before, err := os.ReadFile("a.key")
	if err != nil {
		t.Fatal(err)
	}
	if err := run(keygenCommand(), io.Discard, "a.key"); err == nil || !strings.Contains(err.Error(), "a.key") {
		t.Errorf("a file that exists: %v", err)
	}
	if after, err := os.ReadFile("a.key"); err != nil || string(after) != string(before) {
		t.Errorf("the key was replaced: %v", err)
	}
	if err := run(keygenCommand(), io.Discard, "-"); err == nil || !strings.Contains(err.Error(), "standard output") {
		t.Errorf("-: %v", err)
	}
	if _, err := os.Stat("-"); err == nil {
		t.Error("a file - was made")
	}
	if err := run(keygenCommand(), fullDisk{}, "b.key"); !errors.Is(err, syscall.ENOSPC) {
		t.Errorf("a full disk: %v", err)
	}
}
