package kms

import (
	"fmt"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"claviger/kms/kmstest"
	"slices"
	"sync"
)

// post sends a form to the console, as a page of the console does. site is the value of Sec-Fetch-Site.
func (s *consoleSite) post(client *http.Client, path, site string, form url.Values) consolePage {
	s.t.Helper()
	req, err := http.NewRequestWithContext(s.t.Context(), http.MethodPost, s.console+path,
		strings.NewReader(form.Encode()))
	if err != nil {
		s.t.Fatal(err)
	}
	req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	req.Header.Set("Sec-Fetch-Site", site)
	return s.send(client, req)
}

// makeKey makes a key by the REST API.
func (s *consoleSite) makeKey(user, body string) {
	s.t.Helper()
	s.rest(http.MethodPost, "/v1/keys", user, body, http.StatusCreated)
}

// rest sends a request to the REST API.
func (s *consoleSite) rest(method, path, user, body string, want int) {
	s.t.Helper()
	sep := "?"
	if strings.Contains(path, "?") {
		sep = "&"
	}
	target := s.kms + path + sep + "user.name=" + user
	req, err := http.NewRequestWithContext(s.t.Context(), method, target, strings.NewReader(body))
	if err != nil {
		s.t.Fatal(err)
	}
	req.Header.Set("Content-Type", "application/json")
	s.send(browser(s.t), req).wants(s.t, want)
}

// audited returns the lines of the audit log that match an expression.
func (s *consoleSite) audited(expression string) []string {
	s.t.Helper()
	re := regexp.MustCompile("(?m)^.*" + expression + ".*$")
	for began := time.Now(); ; time.Sleep(50 * time.Millisecond) {
		text, err := os.ReadFile(filepath.Join(s.dir, "audit.log"))
		if err != nil {
			s.t.Fatal(err)
		}
		if lines := re.FindAllString(string(text), -1); len(lines) > 0 || time.Since(began) > 5*time.Second {
			return lines
		}
	}
}

// keyRules lets carol do everything with keys, bob read the key "bobs", and nobody else anything.
func keyRules() []string {
	return []string{"hadoop.kms.acl.GET_KEYS", "alice,bob,carol", "key.acl.bobs.READ", "bob", "key.acl.bobs.ALL",
		"carol", "default.key.acl.READ", "alice,carol", "default.key.acl.MANAGEMENT", "carol",
		"default.key.acl.GENERATE_EEK", "carol", "keytrustee.kms.acl.UNDELETE", "carol"}
}

const hostile = `<script>alert(1)</script>"'&amp;`

