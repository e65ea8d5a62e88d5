package kmsapi_test

import (
	"encoding/json"
	"encoding/xml"
	"errors"
	"log/slog"
	"net/http"
	"os"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"claviger"
	"claviger/authn"
	"claviger/kmsapi"
)

// getPage gets the page of a servlet.
func getPage(t *testing.T, addr, target string, headers ...string) answer {
	t.Helper()
	return send(t, addr, "GET", target, "", headers...)
}

// TestConf: /conf shows the properties, as XML or JSON, by Hadoop's rules.
func TestConf(t *testing.T) {
	list := []kmsapi.Property{
		{Name: "a", Written: "${b}<", Value: "2<", Source: "file:/etc/kms-site.xml"},
		{Name: "b", Written: "2", Value: "2", Final: true, Source: "kms-default.xml"},
	}
	var fail error
	addr := withKey(t, stack{Operations: kmsapi.Operations{Properties: func() ([]kmsapi.Property, error) {
		return append([]kmsapi.Property(nil), list...), fail
	}}})
	type property struct {
		Name  string `xml:"name"`
		Value string `xml:"value"`
		Final bool   `xml:"final"`
	}
	var file struct {
		Properties []property `xml:"property"`
	}
	a := getPage(t, addr, "/conf")
	if err := xml.Unmarshal(a.body, &file); err != nil || len(file.Properties) != 2 ||
		file.Properties[0] != (property{"a", "${b}<", false}) || !file.Properties[1].Final {
		t.Errorf("XML: %+v %v in %s", file, err, a.body)
	}
	a = getPage(t, addr, "/conf", "Accept: application/json")
	if got := strings.TrimSpace(string(a.body)); a.header("Content-Type") != "application/json;charset=utf-8" ||
		got != `{"properties":[{"key":"a","value":"2<","isFinal":false,"resource":"file:/etc/kms-site.xml"},`+
			`{"key":"b","value":"2","isFinal":true,"resource":"kms-default.xml"}]}` {
		t.Errorf("JSON: %v %s", a.headers, got)
	}
	a = getPage(t, addr, "/conf?name=b", "Accept: application/json")
	if got := strings.TrimSpace(string(a.body)); got != `{"property":{"key":"b","value":"2","isFinal":true,`+
		`"resource":"kms-default.xml"}}` {
		t.Errorf("one: %s", got)
	}
	fail = errors.New("no rule of secrecy")
	if a := getPage(t, addr, "/conf"); a.status != 500 || strings.Contains(string(a.body), "${b}") ||
		strings.Contains(string(a.body), "secrecy") {
		t.Errorf("a failure: %d %s", a.status, a.body)
	}
}

// TestStacks: /stacks shows all goroutines in the form of Hadoop's page, and no argument of a function.
func TestStacks(t *testing.T) {
	addr := withKey(t, stack{})
	a := getPage(t, addr, "/stacks")
	text := string(a.body)
	if a.status != 200 || a.header("Content-Type") != "text/plain;charset=utf-8" ||
		!strings.HasPrefix(text, "Process Thread Dump: \n") {
		t.Fatalf("%d %v %.200s", a.status, a.headers, text)
	}
	for _, want := range []string{`(?m)^\d+ active threads$`,
		`(?m)^Thread \d+ \(.+\):\n  State: running\n  Stack:\n    \S`,
		`claviger/kmsapi\.\(\*call\)\.stacks \(.*servlets\.go:\d+\)`, `IO wait`} {
		if !regexp.MustCompile(want).MatchString(text) {
			t.Errorf("no %s in:\n%s", want, text)
		}
	}
	if m := regexp.MustCompile(`0x[0-9a-f]+`).FindString(text); m != "" {
		t.Errorf("an argument or address is shown: %s", m)
	}
}

