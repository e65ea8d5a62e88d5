package kmsapi_test

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

var (
	volatileCookie = regexp.MustCompile(`&e=\d+&s=[A-Za-z0-9+/=]{44}`)
	volatileDate   = regexp.MustCompile(`Expires=\w{3}, \d\d-\w{3}-\d{4} \d\d:\d\d:\d\d GMT`)
)

// servletName matches the name of the servlet in Jetty's error pages.
var servletName = regexp.MustCompile(`<tr><th>SERVLET:</th><td>.*</td></tr>\n|"servlet":"[^"]*",?\s*`)

// compared are the headers that a client may read. Of Expires only the presence is compared, and
// of Content-Length only whether it is 0, because Hadoop's JSON has other white space.
var compared = []string{
	"Content-Type", "WWW-Authenticate", "Set-Cookie", "Location", "Allow", "Vary", "Last-Modified", "Retry-After",
	"Server", "Connection",
	"Cache-Control", "Pragma", "X-Content-Type-Options", "X-XSS-Protection", "X-Frame-Options", "Content-Encoding",
}

// compare returns the differences: by "status", "reason", "body" or the name of a header, both
// values.
func compare(rec recording, got answer, everywhere map[string]bool) map[string]string {
	want := rec.answer
	if named := servletName.ReplaceAll(want.body, nil); len(named) != len(want.body) {
		want.body = named
		everywhere["D-servlet-name"] = true
	}
	differs := map[string]string{}
	add := func(what string, got, want any) { differs[what] = fmt.Sprintf("%v, want %v", got, want) }
	if got.status != want.status {
		add("status", got.status, want.status)
	}
	if got.reason != want.reason {
		add("reason", got.reason, want.reason)
	}
	mask := func(s string) string {
		return volatileDate.ReplaceAllString(volatileCookie.ReplaceAllString(s, "&e=E&s=S"), "Expires=D")
	}
	for _, name := range compared {
		if g, w := mask(got.header(name)), mask(want.header(name)); g != w {
			add(name, g, w)
		}
	}
	if g, w := len(got.headers["Expires"]), len(want.headers["Expires"]); g != w {
		add("Expires", g, w)
	}
	chunked := want.header("Transfer-Encoding") == "chunked"
	if g, w := got.header("Content-Length") == "0", want.header("Content-Length") == "0"; g != w {
		add("Content-Length", got.header("Content-Length"), want.header("Content-Length"))
	}
	if chunked && len(got.headers["Transfer-Encoding"]) == 0 {
		everywhere["D-content-length"] = true
	}
	if len(want.headers["Date"]) != 1 {
		everywhere["D-date"] = true
	}
	for name := range got.headers {
		if len(want.headers[name]) == 0 && !slices.Contains([]string{"Content-Length", "Date", "Expires"}, name) &&
			!slices.Contains(compared, name) {
			add(name, got.headers[name], nil)
		}
	}
	switch {
	case rec.method == http.MethodHead, rec.cut:
	case strings.HasPrefix(want.header("Content-Type"), "application/json"):
		var g, w any
		if err := errors.Join(decode(got.body, &g), decode(want.body, &w)); err != nil {
			differs["body"] = err.Error()
			break
		}
		if len(beansOf(w)) > 0 {
			missed := map[string]bool{}
			if why := sameBeans(g, w, missed); why != "" {
				differs["body"] = why
			} else if len(missed) > 0 {
				differs["beans"] = fmt.Sprint("without ", slices.Sorted(maps.Keys(missed)))
			}
			break
		}
		if why := same(rec.name, "", g, w); why != "" {
			differs["body"] = why
		}
		if !bytes.Equal(bytes.TrimSpace(got.body), bytes.TrimSpace(want.body)) {
			everywhere["D-json-whitespace"] = true
		}
	case !bytes.Equal(bytes.TrimSpace(got.body), bytes.TrimSpace(want.body)):
		differs["body"] = "not as recorded"
	}
	return differs
}

func decode(body []byte, into *any) error {
	d := json.NewDecoder(bytes.NewReader(body))
	d.UseNumber()
	if err := d.Decode(into); err != nil {
		return fmt.Errorf("%w in %.200q", err, body)
	}
	return nil
}

// fresh reports whether a value is made for this answer, so that only its shape can be compared.
func fresh(name, path string) bool {
	switch {
	case strings.HasPrefix(name, "generate"), strings.HasSuffix(name, "-generate"), name == "acl-generate-ok":
		return strings.HasSuffix(path, ".material") || strings.HasSuffix(path, ".iv")
	case strings.HasPrefix(name, "reencrypt"), name == "acl-decrypt-ok", name == "acl-doas-decrypt":
		return strings.HasSuffix(path, ".material") // no recording shows these keys' material; sameDEKs checks it
	}
	return strings.HasSuffix(path, ".created") || path == ".Token.urlString" || path == ".long"
}

// same compares JSON values. It returns a difference, or "".
func same(name, path string, got, want any) string {
	switch w := want.(type) {
	case map[string]any:
		g, ok := got.(map[string]any)
		if !ok {
			return fmt.Sprintf("%s is %v, want an object", path, got)
		}
		if a, b := slices.Sorted(maps.Keys(g)), slices.Sorted(maps.Keys(w)); !slices.Equal(a, b) {
			return fmt.Sprintf("%s has fields %q, want %q", path, a, b)
		}
		for k := range w {
			if why := same(name, path+"."+k, g[k], w[k]); why != "" {
				return why
			}
		}
		return ""
	case []any:
		g, ok := got.([]any)
		if !ok || len(g) != len(w) {
			return fmt.Sprintf("%s is %v, want %v", path, got, want)
		}
		if path == "" && len(w) > 0 {
			if _, names := w[0].(string); names { // a list of names has no order
				g, w = sorted(g), sorted(w)
			}
		}
		for i := range w {
			if why := same(name, path+"[]", g[i], w[i]); why != "" {
				return why
			}
		}
		return ""
	}
	if g, ok := got.(string); ok {
		got = volatileIdentifier.ReplaceAllString(g, "...")
	}
	if w, ok := want.(string); ok {
		want = volatileIdentifier.ReplaceAllString(w, "...")
	}
	if got == want {
		return ""
	}
	if fresh(name, path) {
		switch w := want.(type) {
		case string:
			g, _ := got.(string)
			if _, err := base64.RawURLEncoding.DecodeString(g); err == nil && len(g) == len(w) {
				return ""
			}
		case json.Number:
			// A client expects a Java long, and would read a smaller number as an int.
			if n, err := strconv.ParseInt(fmt.Sprint(got), 10, 64); err == nil && n > 1<<31 && len(w) == 13 {
				return ""
			}
		}
	}
	return fmt.Sprintf("%s is %q, want %q", path, got, want)
}

func sorted(list []any) []any {
	return slices.SortedFunc(slices.Values(list), func(a, b any) int {
		return strings.Compare(fmt.Sprint(a), fmt.Sprint(b))
	})
}
