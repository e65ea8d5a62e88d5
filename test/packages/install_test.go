package packages

import (
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"claviger/test/hadoop"
)

// A manager installs, removes and purges packages in a root.
type manager struct {
	install func(t *testing.T, r *root, p pair) string // a first installation, or an upgrade
	remove  func(t *testing.T, r *root) string
	purge   func(t *testing.T, r *root) string // after remove; nil for rpm, which has no purge
	// kept is the path of a changed configuration file after the removal.
	kept string
}

func command(t *testing.T, name string, args ...string) string {
	t.Helper()
	cmd := exec.Command(name, args...) //nolint:noctx // see runs
	// As in an unattended upgrade, nobody answers questions. PATH is for the scripts of the package.
	cmd.Env = []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "DEBIAN_FRONTEND=noninteractive", "LC_ALL=C"}
	out, err := runs(t.Context(), cmd)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// TestDeb installs the .deb with dpkg, which checks that its dependencies are installed.
func TestDeb(t *testing.T) {
	dpkg := func(t *testing.T, r *root, args ...string) string {
		t.Helper()
		return command(t, "dpkg", append([]string{"--root=" + r.dir}, args...)...)
	}
	lifecycle(t, &manager{
		install: func(t *testing.T, r *root, p pair) string { return dpkg(t, r, "-i", p.deb) },
		remove:  func(t *testing.T, r *root) string { return dpkg(t, r, "-r", "claviger") },
		purge:   func(t *testing.T, r *root) string { return dpkg(t, r, "-P", "claviger") },
		kept:    "/etc/logrotate.d/claviger",
	})
}

// TestRPM installs the .rpm with rpm. The root is a Debian, where rpm knows no dependency, so they are not checked.
func TestRPM(t *testing.T) {
	require(t, "rpm")
	rpm := func(t *testing.T, r *root, args ...string) string {
		t.Helper()
		return command(t, "rpm", append([]string{"--root", r.dir, "--nodeps"}, args...)...)
	}
	lifecycle(t, &manager{
		install: func(t *testing.T, r *root, p pair) string { return rpm(t, r, "-U", p.rpm) },
		remove:  func(t *testing.T, r *root) string { return rpm(t, r, "-e", "claviger") },
		kept:    "/etc/logrotate.d/claviger.rpmsave",
	})
}

// lifecycle installs a package, starts the server as docs/install.md says, upgrades the package over a changed
// configuration, removes and purges it. The key that was made after the installation is there after each step.
func lifecycle(t *testing.T, m *manager) {
	p := packages(t)
	r := newRoot(t)
	m.install(t, r, p.older)
	if calls := r.calls(); calls != "--system daemon-reload\n" {
		t.Errorf("the first installation called systemctl: %q", calls)
	}
	checkInstalled(t, r)

	blocks := firstStart(t)
	r.run("root", blocks[0])
	r.run("claviger", "cd /var/lib/claviger\n"+blocks[1])
	const options = "--http-port 0"
	r.serve("claviger-kms.service", "/var/lib/claviger", options, func(url string) {
		request(t, http.MethodPost, url+"/v1/keys", `{"name":"k","length":256,"cipher":"AES/CTR/NoPadding"}`)
	})
	keyIsThere := func() {
		t.Helper()
		r.serve("claviger-kms.service", "/var/lib/claviger", options, func(url string) {
			if names := request(t, http.MethodGet, url+"/v1/keys/names", ""); names != `["k"]` {
				t.Errorf("keys %s", names)
			}
		})
	}

	const changed = "\n# changed by an operator\n"
	r.write("/etc/logrotate.d/claviger", r.read("/etc/logrotate.d/claviger")+changed, 0o644)
	site := strings.Replace(r.read("/etc/claviger/kms-site.xml"), "<configuration>", "<!-- ours --><configuration>", 1)
	r.write("/etc/claviger/kms-site.xml", site, 0o640)
	m.install(t, r, p.pair)
	calls := r.calls()
	if !strings.Contains(calls, "try-restart") || regexp.MustCompile(`\b(enable|start|stop|restart)\b`).
		MatchString(strings.ReplaceAll(calls, "try-restart", "")) {
		t.Errorf("the upgrade called systemctl: %q", calls)
	}
	if r.read("/etc/claviger/kms-site.xml") != site ||
		!strings.HasSuffix(r.read("/etc/logrotate.d/claviger"), changed) {
		t.Error("the upgrade has changed the configuration")
	}
	keyIsThere()

	said := m.remove(t, r)
	if calls := r.calls(); !strings.Contains(calls, "disable --now claviger-kms.service") {
		t.Errorf("the removal called systemctl: %q", calls)
	}
	if r.exists("/usr/bin/claviger") || r.exists("/usr/lib/systemd/system/claviger-kms.service") ||
		r.exists("/usr/share/doc/claviger") {
		t.Error("the removal left files")
	}
	if !strings.HasSuffix(r.read(m.kept), changed) {
		t.Errorf("the removal has changed %s", m.kept)
	}
	if m.purge != nil {
		said = m.purge(t, r)
		if r.exists(m.kept) {
			t.Errorf("%s is still there", m.kept)
		}
	}
	for _, dir := range []string{"/etc/claviger", "/var/lib/claviger", "/var/log/claviger"} {
		if !regexp.MustCompile(`folders stay.* ` + dir + `\b`).MatchString(said) {
			t.Errorf("the removal does not say that %s stays: %s", dir, said)
		}
	}
	m.install(t, r, p.pair)
	keyIsThere()
}

