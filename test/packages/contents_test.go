package packages

import (
	"bytes"
	"debug/elf"
	"encoding/json"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"claviger/test/hadoop"
)

// onlyIn matches paths that only one of the packages has, or that the packages have in different places.
var onlyIn = regexp.MustCompile(`^/usr/share/(zsh|licenses|lintian)/|` +
	`^/usr/share/doc/claviger/(changelog.*|CHANGELOG.md|copyright)$`)

// TestContents: both packages have the same files. Nothing is in /etc except the rotation of logs, which an operator
// may change, and nothing is in /var: a package owns no state.
func TestContents(t *testing.T) {
	require(t, "rpm")
	p := packages(t)
	deb := regexp.MustCompile(`(?m)^(\S+) root/root .* \.(/.*)$`).
		FindAllStringSubmatch(output(t, "dpkg-deb", "-c", p.deb), -1)
	modes, inDeb := make(map[string]string), []string(nil)
	for _, m := range deb {
		if name := m[2]; !strings.HasSuffix(name, "/") {
			modes[name] = m[1]
			inDeb = append(inDeb, name)
		}
		if m[1] != "-rw-r--r--" && m[2] != "/usr/bin/claviger" && m[1] != "drwxr-xr-x" {
			t.Errorf("%s has the mode %s", m[2], m[1])
		}
		if regexp.MustCompile(`^/(var|etc/claviger|etc/systemd|usr/local|run)`).MatchString(m[2]) {
			t.Errorf("the package has %s", m[2])
		}
	}
	if modes["/usr/bin/claviger"] != "-rwxr-xr-x" {
		t.Errorf("the program has the mode %s", modes["/usr/bin/claviger"])
	}
	inRPM := strings.Fields(output(t, "rpm", "-qp", "--qf", `[%{FILEMODES:perms} %{FILENAMES}\n]`, p.rpm))
	var files []string
	for i := 0; i+1 < len(inRPM); i += 2 {
		if !strings.HasPrefix(inRPM[i], "d") {
			files = append(files, inRPM[i+1])
		}
	}
	common := func(all []string) []string {
		all = slices.DeleteFunc(slices.Clone(all), onlyIn.MatchString)
		slices.Sort(all)
		return all
	}
	if a, b := common(inDeb), common(files); !slices.Equal(a, b) || len(a) < 100 {
		t.Errorf("the packages have different files:\n%q\n%q", a, b)
	}
	for _, want := range wanted(t) {
		if !slices.Contains(inDeb, want) {
			t.Errorf("the package has no %s", want)
		}
	}
	if got := conffiles(t, p); got != "/etc/logrotate.d/claviger" {
		t.Errorf("configuration files %q", got)
	}
	if got := output(t, "rpm", "-qpc", p.rpm); strings.TrimSpace(got) != "/etc/logrotate.d/claviger" {
		t.Errorf("configuration files of the rpm: %q", got)
	}
}

// wanted returns files that the packages must have, with a man page for each command.
func wanted(t *testing.T) []string {
	t.Helper()
	all := strings.Fields(`/usr/bin/claviger /usr/lib/systemd/system/claviger-kms.service
		/usr/lib/systemd/system/claviger-trustee.service /usr/lib/systemd/system/claviger-keyhsm.service
		/usr/share/bash-completion/completions/claviger /usr/share/fish/vendor_completions.d/claviger.fish
		/usr/share/zsh/vendor-completions/_claviger /usr/share/doc/claviger/examples/kms-site.xml
		/usr/share/doc/claviger/examples/systemd/claviger-kms.service.d/pin.conf
		/usr/share/doc/claviger/docs/install.md /usr/share/doc/claviger/docs/openapi.yaml
		/usr/share/doc/claviger/docs/hsm/softhsm.md
		/usr/share/doc/claviger/sbom.cdx.json.gz /usr/share/doc/claviger/NOTICES.gz`)
	page, err := os.ReadFile(filepath.Join(hadoop.Root(), "docs/cli.md"))
	if err != nil {
		t.Fatal(err)
	}
	commands := regexp.MustCompile(`(?m)^## (claviger.*)$`).FindAllStringSubmatch(string(page), -1)
	if len(commands) < 60 {
		t.Fatalf("only %d commands", len(commands))
	}
	for _, m := range commands {
		all = append(all, "/usr/share/man/man1/"+strings.ReplaceAll(m[1], " ", "-")+".1.gz")
	}
	return all
}

// conffiles returns the list that dpkg keeps of configuration files.
func conffiles(t *testing.T, p *made) string {
	t.Helper()
	return strings.TrimSpace(output(t, "dpkg-deb", "-I", p.deb, "conffiles"))
}

