package kmsapi

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"unicode/utf8"
)

// page answers with Jetty's error page, as its sendError does: HTML, or JSON if
// the client prefers JSON, or an empty body for methods other than GET, HEAD and
// POST. Jetty also sends the reason in the status line; Go's net/http cannot.
func (c *call) page(status int, reason string) {
	switch c.r.Method {
	case http.MethodGet, http.MethodHead, http.MethodPost:
	default:
		c.send(status, nil)
		return
	}
	h := c.w.Header()
	h.Set("Cache-Control", "must-revalidate,no-cache,no-store")
	contentType, body := errorPage(c.r, status, reason)
	h.Set("Content-Type", contentType)
	c.send(status, body)
}

// badMessage is Jetty's answer to a request whose path it cannot decode. For most
// such requests net/http writes its own answer, and does not call this handler.
func (c *call) badMessage() {
	const body = "<h1>Bad Message 400</h1><pre>reason: Bad Request</pre>"
	c.status = http.StatusBadRequest
	h := c.w.Header()
	h.Set("Connection", "close")
	h.Set("Content-Type", "text/html;charset=iso-8859-1")
	h.Set("Content-Length", strconv.Itoa(len(body)))
	c.w.WriteHeader(c.status)
	_, _ = io.WriteString(c.w, body) // the client is gone if this fails
}

// errorPage returns the content of a page. reason may contain text of the client.
func errorPage(r *http.Request, status int, reason string) (contentType string, body []byte) {
	path := rawPath(r)
	if wantsJSON(r.Header.Values("Accept")) {
		var b bytes.Buffer
		e := json.NewEncoder(&b)
		e.SetEscapeHTML(false)
		_ = e.Encode(struct { // strings always encode
			Message string `json:"message"`
			URL     string `json:"url"`
			Status  string `json:"status"`
		}{reason, path, strconv.Itoa(status)})
		return "application/json", b.Bytes()
	}
	title := fmt.Sprintf("%d %s", status, escape(reason))
	var b strings.Builder
	b.WriteString("<html>\n<head>\n<meta http-equiv=\"Content-Type\" content=\"text/html;charset=ISO-8859-1\"/>\n" +
		"<title>Error " + title + "</title>\n</head>\n")
	b.WriteString("<body><h2>HTTP ERROR " + title + "</h2>\n<table>\n")
	for _, row := range [][2]string{{"URI", path}, {"STATUS", strconv.Itoa(status)}, {"MESSAGE", reason}} {
		b.WriteString("<tr><th>" + row[0] + ":</th><td>" + escape(row[1]) + "</td></tr>\n")
	}
	b.WriteString("</table>\n\n</body>\n</html>\n")
	return "text/html;charset=iso-8859-1", []byte(b.String())
}

// escape returns text as HTML in ASCII, because Jetty's pages are ISO-8859-1.
func escape(s string) string {
	var b strings.Builder
	for _, r := range s {
		switch {
		case r == '&':
			b.WriteString("&amp;")
		case r == '<':
			b.WriteString("&lt;")
		case r == '>':
			b.WriteString("&gt;")
		case r == '"':
			b.WriteString("&quot;")
		case r == '\'':
			b.WriteString("&apos;")
		case r >= utf8.RuneSelf || r < ' ':
			fmt.Fprintf(&b, "&#%d;", r)
		default:
			b.WriteRune(r)
		}
	}
	return b.String()
}

// wantsJSON reports whether the Accept headers name JSON before HTML.
func wantsJSON(accept []string) bool {
	for _, part := range strings.Split(strings.Join(accept, ","), ",") {
		media, _, _ := strings.Cut(part, ";")
		switch strings.ToLower(strings.TrimSpace(media)) {
		case "application/json":
			return true
		case "text/html", "*/*":
			return false
		}
	}
	return false
}
