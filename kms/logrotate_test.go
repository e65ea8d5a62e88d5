package kms

import (
	"fmt"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"claviger/audit"
	"claviger/kms/kmstest"
)

// logrotateConf writes a configuration of logrotate for logs in dir: the file in packaging,
// with paths and users of this test.
func logrotateConf(t *testing.T, dir string) (conf string) {
	t.Helper()
	current, err := user.Current()
	if err != nil {
		t.Fatal(err)
	}
	group, err := user.LookupGroupId(current.Gid)
	if err != nil {
		t.Fatal(err)
	}
	sample, err := os.ReadFile("../packaging/logrotate/claviger")
	if err != nil {
		t.Fatal(err)
	}
	text := string(sample)
	for from, to := range map[string]string{
		"/var/log/claviger":    dir,
		"su claviger claviger": "su " + current.Username + " " + group.Name,
		"systemctl try-reload-or-restart claviger-kms.service": fmt.Sprintf("kill -HUP %d", os.Getpid()),
		"dateformat -%Y%m%d-%s":                                "dateformat -%Y%m%d-%s", // TestLogrotate depends on it
	} {
		if !strings.Contains(text, from) {
			t.Fatalf("the sample does not contain %q", from)
		}
		text = strings.ReplaceAll(text, from, to)
	}
	conf = filepath.Join(dir, "logrotate.conf")
	kmstest.WriteFile(t, conf, text)
	return conf
}

// TestLogrotate runs the real logrotate with the file in packaging while events are logged:
// no record is missing, and the chain verifies over all files.
func TestLogrotate(t *testing.T) {
	program, err := exec.LookPath("logrotate")
	if err != nil {
		program = "/usr/sbin/logrotate" // this folder is not in every PATH
	}
	if _, err := os.Stat(program); err != nil {
		if os.Getenv("CLAVIGER_REQUIRE_LOGROTATE") == "1" {
			t.Fatal(err)
		}
		t.Skip(err)
	}
	dir := t.TempDir()
	if err := os.Chmod(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	conf := logrotateConf(t, dir)
	set, trail, stop := trailOnHangup(t, dir)
	ctx := t.Context()
	const rotations, each = 3, 50
	for range rotations {
		for i := range each {
			trail.Log(ctx, audit.Event{Status: audit.OK, Op: audit.GetKeys, Key: fmt.Sprint(i)})
		}
		// Begin writes all earlier events to the disk.
		if err := trail.Begin(ctx, audit.Event{Op: audit.CreateKey, Key: "k"}); err != nil {
			t.Fatal(err)
		}
		if out, err := exec.CommandContext(t.Context(), program, "--force", "--state", filepath.Join(dir, "state"),
			conf).CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		time.Sleep(1100 * time.Millisecond) // names of rotated files have whole seconds
	}
	stop()
	if err := trail.Close(); err != nil {
		t.Fatal(err)
	}
	files := filesOf(t, filepath.Join(dir, "audit.json"))
	if len(files) != rotations+1 {
		t.Fatalf("files %q, want %d", files, rotations+1)
	}
	if !slices.ContainsFunc(files, func(name string) bool { return strings.HasSuffix(name, ".gz") }) {
		t.Fatalf("none of the files %q is compressed", files)
	}
	head, ok, err := audit.HeadFileOf(set.json).Load(t.Context())
	if err != nil || !ok {
		t.Fatal(ok, err)
	}
	r, err := audit.Verify(files, audit.VerifyConfig{Heads: []audit.Head{head}})
	if err != nil {
		t.Fatal(err)
	}
	if len(r.Findings) != 0 || r.Records < rotations*(each+1) || r.First != 1 {
		t.Errorf("report %+v", r)
	}
}

// filesOf returns the files of a log, with the compressed ones.
func filesOf(t *testing.T, log string) []string {
	t.Helper()
	names, err := filepath.Glob(log + "*")
	if err != nil {
		t.Fatal(err)
	}
	return slices.DeleteFunc(names, audit.IsBeside)
}

// TestRotatesByDefault: by default audit files are rotated, and none is removed.
func TestRotatesByDefault(t *testing.T) {
	r := &reader{conf: kmstest.Conf(t, map[string]string{"hadoop.kms.key.provider.uri": "jceks://file@/x"})}
	set := r.audit()
	if r.err != nil {
		t.Fatal(r.err)
	}
	if want := (audit.Rotation{Size: 256 << 20}); set.rotation != want {
		t.Errorf("rotation %+v, want %+v", set.rotation, want)
	}
}
