package authn_test

import (
	"os"
	"strings"
	"testing"

	"claviger/authn"
)

// FuzzAuthenticate: without user.name, only a cookie with our signature gives a principal. A cookie that we set is
// well formed, and gives the same principal again.
func FuzzAuthenticate(f *testing.F) {
	if seeds, err := os.ReadDir("testdata/fuzz/FuzzAuthenticate"); err != nil || len(seeds) == 0 {
		f.Fatalf("no seeds: %v", err)
	}
	ours := newAuthenticator(f, authn.Config{})
	other := newAuthenticator(f, authn.Config{Secrets: fixedSecret("no seed is signed with this secret")})
	f.Fuzz(func(t *testing.T, cookie, query string) {
		if res := other.Authenticate(t.Context(), request("", cookie)); res.Principal != nil || res.Refusal == nil {
			t.Fatalf("%q authenticates %+v", cookie, res.Principal)
		}
		res := ours.Authenticate(t.Context(), request(query, cookie))
		set := 0
		for _, is := range []bool{res.Principal != nil, res.Refusal != nil, res.Anonymous} {
			if is {
				set++
			}
		}
		if set != 1 {
			t.Fatalf("not exactly one outcome: %+v", res)
		}
		if strings.ContainsAny(res.SetCookie, "\r\n\x00") || strings.Count(res.SetCookie, `"`)%2 != 0 {
			t.Errorf("Set-Cookie %q", res.SetCookie)
		}
		if res.Principal == nil || res.SetCookie == "" {
			return
		}
		pair, ok := strings.CutSuffix(res.SetCookie, "; HttpOnly")
		again := ours.Authenticate(t.Context(), request("", pair))
		if !ok || again.Principal == nil || again.Principal.Name != res.Principal.Name ||
			again.Principal.Short != res.Principal.Short {
			t.Errorf("%q set for %+v makes %+v, refusal %+v", res.SetCookie, res.Principal,
				again.Principal, again.Refusal)
		}
	})
}