// TestDependencies: the packages require the C library and the libraries that the program requires, and no others.
func TestDependencies(t *testing.T) {
	require(t, "rpm")
	p := packages(t)
	f, err := elf.Open(p.binary)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	libraries, err := f.ImportedLibraries()
	if err != nil {
		t.Fatal(err)
	}
	deb := output(t, "dpkg-deb", "-f", p.deb, "Depends")
	rpm := output(t, "rpm", "-qpR", p.rpm)
	inDebian := map[string]string{"libgssapi_krb5.so.2": "libgssapi-krb5-2", "libkrb5.so.3": "libkrb5-3"}
	for _, name := range libraries {
		if strings.HasPrefix(name, "libc.so.") || strings.HasPrefix(name, "ld-linux-") { // see newestGLIBC
			continue
		}
		if inDebian[name] == "" {
			t.Errorf("the program needs %s, for which packaging/nfpm.yaml has no dependency", name)
		} else if !strings.Contains(deb, inDebian[name]+" (") || !strings.Contains(rpm, name+"()(64bit)\n") {
			t.Errorf("the packages do not require %s:\n%s\n%s", name, deb, rpm)
		}
		delete(inDebian, name)
	}
	for name := range inDebian {
		t.Errorf("the program does not need %s, which the packages require", name)
	}
	newest := newestGLIBC(t, f)
	if !strings.Contains(deb, "libc6 (>= "+newest+")") ||
		!strings.Contains(rpm, "libc.so.6(GLIBC_"+newest+")(64bit)\n") {
		t.Errorf("the packages do not require version %s of the C library:\n%s\n%s", newest, deb, rpm)
	}
}

// newestGLIBC returns the newest version of the C library whose symbols the program uses.
func newestGLIBC(t *testing.T, f *elf.File) string {
	t.Helper()
	symbols, err := f.ImportedSymbols()
	if err != nil {
		t.Fatal(err)
	}
	newest, last := "", 0
	for _, s := range symbols {
		if version, ok := strings.CutPrefix(s.Version, "GLIBC_2."); ok {
			number := 0
			for _, digit := range strings.SplitN(version, ".", 2)[0] {
				number = 10*number + int(digit-'0')
			}
			if number > last {
				newest, last = "2."+version, number
			}
		}
	}
	return newest
}

// TestLintian: lintian reports no error and no warning.
func TestLintian(t *testing.T) {
	require(t, "lintian")
	p := packages(t)
	args := []string{"--fail-on", "error,warning", "--allow-root"}
	if !p.released { // the program of the tests is not position-independent
		args = append(args, "--suppress-tags", "hardening-no-pie")
	}
	output(t, "lintian", append(args, p.deb)...)
}

// TestSameBytes: the same input gives the same bytes later, in another folder and time zone, with another language and
// user name, and if the program has another mode.
func TestSameBytes(t *testing.T) {
	p := packages(t)
	program := filepath.Join(t.TempDir(), "other")
	text, err := os.ReadFile(p.binary)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(program, text, 0o700); err != nil {
		t.Fatal(err)
	}
	again, err := script(program, oldVersion, filepath.Join(t.TempDir(), "a folder"), "TMPDIR="+t.TempDir(),
		"TZ=Asia/Tokyo", "LANG=de_DE.UTF-8", "USER=somebody", "HOSTNAME=elsewhere")
	if err != nil {
		t.Fatal(err)
	}
	for _, files := range [][2]string{{p.older.deb, again.deb}, {p.older.rpm, again.rpm}} {
		a, err := os.ReadFile(files[0])
		if err != nil {
			t.Fatal(err)
		}
		b, err := os.ReadFile(files[1])
		if err != nil {
			t.Fatal(err)
		}
		if filepath.Base(files[0]) != filepath.Base(files[1]) || !bytes.Equal(a, b) {
			t.Errorf("%s and %s differ", files[0], files[1])
		}
	}
}

// TestSBOM: the SBOM names each module of the program, with its version.
func TestSBOM(t *testing.T) {
	p := packages(t)
	file, err := oneFile(filepath.Join(filepath.Dir(p.older.deb), "*.cdx.json"))
	if err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	var sbom struct {
		Components []struct {
			Name    string
			Version string
		}
	}
	if err := json.Unmarshal(text, &sbom); err != nil {
		t.Fatal(err)
	}
	modules := regexp.MustCompile(`(?m)^\tdep\t(\S+)\t(\S+)`).
		FindAllStringSubmatch(output(t, "go", "version", "-m", p.binary), -1)
	if len(modules) < 20 {
		t.Fatalf("only %d modules", len(modules))
	}
	for _, m := range modules {
		found := false
		for _, c := range sbom.Components {
			found = found || c.Name == m[1] && c.Version == m[2]
		}
		if !found {
			t.Errorf("the SBOM has no %s %s", m[1], m[2])
		}
	}
}