// TestConsoleKeys: the page Keys lists what the REST API lists, with the metadata that the user may read and no more.
// It is filtered and sorted by its URL, and hostile names stay text.
func TestConsoleKeys(t *testing.T) {
	s := startConsole(t, map[string]string{"hadoop.kms.key.authorization.enable": "true",
		"claviger.delete.soft": "true"}, keyRules()...)
	long := strings.Repeat("n", 200)
	for _, body := range []string{`{"name":"alpha","description":"first"}`,
		`{"name":"bobs","description":"secret plan"}`,
		`{"name":"<script>alert(1)</script>\"'&amp;"}`, `{"name":"` + long + `"}`, `{"name":"line\nend\u202e"}`} {
		s.makeKey("carol", body)
	}
	s.rest(http.MethodPost, "/v1/key/alpha", "carol", "{}", http.StatusOK)
	alice, bob, carol := s.as("alice"), s.as("bob"), s.as("carol")
	const escaped = "&lt;script&gt;alert(1)&lt;/script&gt;"
	p := s.get(carol, "/keys")
	p.wants(t, http.StatusOK, "1 to 5 of 5", "first", "secret plan", escaped, long, `&#34;line\nend\u202e&#34;`,
		`aria-sort="ascending"`, "!<script>alert", "<caption>Keys")
	s.get(alice, "/keys").wants(t, http.StatusOK, "first", "bobs", "!secret plan",
		"is not authorized to perform [READ]")
	s.get(bob, "/keys").wants(t, http.StatusOK, "alpha", "!first", "secret plan")
	s.get(s.as("mallory"), "/keys").wants(t, http.StatusOK, "The keys are not shown", "not allowed to do", "!alpha")
	s.get(carol, "/keys?filter=ALPH&sort=-created").wants(t, http.StatusOK, "1 to 1 of 1", `aria-sort="descending"`,
		"!bobs")
	list := s.get(carol, "/keys?sort=-versions").text
	if a, b := strings.Index(list, ">alpha<"), strings.Index(list, ">bobs<"); a < 0 || b < a {
		t.Errorf("alpha has more versions than bobs: %s", list)
	}
	for _, name := range []string{hostile, long, "line\nend\u202e"} {
		s.get(carol, "/keys?key="+url.QueryEscape(name)).wants(t, http.StatusOK, "Current version", "Roll the key",
			"!<script>alert")
	}
	s.get(carol, "/keys?key=alpha").wants(t, http.StatusOK, "alpha@1", "alpha@0", "CKA_ID", "made here",
		"hadoop key roll alpha -provider kms://http@127.0.0.1:")
	s.get(alice, "/keys?key=alpha").wants(t, http.StatusOK, "alpha@1", "!Roll the key")
	s.get(alice, "/keys?key=bobs").wants(t, http.StatusForbidden, "is not authorized", "!secret plan")
	s.get(alice, "/keys?key=none").wants(t, http.StatusNotFound, "There is no key of this name")
	if lines := s.audited(`UNAUTHORIZED\[op=READ, key=bobs, user=alice\]`); len(lines) == 0 {
		t.Error("a refused reading left no audit line")
	}
}

// TestConsoleRoll: a roll passes the rules and the audit of the REST API, demands the name of the key, and is done once
// even if the form is sent twice.
func TestConsoleRoll(t *testing.T) {
	s := startConsole(t, map[string]string{"hadoop.kms.key.authorization.enable": "true"}, keyRules()...)
	s.makeKey("carol", `{"name":"<script>alert(1)</script>\"'&amp;"}`)
	alice, carol := s.as("alice"), s.as("carol")
	key := url.QueryEscape(hostile)
	roll := "/keys/roll?key=" + key + "&expect=" + key + "%400"
	name := url.Values{"typed": {hostile}}
	s.post(carol, roll, "cross-site", name).wants(t, http.StatusForbidden)
	s.post(carol, roll, "same-site", name).wants(t, http.StatusForbidden)
	s.post(carol, roll, "same-origin", url.Values{"typed": {"other"}}).wants(t, http.StatusUnprocessableEntity,
		"Not done", "is not the name of this key")
	s.post(alice, roll, "same-origin", name).wants(t, http.StatusForbidden, "Not done", "not authorized")
	s.get(carol, roll).wants(t, http.StatusNotFound)
	if lines := s.audited(`OK\[op=ROLL_NEW_VERSION`); len(lines) != 0 {
		t.Fatalf("rolled: %q", lines)
	}
	p := s.post(carol, roll, "same-origin", name)
	p.wants(t, http.StatusSeeOther)
	s.get(carol, p.header.Get("Location")).wants(t, http.StatusOK, "Done.", "its current version is", "@1")
	s.get(carol, p.header.Get("Location")).wants(t, http.StatusOK, "!Done.")
	s.post(carol, roll, "same-origin", name).wants(t, http.StatusConflict, "another current version")
	if lines := s.audited(`OK\[op=ROLL_NEW_VERSION.*user=carol`); len(lines) != 1 {
		t.Errorf("audited %q", lines)
	}
	if lines := s.audited(`UNAUTHORIZED\[op=MANAGEMENT.*user=alice`); len(lines) == 0 {
		t.Error("a refused roll left no audit line")
	}
}

