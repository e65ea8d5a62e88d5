// Package pages is the web console of a KMS: pages for operators in a browser. It has no rights and no users of its
// own. The KMS authenticates each request, and each key that a page shows or changes is read or changed by a request to
// the KMS's REST API in the name of the user. So a page shows no more than `hadoop key` would show the same user, and
// leaves the same audit records. Pages work without JavaScript; live.js only reads a page again.
//
// Names of keys are hostile text. html/template escapes them, and the Content-Security-Policy allows no inline script
// and no inline style.
package pages

import (
	"bytes"
	"context"
	"embed"
	"html/template"
	"io/fs"
	"log/slog"
	"net/http"
	"strconv"
	"time"

	"claviger"
	"claviger/audit"
	"claviger/authn"
	"claviger/authz"
	"claviger/console"
)

// KMS is the REST API of the KMS, in the same process: kmsapi.API.
type KMS interface {
	// Authenticate authenticates a request to a page, and audits a refusal.
	Authenticate(r *http.Request) authn.Result
	// As serves a request to the REST API in the name of a user whom Authenticate has returned.
	As(caller claviger.Principal, w http.ResponseWriter, r *http.Request)
}

// Config holds the parts of the KMS that the pages show.
type Config struct {
	KMS KMS
	// LoopbackOnly refuses peers from other hosts, and requests to other names than localhost. It is set with simple
	// authentication, which believes every user name.
	LoopbackOnly bool
	// Details returns whether a user at the peer of a request may read what the KMS shows to administrators alone:
	// names of users, hosts and files.
	Details func(*http.Request, claviger.Principal) bool
	// Report runs the checks of readiness.
	Report func(ctx context.Context, details bool) console.Report
	// Traffic has the requests of the last 15 minutes.
	Traffic *console.Traffic
	// Facts returns facts about the server, the HSM and the certificates.
	Facts func(ctx context.Context, details bool) []Group
	// ProviderURI is the URI with which clients name this KMS, as in kms://https@HOST:9600/kms.
	ProviderURI string
	// Ready returns how many ready-made EDEKs of a key this node has.
	Ready func(key string) int
	// Origin returns where a key was made. details permits the URI of a source.
	Origin func(ctx context.Context, key *claviger.Metadata, details bool) string

	// Migration reads the journal of migrations; nil without an error if there is none.
	Migration func(ctx context.Context) (*Migration, error)

	// Policy returns the rules in force, and Rules the state of their file RulesFile.
	Policy    func() *authz.Policy
	Rules     func() authz.Status
	RulesFile string
	Groups    func(user string) []string
	// KeyAuthorization is hadoop.kms.key.authorization.enable.
	KeyAuthorization bool

	// Events has the last audit events, and Chain returns the state of the chain; ok is false if there is none.
	Events *audit.Recent
	Chain  func() (state audit.ChainState, ok bool)
	Log    *slog.Logger // nil discards
}

// Group is a table of facts with a title.
type Group struct {
	Title string
	Facts []Fact
}

// Fact is a row of a Group.
type Fact struct {
	Name, Value string
	// Bad means that an operator should do something about it.
	Bad bool
}

// pages is the handler of New.
type pages struct {
	Config
	protection http.CrossOriginProtection
	templates  map[string]*template.Template
	results    results
	rolls      rolls
	journal    *journal
}

//go:embed templates static
var files embed.FS

// routes are the pages and the changes that users may make.
var routes = map[string]func(*session){
	"GET /{$}":            (*session).overview,
	"GET /keys":           (*session).keys,
	"POST /keys/roll":     (*session).roll,
	"POST /keys/undelete": (*session).undelete,
	"GET /migration":      (*session).migration,
	"GET /access":         (*session).access,
	"GET /audit":          (*session).auditlog,
}

// menu are the pages in the menu.
var menu = []menuItem{{"/", "overview", "Overview"}, {"/keys", "keys", "Keys"},
	{"/migration", "migration", "Migration"}, {"/access", "access", "Access"}, {"/audit", "audit", "Audit"}}

type menuItem struct{ Href, Page, Text string }

// refreshEvery is how often live.js reads a page again.
const refreshEvery = 5 * time.Second

