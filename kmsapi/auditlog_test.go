package kmsapi_test

import (
	"encoding/json"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"claviger"
	"claviger/audit"
	"claviger/provider/memory"
)

// auditLines writes events as the audit log does, without the parts that differ in each run:
// times, and the length of an aggregation. The aggregation window is longer than the test.
func auditLines(t *testing.T, events []audit.Event) []string {
	t.Helper()
	var b strings.Builder
	log := audit.NewHadoop(&b, time.Hour)
	for _, e := range events {
		log.Log(t.Context(), e)
	}
	if err := log.Close(); err != nil {
		t.Fatal(err)
	}
	return withoutTimes(b.String())
}

var intervals = regexp.MustCompile(`interval=\d+ms`)

func withoutTimes(log string) []string {
	var lines []string
	for _, line := range strings.Split(strings.TrimSuffix(log, "\n"), "\n") {
		lines = append(lines, intervals.ReplaceAllString(line[len("2026-11-23 14:08:15,122 "):], "interval=N"))
	}
	return lines
}

func recordedLines(t *testing.T, name string) []string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join("testdata/wire", name))
	if err != nil {
		t.Fatal(err)
	}
	return withoutTimes(string(text))
}

// compareAuditLog compares the events of the replay with the whole audit log of the recorded
// server "acl".
func compareAuditLog(t *testing.T, events []audit.Event) {
	t.Helper()
	want := recordedLines(t, "acl-kms-audit.log")[1:] // the request of the first line was not recorded
	got := auditLines(t, events)
	const aggregated = 3 // written at the end of the window, in any order
	for _, lines := range [][]string{got, want} {
		slices.Sort(lines[len(lines)-aggregated:])
	}
	for i := range max(len(got), len(want)) {
		switch {
		case i >= len(got):
			t.Errorf("no line %q", want[i])
		case i >= len(want):
			t.Errorf("line %q is not in the recorded log", got[i])
		case got[i] != want[i]:
			t.Errorf("line %d of the audit log is\n%s, want\n%s", i+1, got[i], want[i])
		}
	}
}

// compareAuditSample searches the replay's audit log for lines of the recorded server "main". It
// compares only lines that describe one request. A line that contains a key of differs must be
// missing, because of the divergence whose id is the key's value.
func compareAuditSample(t *testing.T, events []audit.Event) {
	t.Helper()
	differs := map[string]string{
		"Unexpected end-of-input within/between Object entries": "D-json-message",
		"java.lang.ClassCastException":                          "D-key-name-as-version",
	}
	got := auditLines(t, events)
	compared := 0
	for _, line := range recordedLines(t, "kms-audit-sample.log") {
		if strings.HasPrefix(line, "OK[") {
			continue // an aggregated line also counts requests without a recording
		}
		compared++
		id := ""
		for part, d := range differs {
			if strings.Contains(line, part) {
				id = d
			}
		}
		if found := slices.Contains(got, line); found == (id != "") {
			t.Errorf("the replay's log contains %q: %t (divergence %q)", line, found, id)
		}
	}
	if compared < 20 {
		t.Errorf("only %d lines were compared", compared)
	}
}

// checkErrorLine checks the audit line of an error. Hadoop writes UNAUTHENTICATED for each 401
// except in the handshake, and ERROR for each exception, unless a refusal has its own line.
func checkErrorLine(t *testing.T, rec recording, got answer, events []audit.Event) {
	t.Helper()
	want := "none"
	switch {
	case got.status == http.StatusUnauthorized && rec.method != http.MethodOptions:
		want = "UNAUTHENTICATED"
	case got.status == http.StatusForbidden && got.header("Content-Type") != "application/json",
		got.header("WWW-Authenticate") != "" && got.status == http.StatusInternalServerError:
		want = "UNAUTHENTICATED" // D-negotiate-audit
	case got.status == http.StatusInternalServerError && strings.HasPrefix(got.header("Content-Type"), "text/html"):
		want = "UNAUTHENTICATED" // D-early-audit: a name that no user can have
	case got.status >= 400 && rec.method == http.MethodHead:
		return // the answer has no body with the exception
	case got.status >= 400 && got.header("Content-Type") == "application/json":
		var e thrown
		if err := json.Unmarshal(got.body, &e); err != nil {
			t.Fatal(err)
		}
		if class := e.RemoteException.Exception; class == "AuthenticationException" {
			want = "UNAUTHENTICATED" // D-token-audit
		} else if proxyRefused.MatchString(e.RemoteException.Message) {
			want = "UNAUTHENTICATED" // D-early-audit
		} else if class != "" && class != "AuthorizationException" {
			want = "ERROR"
		}
	}
	var found []string
	for _, e := range events {
		if e.Status == audit.Error || e.Status == audit.Unauthenticated {
			found = append(found, string(e.Status))
		}
	}
	if len(found) == 0 {
		found = []string{"none"}
	}
	if !slices.Equal(found, []string{want}) {
		t.Errorf("lines of errors in the audit log: %v, want %s", found, want)
	}
}

var proxyRefused = regexp.MustCompile(`^(User: .* is not allowed to impersonate|` +
	`Unauthorized connection for super-user: )`)

// TestFaultsAreAudited: a request that the rules allow, and that then fails, leaves one audit
// line, whatever the reason.
func TestFaultsAreAudited(t *testing.T) {
	f := &faulty{Provider: memory.New(memory.Config{SequentialIDs: true})}
	tr := &trail{}
	addr := withKey(t, stack{Primary: f, Trail: tr})
	for kind, message := range map[claviger.Kind]string{
		claviger.Unavailable:       "this node cannot serve the request now",
		claviger.Closed:            "this node cannot serve the request now",
		claviger.SourceRefused:     "words for the caller",
		claviger.SourceUnreachable: "'k' is not held here, and a source, which may hold it, does not answer",
		claviger.Unsupported:       "words for the caller",
		claviger.Internal:          "internal error",
	} {
		f.fail(func() error { return claviger.Errorf("test", kind, "k", "words for the caller") })
		before := len(tr.all())
		a := send(t, addr, "POST", "/kms/v1/key/k", "{}")
		_, got := a.thrown(t)
		events := tr.all()[before:]
		if len(events) != 1 || events[0].Status != audit.Error || events[0].Caller.Name != "alice" ||
			events[0].Method != "POST" || events[0].Message != got || !strings.HasPrefix(got, message) {
			t.Errorf("%v: %d %q, audit events %+v", kind, a.status, got, events)
		}
	}
}
