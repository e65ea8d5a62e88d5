package pages

import (
	"net/http/httptest"
	"testing"
)

// TestCookies: the console's cookie goes to the KMS under the KMS's name, and back under the console's. Other cookies
// of the host stay as they are.
func TestCookies(t *testing.T) {
	for sent, want := range map[string]string{
		"":                                     "",
		`hadoop.auth="a"`:                      `hadoop.auth="a"`,
		`x=1; claviger.console="u=a&e=1&s=b="`: `hadoop.auth="u=a&e=1&s=b="`,
		`hadoop.auth="a"; claviger.console="b"; y=2`: `hadoop.auth="b"`,
	} {
		r := httptest.NewRequest("GET", "/", nil)
		if sent != "" {
			r.Header.Set("Cookie", sent)
		}
		if got := withCookie(r).Header.Get("Cookie"); got != want {
			t.Errorf("%s: %s, want %s", sent, got, want)
		}
		if r.Header.Get("Cookie") != sent {
			t.Errorf("%s: the request was changed", sent)
		}
	}
	got := ownCookie(`hadoop.auth="v"; Path=/kms; Domain=example.com; Expires=Thu, 01-Jan-1970 00:00:00 GMT; ` +
		"Secure; HttpOnly")
	want := `claviger.console="v"; Expires=Thu, 01-Jan-1970 00:00:00 GMT; Secure; HttpOnly; Path=/; SameSite=Strict`
	if got != want {
		t.Errorf("%s\nwant %s", got, want)
	}
}

// TestFromLoopback: the peer is this host, and so is the name in the request.
func TestFromLoopback(t *testing.T) {
	for _, c := range []struct {
		peer, host string
		want       bool
	}{
		{"127.0.0.1:5", "localhost:9601", true}, {"127.0.0.1:5", "127.0.0.1", true}, {"[::1]:5", "[::1]:9601", true},
		{"[::ffff:127.0.0.1]:5", "LOCALHOST", true}, {"10.0.0.7:5", "localhost:9601", false},
		{"127.0.0.1:5", "evil.example:9601", false}, {"127.0.0.1:5", "localhost.evil.example", false},
		{"127.0.0.1:5", "10.0.0.7:9601", false}, {"", "localhost", false}, {"127.0.0.1:5", "", false},
	} {
		r := httptest.NewRequest("GET", "/", nil)
		if r.RemoteAddr, r.Host = c.peer, c.host; fromLoopback(r) != c.want {
			t.Errorf("%s to %q: %t", c.peer, c.host, !c.want)
		}
	}
}
