package pages

import (
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"time"

	"claviger/authn"
)

// cookieName is the console's own cookie. Its value is that of a hadoop.auth cookie, but the KMS does not know the
// name, and browsers do not send it with requests that another site causes (SameSite). Otherwise a browser that is
// signed in at the console would be signed in at the REST API of the same host, which has no protection against such
// requests.
const cookieName = "claviger.console"

// authenticated lets the KMS authenticate a request, and serves it by page.
func (p *pages) authenticated(w http.ResponseWriter, r *http.Request, page func(*session)) {
	res := p.KMS.Authenticate(withCookie(r))
	if res.SetCookie != "" {
		w.Header().Set("Set-Cookie", ownCookie(res.SetCookie))
	}
	if res.ServerToken != "" {
		w.Header().Set("WWW-Authenticate", res.ServerToken)
	}
	if res.Refusal != nil {
		p.refuse(w, res.Refusal)
		return
	}
	page(&session{pages: p, w: w, r: r, user: *res.Principal, details: p.Details(r, *res.Principal), now: time.Now()})
}

// withCookie returns the request with the console's cookie under the name that the KMS knows.
func withCookie(r *http.Request) *http.Request {
	for _, line := range r.Header["Cookie"] {
		for pair := range strings.SplitSeq(line, ";") {
			name, value, _ := strings.Cut(strings.TrimSpace(pair), "=")
			if name != cookieName {
				continue
			}
			r = r.Clone(r.Context())
			r.Header.Set("Cookie", authn.CookieName+"="+value)
			return r
		}
	}
	return r
}

// ownCookie makes the console's cookie of a Set-Cookie of the KMS. The cookie is for this host alone.
func ownCookie(text string) string {
	attributes := strings.Split(text, "; ")
	attributes[0] = cookieName + strings.TrimPrefix(attributes[0], authn.CookieName)
	attributes = slices.DeleteFunc(attributes, func(a string) bool {
		return strings.HasPrefix(a, "Path=") || strings.HasPrefix(a, "Domain=")
	})
	return strings.Join(append(attributes, "Path=/", "SameSite=Strict"), "; ")
}

// refuse answers a request that is not authenticated.
func (p *pages) refuse(w http.ResponseWriter, refusal *authn.Refusal) {
	var m message
	title, status := "You are not signed in", http.StatusForbidden
	switch {
	case refusal.Kind == authn.StoreUnavailable:
		status = http.StatusServiceUnavailable
		title, m.Lines = "Nobody can sign in now", []string{refusal.Reason}
	case refusal.Kind != authn.Unauthenticated:
		m.Lines = []string{"The KMS refused the login: " + refusal.Reason,
			"The server's log has the reason and the cure."}
	case slices.Contains(refusal.Challenges, authn.PseudoAuth):
		status = http.StatusUnauthorized
		m.Login = true
		m.Lines = []string{"This KMS uses simple authentication: it believes every name. Your name decides which " +
			"keys you see, and is in the audit log."}
	default:
		status = http.StatusUnauthorized
		m.Lines = []string{"This KMS uses Kerberos. Get a ticket with kinit, and allow your browser to use it for " +
			"this host: in Firefox by network.negotiate-auth.trusted-uris, in Chromium by the policy " +
			"AuthServerAllowlist. Then load this page again."}
	}
	for _, challenge := range refusal.Challenges {
		w.Header().Add("WWW-Authenticate", challenge)
	}
	p.render(w, status, "message", view{Title: title, Page: "message", Now: time.Now(), Body: m})
}

// fromLoopback reports whether a request comes from this host and names this host. A page of another site can make a
// browser send requests to a name of that site that leads to 127.0.0.1 (DNS rebinding); such a request has that name.
func fromLoopback(r *http.Request) bool {
	peer, err := netip.ParseAddrPort(r.RemoteAddr)
	if err != nil || !peer.Addr().Unmap().IsLoopback() {
		return false
	}
	host, _, err := net.SplitHostPort(r.Host)
	if err != nil {
		host = r.Host
	}
	address, err := netip.ParseAddr(strings.Trim(host, "[]"))
	return strings.EqualFold(host, "localhost") || err == nil && address.Unmap().IsLoopback()
}

// fromOtherSite reports whether a page of another site caused a request, as far as the browser says so. Links to pages
// are not refused, unless they name a user or have a credential: such a link would sign the browser in.
func fromOtherSite(r *http.Request) bool {
	switch r.Header.Get("Sec-Fetch-Site") {
	case "cross-site", "same-site": // same-site: another port or another host of the domain
	default:
		return false
	}
	link := r.Method == http.MethodGet && r.Header.Get("Sec-Fetch-Mode") == "navigate" &&
		r.Header.Get("Sec-Fetch-Dest") == "document"
	return !link || authn.NamesUser(r.URL.RawQuery)
}
