package packages

import (
	"context"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"claviger/test/hadoop"
)

// root is a small Debian. Its systemctl only records how it is called.
type root struct {
	t   *testing.T
	dir string
}

// systemctl is the file in which the calls are recorded.
const systemctl = "/var/log/systemctl"

func newRoot(t *testing.T) *root {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("only root may install packages, and make the folder to install them into")
	}
	require(t, "mmdebstrap", "chroot", "unshare")
	original, err := exec.CommandContext(t.Context(), filepath.Join(hadoop.Root(), "scripts/root")).Output()
	if err != nil {
		t.Fatalf("scripts/root: %v", err)
	}
	r := &root{t: t, dir: filepath.Join(t.TempDir(), "root")}
	output(t, "cp", "-a", strings.TrimSpace(string(original)), r.dir)
	for dir := r.dir; dir != "/" && dir != os.TempDir(); dir = filepath.Dir(dir) { // for users other than root
		if err := os.Chmod(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.MkdirAll(r.path("/run/systemd/system"), 0o755); err != nil {
		t.Fatal(err)
	}
	r.write("/usr/bin/systemctl", "#!/bin/sh\necho \"$*\" >>"+systemctl+"\n", 0o755)
	return r
}

func (r *root) path(name string) string { return filepath.Join(r.dir, name) }

func (r *root) write(name, text string, mode os.FileMode) {
	r.t.Helper()
	if err := os.WriteFile(r.path(name), []byte(text), mode); err != nil {
		r.t.Fatal(err)
	}
}

func (r *root) read(name string) string {
	r.t.Helper()
	text, err := os.ReadFile(r.path(name))
	if err != nil {
		r.t.Fatal(err)
	}
	return string(text)
}

func (r *root) exists(name string) bool {
	_, err := os.Lstat(r.path(name))
	return err == nil
}

// calls returns the arguments of the calls of systemctl since the last use of calls.
func (r *root) calls() string {
	r.t.Helper()
	if !r.exists(systemctl) {
		return ""
	}
	text := r.read(systemctl)
	if err := os.Remove(r.path(systemctl)); err != nil {
		r.t.Fatal(err)
	}
	return text
}

// command returns a command that runs a shell in the root, as a user. Only this command sees /proc and /dev there.
func (r *root) command(name, shell string) *exec.Cmd {
	const script = `mount -t proc proc "$1/proc" && mount --rbind /dev "$1/dev" &&
		exec chroot --userspec="$2" "$1" /bin/sh -euc "$3"`
	cmd := exec.Command("unshare", "--mount", "sh", "-c", script, "sh", r.dir, name, shell) //nolint:noctx // see runs
	cmd.Env = []string{"PATH=/usr/sbin:/usr/bin", "HOME=/var/lib/claviger", "GORACE=atexit_sleep_ms=0"}
	return cmd
}

// run runs a command line that must succeed.
func (r *root) run(name, shell string) string {
	r.t.Helper()
	out, err := runs(r.t.Context(), r.command(name, shell))
	if err != nil {
		r.t.Fatal(err)
	}
	return out
}

// id returns the number of a user of the root.
func (r *root) id(name string) string {
	r.t.Helper()
	line := regexp.MustCompile(`(?m)^` + name + `:[^:]*:(\d+):\d+:[^:]*:[^:]*:(.*)$`)
	m := line.FindStringSubmatch(r.read("/etc/passwd"))
	if m == nil {
		r.t.Fatalf("no user %s", name)
	}
	if m[1] == "0" || m[2] != "/usr/sbin/nologin" {
		r.t.Errorf("user %s: %q", name, m[0])
	}
	return m[1]
}

// owned checks owner and mode of a folder.
func (r *root) owned(name, owner string, mode os.FileMode) {
	r.t.Helper()
	info, err := os.Stat(r.path(name))
	if err != nil {
		r.t.Fatal(err)
	}
	want := "0"
	if owner != "root" {
		want = r.id(owner)
	}
	uid := strconv.Itoa(int(info.Sys().(*syscall.Stat_t).Uid))
	if uid != want || info.Mode().Perm() != mode || !info.IsDir() {
		r.t.Errorf("%s belongs to %s and has the mode %v, want %s and %v", name, uid, info.Mode(), owner, mode)
	}
}

// execStart returns the command of an installed unit, and its user.
func (r *root) execStart(unit string) (command, name string) {
	r.t.Helper()
	text := r.read("/usr/lib/systemd/system/" + unit)
	value := func(key string) string {
		m := regexp.MustCompile(`(?m)^`+key+`=(.*)$`).FindAllStringSubmatch(text, -1)
		if len(m) != 1 {
			r.t.Fatalf("%s has %d lines %s", unit, len(m), key)
		}
		return m[0][1]
	}
	return value("ExecStart"), value("User")
}

// serve starts the command of a unit, as its user, calls do with the URL of the server, and stops the server.
func (r *root) serve(unit, dir, options string, do func(url string)) {
	r.t.Helper()
	command, name := r.execStart(unit)
	ready := filepath.Join(dir, "ready")
	_ = os.Remove(r.path(ready))
	cmd := r.command(name, "exec "+command+" "+options+" --ready-file "+ready)
	log, err := os.Create(filepath.Join(r.t.TempDir(), "log"))
	if err != nil {
		r.t.Fatal(err)
	}
	defer log.Close()
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Start(); err != nil {
		r.t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	defer func() {
		_ = cmd.Process.Signal(syscall.SIGTERM)
		select {
		case err := <-ended:
			if err != nil {
				r.t.Errorf("%s ended: %v", unit, err)
			}
		case <-time.After(time.Minute):
			_ = cmd.Process.Kill()
			r.t.Errorf("%s did not end", unit)
		}
		if r.t.Failed() {
			text, _ := os.ReadFile(log.Name())
			r.t.Logf("%s: %s", unit, text)
		}
	}()
	for begin := time.Now(); ; time.Sleep(20 * time.Millisecond) {
		if url, err := os.ReadFile(r.path(ready)); err == nil && strings.HasSuffix(string(url), "\n") {
			do(strings.TrimSpace(string(url)))
			return
		}
		if len(ended) > 0 || time.Since(begin) > time.Minute {
			r.t.Errorf("%s does not serve", unit)
			return
		}
	}
}

// request sends a request to the KMS as a user, and returns the body of an answer that is not an error.
func request(t *testing.T, method, url, body string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, method, url+"?user.name=alice", strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Content-Type", "application/json")
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode >= 300 {
		t.Fatalf("%s %s: %s, %v: %s", method, url, resp.Status, err, text)
	}
	return string(text)
}
