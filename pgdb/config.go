package pgdb

import (
	"fmt"
	"net/url"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"claviger"
	"claviger/secret"
)

// Limits of a connection and of the calls over it.
const (
	ConnectTimeout   = 5 * time.Second
	statementTimeout = 10 * time.Second
	// CallTimeout bounds a call whose context has no nearer deadline. Against a network that loses
	// packets the server's own limits do not help.
	CallTimeout = 15 * time.Second
	// maxConns is the pool's size, unless the URI's pool_max_conns says otherwise.
	maxConns = 8
	// With these settings the server ends a session whose client machine is gone, and so frees its locks.
	keepAliveIdle, keepAliveInterval, keepAliveCount = "10", "5", "3"
)

// parse reads a libpq URI, and returns the pool's configuration and the URI without secrets. It accepts what libpq
// accepts (several hosts, sslmode, sslrootcert, passfile, target_session_attrs, the PG* environment) but no password in
// the URI itself, because that would appear in listings and logs. what names the database in errors.
func parse(uri, what string) (*pgxpool.Config, string, error) {
	const op = "pgdb.Open"
	u, err := url.Parse(uri)
	if err != nil {
		// The parser's message repeats the URI, and a password that may be in it.
		return nil, "", claviger.Errorf(op, claviger.Invalid, "", "the URI of the %s cannot be parsed; it must be "+
			"postgresql://USER@HOST:PORT/DATABASE?sslmode=verify-full, with special characters percent-encoded", what)
	}
	if u.Scheme != "postgresql" && u.Scheme != "postgres" {
		return nil, "", claviger.Errorf(op, claviger.Invalid, "", "the URI of the %s has the scheme %q; it must be "+
			"postgresql", what, u.Scheme)
	}
	query := u.Query()
	if holdsPassword(u) {
		return nil, "", claviger.Errorf(op, claviger.Invalid, "", "the URI of the %s holds a password, which belongs "+
			"in a file: write HOST:PORT:DATABASE:USER:PASSWORD into a file of mode 0600 and name it by "+
			"?passfile=/path, or by PGPASSFILE", what)
	}
	if hasMisplacedParts(uri) {
		return nil, "", claviger.Errorf(op, claviger.Invalid, "", "the URI of the %s is not of the form "+
			"postgresql://USER@HOST:PORT/DATABASE: it has a second @, an @ or a second / behind the host, a # or a "+
			"parameter without a value. It is not shown, since such a part may be a password, which belongs in "+
			"a file named by ?passfile=/path; write those characters of a user's or a database's name as "+
			"%%40, %%2F and %%23", what)
	}
	cfg, err := pgxpool.ParseConfig(uri)
	if err != nil { // its message repeats the URI
		return nil, "", claviger.Errorf(op, claviger.Invalid, "", "the URI of the %s, %s, is refused: %s", what,
			shown(u), secret.WithoutSecrets(err.Error(), uri))
	}
	if cfg.ConnConfig.Database == "" || cfg.ConnConfig.User == "" {
		return nil, "", claviger.Errorf(op, claviger.Invalid, "", "the URI of the %s, %s, must name a user and a "+
			"database: postgresql://USER@HOST:PORT/DATABASE", what, shown(u))
	}
	if !query.Has("pool_max_conns") {
		cfg.MaxConns = maxConns
	}
	cfg.MaxConnIdleTime = 5 * time.Minute
	conn := cfg.ConnConfig
	if conn.ConnectTimeout == 0 {
		conn.ConnectTimeout = ConnectTimeout
	}
	defaults := map[string]string{
		"application_name": "claviger", "statement_timeout": ms(statementTimeout), "lock_timeout": ms(statementTimeout),
		"idle_in_transaction_session_timeout": ms(statementTimeout),
		"tcp_keepalives_idle":                 keepAliveIdle, "tcp_keepalives_interval": keepAliveInterval,
		"tcp_keepalives_count": keepAliveCount,
	}
	for name, value := range defaults {
		if _, set := conn.RuntimeParams[name]; !set {
			conn.RuntimeParams[name] = value
		}
	}
	// Correctness depends on these.
	conn.RuntimeParams["synchronous_commit"] = commitMode(conn.RuntimeParams["synchronous_commit"])
	conn.RuntimeParams["timezone"] = "UTC"
	conn.DefaultQueryExecMode = pgx.QueryExecModeCacheStatement
	return cfg, shown(u), nil
}

// holdsPassword reports whether a URI holds a password, also in a wrong place or under a name that
// libpq does not know: an error, ours or the server's, would repeat it.
func holdsPassword(u *url.URL) bool {
	_, inline := u.User.Password()
	if inline || strings.Contains(u.User.Username(), ":") || secret.ContainsSecret(u.Path) {
		return true
	}
	for name, values := range u.Query() {
		for _, value := range values {
			if secret.ContainsSecret(name + "=" + value) {
				return true
			}
		}
	}
	return false
}

// hasMisplacedParts reports whether a URI has more parts than
// postgresql://USER@HOST:PORT/DATABASE?NAME=VALUE. A person may have written a password behind '@',
// '/' or '#', and nothing distinguishes it from a host or a database, which would be shown or sent
// to the name service.
func hasMisplacedParts(uri string) bool {
	_, rest, _ := strings.Cut(uri, "://")
	rest, _, fragment := strings.Cut(rest, "#")
	rest, query, _ := strings.Cut(rest, "?")
	authority, path, _ := strings.Cut(rest, "/")
	if fragment || strings.Count(authority, "@") > 1 || strings.ContainsAny(path, "@/") {
		return true
	}
	for part := range strings.SplitSeq(query, "&") {
		if name, _, set := strings.Cut(part, "="); query != "" && !set || strings.Contains(name, "@") {
			return true
		}
	}
	return false
}

func ms(d time.Duration) string { return fmt.Sprint(d.Milliseconds()) }

// commitMode returns the value of synchronous_commit: "on" instead of a value with which an acknowledged commit may be
// lost.
func commitMode(configured string) string {
	switch configured {
	case "local", "remote_write", "remote_apply":
		return configured
	}
	return "on"
}

// shown returns a URI without the parts that may be secret.
func shown(u *url.URL) string {
	out := url.URL{Scheme: "postgresql", Host: u.Host, Path: u.Path}
	if name := u.User.Username(); name != "" {
		out.User = url.User(name)
	}
	if host := u.Query().Get("host"); out.Host == "" && host != "" {
		return out.String() + "?host=" + strings.ReplaceAll(url.QueryEscape(host), "%2F", "/")
	}
	return out.String()
}