// checkInstalled checks users, folders, and that no unit is enabled.
func checkInstalled(t *testing.T, r *root) {
	t.Helper()
	r.owned("/etc/claviger", "root", 0o750)
	r.owned("/var/lib/claviger", "claviger", 0o700)
	r.owned("/var/lib/kms-keytrustee", "claviger", 0o700)
	r.owned("/var/log/claviger", "claviger", 0o750)
	r.owned("/var/lib/keytrustee", "keytrustee", 0o700)
	r.owned("/etc/keytrustee-keyhsm", "keyhsm", 0o700)
	if entries, err := os.ReadDir(r.path("/etc/claviger")); err != nil || len(entries) > 0 {
		t.Errorf("/etc/claviger has %v, %v", entries, err)
	}
	found, err := filepath.Glob(r.path("/etc/systemd/system/*/claviger*"))
	if err != nil || len(found) > 0 {
		t.Errorf("enabled: %q, %v", found, err)
	}
	for unit, want := range map[string]string{"kms": "claviger", "trustee": "keytrustee", "keyhsm": "keyhsm"} {
		command, name := r.execStart("claviger-" + unit + ".service")
		if name != want || !strings.HasPrefix(command, "/usr/bin/claviger "+unit+" ") {
			t.Errorf("claviger-%s.service runs %q as %s", unit, command, name)
		}
		text := r.read("/usr/lib/systemd/system/claviger-" + unit + ".service")
		for _, m := range regexp.MustCompile(`(?m)^Exec\w+=(\S+)`).FindAllStringSubmatch(text, -1) {
			if !r.exists(m[1]) { // for example /bin/kill, which a small Debian lacks
				t.Errorf("claviger-%s.service runs %s, which no package that claviger depends on has", unit, m[1])
			}
		}
	}
}

// firstStart returns the two blocks of docs/install.md that prepare the first start: one for root, one for claviger.
func firstStart(t *testing.T) []string {
	t.Helper()
	page, err := os.ReadFile(filepath.Join(hadoop.Root(), "docs/install.md"))
	if err != nil {
		t.Fatal(err)
	}
	_, text, ok := strings.Cut(string(page), "\n## First start, with SoftHSM\n")
	if !ok {
		t.Fatal("docs/install.md has no first start")
	}
	text, _, _ = strings.Cut(text, "\n## ")
	var blocks []string
	for _, m := range regexp.MustCompile("(?s)\n```\n(.*?)```\n").FindAllStringSubmatch(text, -1) {
		blocks = append(blocks, m[1])
	}
	if len(blocks) < 2 {
		t.Fatal(fmt.Sprint("blocks: ", len(blocks)))
	}
	return blocks
}