// TestConsoleRollTogether: copies of one form that arrive together, as by a double click, roll the key once.
func TestConsoleRollTogether(t *testing.T) {
	s := startConsole(t, map[string]string{"hadoop.kms.key.authorization.enable": "true"}, keyRules()...)
	s.makeKey("carol", `{"name":"alpha"}`)
	carol := s.as("carol")
	var done sync.WaitGroup
	var statuses [8]int
	for i := range statuses {
		done.Go(func() {
			statuses[i] = s.post(carol, "/keys/roll?key=alpha&expect=alpha%400", "same-origin",
				url.Values{"typed": {"alpha"}}).status
		})
	}
	done.Wait()
	slices.Sort(statuses[:])
	if statuses[0] != http.StatusSeeOther || statuses[1] != http.StatusConflict {
		t.Errorf("answers %d", statuses)
	}
	if lines := s.audited(`OK\[op=ROLL_NEW_VERSION.*user=carol`); len(lines) != 1 {
		t.Errorf("audited %q", lines)
	}
}

// TestConsoleLongTables: a page has 50 rows of the deleted keys, and 50 of the versions of a key, with links to the
// others.
func TestConsoleLongTables(t *testing.T) {
	s := startConsole(t, map[string]string{"hadoop.kms.key.authorization.enable": "true",
		"claviger.delete.soft": "true"}, keyRules()...)
	s.makeKey("carol", `{"name":"alpha"}`)
	for i := range 51 {
		s.rest(http.MethodPost, "/v1/key/alpha", "carol", "{}", http.StatusOK)
		s.makeKey("carol", fmt.Sprintf(`{"name":"gone%d"}`, i))
		s.rest(http.MethodDelete, fmt.Sprintf("/v1/key/gone%d", i), "carol", "", http.StatusOK)
	}
	carol := s.as("carol")
	s.get(carol, "/keys").wants(t, http.StatusOK, "you may manage 1 to 50 of 51", ">gone50<", "!>gone0<",
		`<nav aria-label="Deleted keys">`, "/keys?deleted=51")
	s.get(carol, "/keys?deleted=51").wants(t, http.StatusOK, "you may manage 51 to 51 of 51", ">gone0<", "!>gone1<")
	s.get(carol, "/keys?key=alpha").wants(t, http.StatusOK, "Versions 1 to 50 of 52", ">alpha@51<", "!>alpha@1<",
		`<nav aria-label="Versions">`, "expect=alpha%4051", "/keys?key=alpha&amp;versions=51")
	s.get(carol, "/keys?key=alpha&versions=51").wants(t, http.StatusOK, "Versions 51 to 52 of 52", ">alpha@1<",
		"!>alpha@2<", "expect=alpha%4051")
}

// TestConsoleUndelete: a deleted key is on the shelf of those who may bring it back, and they can.
func TestConsoleUndelete(t *testing.T) {
	s := startConsole(t, map[string]string{"hadoop.kms.key.authorization.enable": "true",
		"claviger.delete.soft": "true"}, keyRules()...)
	s.makeKey("carol", `{"name":"alpha"}`)
	s.rest(http.MethodDelete, "/v1/key/alpha", "carol", "", http.StatusOK)
	alice, carol := s.as("alice"), s.as("carol")
	s.get(alice, "/keys").wants(t, http.StatusOK, "Not shown: ", "!alpha")
	s.get(carol, "/keys").wants(t, http.StatusOK, "Deleted keys that can come back", "alpha")
	s.get(carol, "/keys?key=alpha").wants(t, http.StatusOK, "A deleted key of this name", "Undelete the key",
		"claviger key undelete alpha --key-version alpha@0 --provider kms://http@127.0.0.1:")
	undelete := "/keys/undelete?key=alpha&version=alpha%400"
	name := url.Values{"typed": {"alpha"}}
	s.post(alice, undelete, "same-origin", name).wants(t, http.StatusForbidden, "Not done")
	p := s.post(carol, undelete, "same-origin", name)
	p.wants(t, http.StatusSeeOther)
	s.get(carol, p.header.Get("Location")).wants(t, http.StatusOK, "The key is back", "Current version")
	if lines := s.audited(`OK\[op=UNDELETE_KEY, key=alpha, user=carol\]`); len(lines) != 1 {
		t.Errorf("audited %q", lines)
	}
	kmstest.Get(t, strings.TrimSuffix(s.kms, "/kms"), "/kms/v1/key/alpha/_metadata", "carol")
}