// TestStacksAreShared: a dump stops the whole process, so requests at about the same time get the
// same dump, whatever the number of goroutines.
func TestStacksAreShared(t *testing.T) {
	addr := withKey(t, stack{})
	end := make(chan struct{})
	defer close(end)
	for range 3000 {
		go func() { <-end }()
	}
	var wg sync.WaitGroup
	var mu sync.Mutex
	dumps := map[string]int{}
	began := time.Now()
	for range 8 {
		wg.Go(func() {
			for range 10 {
				a := getPage(t, addr, "/stacks")
				if a.status != 200 {
					t.Errorf("status %d", a.status)
				}
				mu.Lock()
				dumps[string(a.body)]++
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	// Each dump is shown for at least a second.
	if most := 1 + int(time.Since(began)/time.Second); len(dumps) > most {
		t.Errorf("%d dumps were made in %s, want %d at most", len(dumps), time.Since(began), most)
	}
	for d := range dumps {
		if n := strings.Count(d, "\nThread "); n < 3000 {
			t.Errorf("a dump has %d goroutines", n)
		}
	}
}

// TestLogLevel: the page is the recorded one, except for the class of the log.
func TestLogLevel(t *testing.T) {
	level := new(slog.LevelVar)
	addr := withKey(t, stack{Operations: kmsapi.Operations{Level: level}})
	recorded, err := os.ReadFile("testdata/wire/loglevel.http")
	if err != nil {
		t.Fatal(err)
	}
	_, page, _ := strings.Cut(string(recorded), "Content-Length: 709\n\n")
	page = strings.Replace(page, "org.slf4j.impl.Reload4jLoggerAdapter", "log/slog.Logger", 1)
	year := regexp.MustCompile(`, \d{4}\.`)
	plain := func(page string) string { return strings.TrimSpace(year.ReplaceAllString(page, ", .")) }
	if got := getPage(t, addr, "/logLevel?log=x"); plain(string(got.body)) != plain(page) {
		t.Errorf("got\n%s\nwant\n%s", got.body, page)
	}
	for _, c := range []struct {
		level, says string
		then        slog.Level
	}{
		{"debug", "Setting Level to DEBUG ...", slog.LevelDebug},
		{"FATAL", "Setting Level to ERROR ...", slog.LevelError},
		{"loud<b>", "Bad Level : <b>loud&lt;b&gt;</b>", slog.LevelError},
		{"WARN", "Effective Level: <b>WARN</b>", slog.LevelWarn},
		{"OFF", "Bad Level : <b>OFF</b>", slog.LevelWarn},
	} {
		a := getPage(t, addr, "/logLevel?log=org.apache.hadoop&level="+c.level)
		if !strings.Contains(string(a.body), "<!-- OUTPUT -->"+c.says) || level.Level() != c.then {
			t.Errorf("%s: %s, level %v", c.level, a.body, level.Level())
		}
	}
	if a := getPage(t, withKey(t, stack{}), "/logLevel"); a.status != 404 {
		t.Errorf("without a level to set: %d", a.status)
	}
}

// TestAdministrators checks which pages a user may see, by Hadoop's three settings.
func TestAdministrators(t *testing.T) {
	alice := func(p claviger.Principal) bool { return p.Short == "alice" }
	nobody := func(claviger.Principal) bool { return false }
	for name, c := range map[string]struct {
		who     func(claviger.Principal) bool
		all     bool
		open    string // paths that answer 200 to alice
		refused string // paths that answer 403 to alice
	}{
		"authorization off":          {nil, false, "/jmx /kms/jmx /conf /stacks /logLevel /prom", ""},
		"instrumentation alone":      {nil, true, "/jmx /kms/jmx /conf /stacks /logLevel /prom", ""},
		"authorization":              {nobody, false, "/jmx /kms/jmx /conf /stacks /prom", "/logLevel"},
		"both, and not on the list":  {nobody, true, "/kms/jmx /prom", "/jmx /conf /stacks /logLevel"},
		"both, and on the list":      {alice, true, "/jmx /kms/jmx /conf /stacks /logLevel /prom", ""},
		"authorization, on the list": {alice, false, "/jmx /kms/jmx /conf /stacks /logLevel /prom", ""},
	} {
		t.Run(name, func(t *testing.T) {
			addr := withKey(t, stack{Operations: kmsapi.Operations{
				Level: new(slog.LevelVar), Administrator: c.who, InstrumentationAdmin: c.all,
				Prometheus: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
					w.Header().Set("Content-Length", "0")
				}),
			}})
			for want, paths := range map[int]string{200: c.open, 403: c.refused} {
				for _, path := range strings.Fields(paths) {
					if a := getPage(t, addr, path); a.status != want {
						t.Errorf("%s: %d, want %d: %s", path, a.status, want, a.body)
					}
					if a := sendAs(t, addr, "GET", path, ""); a.status != 401 {
						t.Errorf("%s without credentials: %d", path, a.status)
					}
				}
			}
		})
	}
	// An anonymous caller is never an administrator.
	addr := withKey(t, stack{Auth: authn.Config{Handler: authn.Simple{Anonymous: true}},
		Operations: kmsapi.Operations{Level: new(slog.LevelVar),
			Administrator: func(claviger.Principal) bool { return true }}})
	if a := sendAs(t, addr, "GET", "/logLevel", ""); a.status != 403 {
		t.Errorf("anonymous: %d", a.status)
	}
}

// TestTokenBean: operations on delegation tokens are counted.
func TestTokenBean(t *testing.T) {
	tokens := delegations(t, nil)
	addr := withKey(t, stack{Auth: authn.Config{Delegations: tokens}})
	a := send(t, addr, "GET", "/kms/v1/?op=GETDELEGATIONTOKEN&renewer=alice", "")
	var issued struct{ Token struct{ URLString string } }
	if err := json.Unmarshal(a.body, &issued); err != nil {
		t.Fatal(err)
	}
	for _, op := range []string{"RENEWDELEGATIONTOKEN", "CANCELDELEGATIONTOKEN", "CANCELDELEGATIONTOKEN"} {
		send(t, addr, "PUT", "/kms/v1/?op="+op+"&token="+issued.Token.URLString, "")
	}
	a = getPage(t, addr, "/kms/jmx?qry=Hadoop:name=DelegationTokenSecretManagerMetrics,*")
	var got struct{ Beans []map[string]any }
	if err := json.Unmarshal(a.body, &got); err != nil || len(got.Beans) != 1 {
		t.Fatalf("%v in %s", err, a.body)
	}
	for name, want := range map[string]float64{"StoreTokenNumOps": 1, "UpdateTokenNumOps": 1, "RemoveTokenNumOps": 1,
		"TokenFailure": 1} {
		if got.Beans[0][name] != want {
			t.Errorf("%s is %v, want %v", name, got.Beans[0][name], want)
		}
	}
}
