package kmsapi

import (
	"encoding/json"
	"html"
	"net/http"
	"strings"
)

// errorPage is Jetty's page for an error that no exception stands for. Go's
// net/http cannot send the reason in the status line, so this is where it is.
func errorPage(r *http.Request, status int, reason string) (contentType string, body []byte) {
	path := r.URL.EscapedPath()
	if wantsJSON(r.Header.Values("Accept")) {
		body, _ = json.Marshal(struct { // strings always marshal
			Servlet string `json:"servlet"`
			Message string `json:"message"`
			URL     string `json:"url"`
			Status  string `json:"status"`
		}{"claviger", reason, path, statusText(status)})
		return "application/json", body
	}
	title := html.EscapeString(statusText(status) + " " + reason)
	var b strings.Builder
	b.WriteString("<html>\n<head>\n<meta http-equiv=\"Content-Type\" content=\"text/html;charset=utf-8\"/>\n<title>Error " + title + "</title>\n</head>\n")
	b.WriteString("<body><h2>HTTP ERROR " + title + "</h2>\n<table>\n")
	for _, row := range [][2]string{{"URI", path}, {"STATUS", statusText(status)}, {"MESSAGE", reason}} {
		b.WriteString("<tr><th>" + row[0] + ":</th><td>" + html.EscapeString(row[1]) + "</td></tr>\n")
	}
	b.WriteString("</table>\n</body>\n</html>\n")
	return "text/html;charset=utf-8", []byte(b.String())
}

// wantsJSON: the client names JSON before HTML.
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