// New returns the handler of the console.
func New(cfg Config) http.Handler {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	p := &pages{Config: cfg, templates: parse(), journal: newJournal()}
	mux := http.NewServeMux()
	static, _ := fs.Sub(files, "static") // the folder is embedded
	serve := http.StripPrefix("/static/", http.FileServerFS(static))
	for _, name := range []string{"console.css", "live.js", "icon.svg"} {
		mux.Handle("GET /static/"+name, serve)
	}
	mux.HandleFunc("GET /favicon.ico", func(w http.ResponseWriter, r *http.Request) {
		http.ServeFileFS(w, r, static, "icon.svg")
	})
	for pattern, page := range routes {
		mux.HandleFunc(pattern, func(w http.ResponseWriter, r *http.Request) { p.authenticated(w, r, page) })
	}
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) { p.authenticated(w, r, (*session).notFound) })
	return p.guarded(p.protection.Handler(mux))
}

// parse parses the templates: each page with the layout.
func parse() map[string]*template.Template {
	all := map[string]*template.Template{}
	names, err := fs.Glob(files, "templates/page-*.html")
	if err != nil {
		panic(err) // the pattern is correct
	}
	for _, name := range names {
		all[name[len("templates/page-"):len(name)-len(".html")]] = template.Must(template.New("layout.html").
			Funcs(functions).ParseFS(files, "templates/layout.html", "templates/parts.html", name))
	}
	return all
}

// headers are the headers of every answer. The pages need no resource from elsewhere.
var headers = map[string]string{
	"Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; " +
		"connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
	"Cache-Control":                "no-store",
	"Referrer-Policy":              "no-referrer",
	"X-Content-Type-Options":       "nosniff",
	"Cross-Origin-Opener-Policy":   "same-origin",
	"Cross-Origin-Resource-Policy": "same-origin",
}

// guarded adds the headers, and refuses requests that pages of other sites cause, and requests from other hosts if
// LoopbackOnly is set.
func (p *pages) guarded(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		for name, value := range headers {
			w.Header().Set(name, value)
		}
		if p.LoopbackOnly && !fromLoopback(r) {
			http.Error(w, "The console admits only this host, because hadoop.kms.authentication.type is simple and "+
				"proves no user's name. Open it on the server's host as http://localhost:PORT/, or through ssh -L.",
				http.StatusForbidden)
			return
		}
		if fromOtherSite(r) {
			http.Error(w, "A page of another site caused this request, so the console refuses it. Type the URL of the "+
				"console into the browser.", http.StatusForbidden)
			return
		}
		next.ServeHTTP(w, r)
	})
}

// session is one request of an authenticated user.
type session struct {
	*pages
	w       http.ResponseWriter
	r       *http.Request
	user    claviger.Principal
	details bool
	now     time.Time
}

// view is what a template shows.
type view struct {
	Title, Page string
	User        string
	Details     bool
	Now         time.Time
	// Live is the number of seconds after which live.js reads the page again; 0: it does not.
	Live int
	Menu []menuItem // empty: the user is not signed in
	Body any
}

// live returns the refresh interval of pages that cost no audited request.
func live() int { return int(refreshEvery.Seconds()) }

// show answers with a page.
func (s *session) show(status int, page, title string, refresh int, body any) {
	user := s.user.Short
	if s.user.Real != nil {
		user += " (by " + s.user.Real.Short + ")"
	}
	s.render(s.w, status, page, view{Title: title, Page: page, User: user, Details: s.details, Now: s.now,
		Live: refresh, Menu: menu, Body: body})
}

// render writes a page. The page is made in memory first, so that after an error no part of it was sent.
func (p *pages) render(w http.ResponseWriter, status int, page string, v view) {
	var b bytes.Buffer
	if err := p.templates[page].Execute(&b, v); err != nil {
		p.Log.Error("a page of the console cannot be shown", "page", page, "err", err)
		http.Error(w, "This page cannot be shown. The server's log says why.", http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "text/html; charset=utf-8")
	w.Header().Set("Content-Length", strconv.Itoa(b.Len()))
	w.WriteHeader(status)
	_, _ = w.Write(b.Bytes()) // Write fails if the client has disconnected
}

// message is the body of the page "message".
type message struct {
	Lines []string
	Login bool   // show the form for a user's name
	Back  string // a link; "": none
}

func (s *session) notFound() {
	s.show(http.StatusNotFound, "message", "There is no such page", 0, message{Back: "/"})
}
