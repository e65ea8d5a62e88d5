package main

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"claviger/internal/openapitest"
	"claviger/internal/pagetest"
	"claviger/kms/kmstest"
)

// shownCommand is a command of a page, and the output that the page shows.
type shownCommand struct{ command, output string }

// shownCommands returns the commands of a page's code blocks: lines that begin with "$ ", and the lines that continue
// them after a backslash.
func shownCommands(page string) (list []shownCommand) {
	for _, block := range codeBlock.FindAllStringSubmatch(page, -1) {
		open := false // a command goes on in the next line
		for line := range strings.Lines(block[1]) {
			command, begins := strings.CutPrefix(line, "$ ")
			switch {
			case begins:
				list = append(list, shownCommand{command: command})
			case open:
				list[len(list)-1].command += line
			default:
				list[len(list)-1].output += line
			}
			open = (begins || open) && strings.HasSuffix(line, "\\\n")
		}
	}
	return list
}

// checkRealAnswers compares answers of a whole server with docs/openapi.yaml: those whose fields only the HSM, the
// metastore or the configuration fills. kmsapi has the test of all answers.
func checkRealAnswers(t *testing.T, url string) {
	t.Helper()
	doc, base := openapitest.Load(t), strings.TrimSuffix(url, "/kms")
	for _, e := range []openapitest.Exchange{
		{Method: http.MethodPost, Target: "/kms/v1/keys?user.name=alice", RequestBody: []byte(`{"name":"k"}`)},
		{Method: http.MethodGet, Target: "/kms/v1/key/k?user.name=alice"},
		{Method: http.MethodGet, Target: "/kms/v1/trustee/key/k?user.name=alice"},
		{Method: http.MethodGet, Target: "/readyz"}, {Method: http.MethodGet, Target: "/metrics"},
		{Method: http.MethodGet, Target: "/conf?user.name=alice"},
		{Method: http.MethodGet, Target: "/jmx?user.name=alice"},
		{Method: http.MethodDelete, Target: "/kms/v1/key/k?user.name=alice"},
		{Method: http.MethodGet, Target: "/kms/v1/trustee/keys/deleted?user.name=alice"},
		{Method: http.MethodPost, Target: "/kms/v1/trustee/key/k?trusteeOp=purge&user.name=alice"}, // too early
	} {
		r, err := http.NewRequestWithContext(t.Context(), e.Method, base+e.Target, bytes.NewReader(e.RequestBody))
		if err != nil {
			t.Fatal(err)
		}
		if e.RequestBody != nil {
			r.Header.Set("Content-Type", "application/json")
		}
		answer, err := http.DefaultClient.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		e.RequestHeader, e.Status, e.Header = r.Header, answer.StatusCode, answer.Header
		e.Body, err = io.ReadAll(answer.Body)
		if err := errors.Join(err, answer.Body.Close(), doc.Check(&e, true)); err != nil {
			t.Error(err)
		}
	}
}

// TestAPIPage runs the commands of docs/api.md in one shell, in their order, at a KMS with an HSM. Each must print what
// the page shows; ... stands for any text in a line.
func TestAPIPage(t *testing.T) {
	for _, tool := range []string{"bash", "curl", "jq"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Skip(err)
		}
	}
	dir, site := kmstest.HSM(t)
	delete(site, "hadoop.kms.key.authorization.enable")
	kmstest.WriteSite(t, dir, site)
	kmstest.WriteFile(t, filepath.Join(dir, "kms-acls.xml"), kmstest.SiteXML("default.key.acl.MANAGEMENT", "*",
		"default.key.acl.READ", "*", "default.key.acl.GENERATE_EEK", "*", "default.key.acl.DECRYPT_EEK", "*",
		"hadoop.kms.acl.DELETE", "alice", "keytrustee.kms.acl.UNDELETE", "alice", "keytrustee.kms.acl.PURGE", "alice"))
	url := serve(t, dir)
	list := shownCommands(pagetest.All(t)["api.md"])
	if len(list) < 15 {
		t.Fatalf("docs/api.md has only %d commands", len(list))
	}
	const end = "--- the next command ---\n"
	var script strings.Builder
	for _, c := range list {
		script.WriteString(c.command + "printf '\n" + end + "'\n")
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, "bash", "-e", "-o", "pipefail", "-c", //nolint:gosec // a page of ours
		strings.ReplaceAll(script.String(), "http://localhost:9600", strings.TrimSuffix(url, "/kms")))
	cmd.Dir, cmd.Stderr = t.TempDir(), os.Stderr
	out, err := cmd.Output()
	if err != nil {
		t.Errorf("%v: %s", err, out)
	}
	outputs := strings.Split(string(out), end)
	for i, c := range list {
		pattern := strings.ReplaceAll(regexp.QuoteMeta(strings.TrimSpace(c.output)), `\.\.\.`, `[^\n]*`)
		if i >= len(outputs) || !regexp.MustCompile("^"+pattern+"$").MatchString(strings.TrimSpace(outputs[i])) {
			t.Errorf("docs/api.md shows\n$ %s%s\nwhich prints\n%s", c.command, c.output,
				outputs[min(i, len(outputs)-1)])
		}
	}
	checkRealAnswers(t, url)
}
