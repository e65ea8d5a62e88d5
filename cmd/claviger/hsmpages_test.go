package main

import (
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"claviger/hadoopconf"
	"claviger/internal/pagetest"
	"claviger/internal/softhsm"
	"claviger/kms/kmstest"
)

// maxVendorPage is the largest number of lines of a page in docs/hsm.
const maxVendorPage = 200

// TestDocsOfHSMs: each page of docs/hsm says at its top what was tried and what was not, and none is long.
func TestDocsOfHSMs(t *testing.T) {
	found := 0
	for page, text := range pagetest.All(t) {
		if !strings.HasPrefix(page, "hsm/") {
			continue
		}
		if n := strings.Count(text, "\n"); n > maxVendorPage {
			t.Errorf("docs/%s has %d lines, more than %d", page, n, maxVendorPage)
		}
		if !regexp.MustCompile(`\n## What (the|a) profile sets\n`).MatchString(text) {
			continue
		}
		found++
		first, _, _ := strings.Cut(text, "\n## ")
		if !strings.Contains(first, "**Tried:** ") || !strings.Contains(first, "**Not tried:** ") {
			t.Errorf("docs/%s does not say at its top what was tried, and what was not", page)
		}
	}
	if found != 5 {
		t.Errorf("docs/hsm has %d pages of makers and profiles, want 5", found)
	}
}

// masked replaces serial numbers and slots, which differ from token to token.
func masked(text string) string {
	return regexp.MustCompile(`(?m)^(serial|slot)( +)[0-9a-f]+$`).ReplaceAllString(text, "$1$2N")
}

// TestSoftHSMPage runs the commands of docs/hsm/softhsm.md as they are on the page.
func TestSoftHSMPage(t *testing.T) {
	module, err := softhsm.Module()
	if err != nil {
		t.Fatal(err)
	}
	blocks := codeBlock.FindAllStringSubmatch(pagetest.All(t)["hsm/softhsm.md"], -1)
	if len(blocks) != 3 {
		t.Fatalf("docs/hsm/softhsm.md has %d blocks of code, want set-up, checks, the output of inspect", len(blocks))
	}
	setUp, checks, inspected := blocks[0][1], blocks[1][1], blocks[2][1]
	dir := t.TempDir()
	sh := func(dir, script string) string {
		t.Helper()
		cmd := exec.CommandContext(t.Context(), "sh", "-ec", script)
		cmd.Dir = dir
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("%v of\n%s\n%s", err, script, out)
		}
		return string(out)
	}
	const onDebian = "/usr/lib/softhsm/libsofthsm2.so"
	if out := sh(dir, strings.ReplaceAll(setUp, onDebian, module)); !strings.Contains(out, "wrote conf/luna.keystore") {
		t.Errorf("the set-up prints\n%s", out)
	}
	dir = filepath.Join(dir, "try")
	t.Setenv("SOFTHSM2_CONF", filepath.Join(dir, "softhsm2.conf"))
	makeKeyAt(t, dir)
	for command := range strings.Lines(checks) {
		if strings.Contains(command, " hsm bench ") {
			command = strings.TrimSpace(command) + " || [ $? = 3 ]" // a busy machine
		}
		out := sh(dir, command)
		switch {
		case strings.Contains(command, " hsm inspect ") && masked(out) != masked(inspected):
			t.Errorf("inspect prints\n%s\nthe page has\n%s", out, inspected)
		case strings.Contains(command, " hsm list ") && !strings.Contains(out, "zone1@0"):
			t.Errorf("list prints\n%s", out)
		}
	}
}

// makeKeyAt starts a KMS with the folder conf of dir, makes the key zone1, and ends the KMS.
func makeKeyAt(t *testing.T, dir string) {
	t.Helper()
	conf := filepath.Join(dir, "conf")
	kmstest.WriteSite(t, conf, map[string]string{
		hadoopconf.ProviderURI:                "cloudera.hsmkp://file@" + filepath.Join(conf, "luna.keystore"),
		"hadoop.kms.http.host":                "127.0.0.1",
		"hadoop.kms.key.authorization.enable": "false",
	})
	n := startNode(t, conf)
	makeKey(t, n.kms, newKey("zone1", ""))
	n.stop()
}
