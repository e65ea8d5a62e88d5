package authn

import (
	"errors"
	"io"
	"net"
	"regexp/syntax"
	"strings"
	"testing"
	"time"
)

// TestNamesInCookies: a cookie with an empty user or an empty principal is refused.
func TestNamesInCookies(t *testing.T) {
	for text, want := range map[string]string{
		"u=alice&p=alice@R&t=simple&e=1": "",
		"u=&p=alice@R&t=simple&e=1":      "userName is NULL, empty or contains a '&'",
		"u=alice&p=&t=simple&e=1":        "userName is NULL, empty or contains a '&'",
	} {
		_, err := parseToken(text)
		if (err == nil) != (want == "") || err != nil && err.Error() != want {
			t.Errorf("%s: %v, want %q", text, err, want)
		}
	}
}

// TestHexadecimalCharacters: a number that is not a character of Unicode is refused in a rule.
func TestHexadecimalCharacters(t *testing.T) {
	for text, want := range map[string]rune{`\x41`: 'A', `\x{10ffff}`: 0x10ffff} {
		f := &folder{rest: text + "rest", flags: []bool{false}}
		if r, _, err := f.hex(); err != nil || r != want || f.rest != "rest" {
			t.Errorf("%s: %U, %v, then %q", text, r, err, f.rest)
		}
	}
	for _, text := range []string{`\xzz`, `\x{110000}`, `\x{}`, `\x{ffffffffff}`} {
		f := &folder{rest: text, flags: []bool{false}}
		if r, _, err := f.hex(); err == nil || !strings.Contains(err.Error(), "is not a character") {
			t.Errorf("%s: %U, %v", text, r, err)
		}
	}
}

// TestNullable: a concatenation may be empty only if all its parts may be empty.
func TestNullable(t *testing.T) {
	for text, want := range map[string]bool{
		"ab": false, "a*b": false, "ab*": false, "a*b*": true, "(a|)": true, "(a|b)": false, "a{0,2}": true,
		"a{1,2}": false, "(a*)+": true, "a+": false, "^$": true, "": true, "ab|cd": false, "a*|b*d*": true,
	} {
		re, err := syntax.Parse(text, syntax.Perl)
		if err != nil {
			t.Fatal(err)
		}
		if got := nullable(re); got != want {
			t.Errorf("%q: %t, want %t", text, got, want)
		}
	}
}

// TestSilentDirectoryIsClosed: if an LDAP server does not answer in time, its connection is closed.
func TestSilentDirectoryIsClosed(t *testing.T) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	ended := make(chan error, 10)
	go func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			go func() {
				_, err := io.Copy(io.Discard, conn) // it never answers
				ended <- errors.Join(err, conn.Close())
			}()
		}
	}()
	groups, err := LDAPGroups(LDAPConfig{URLs: []string{"ldap://" + listener.Addr().String()}, UserFilter: "(uid={0})",
		GroupFilter: "(objectClass=group)", Connect: 20 * time.Second, Timeout: 50 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	if list, err := groups("alice"); err == nil {
		t.Errorf("groups of a server that does not answer: %q", list)
	}
	select {
	case err := <-ended:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(20 * time.Second):
		t.Error("the connection stays open")
	}
}

// TestSpellingsOfTokens: a token has one spelling, except for padding at its end.
func TestSpellingsOfTokens(t *testing.T) {
	d := newDelegating(t)
	token := d.get("renewer=yarn&user.name=alice")
	whole := token // its text ends with a whole group of base64
	for service := "h"; len(whole)%4 != 0; service += "h" {
		whole = d.get("renewer=yarn&user.name=alice&service=" + service)
	}
	for text, want := range map[string]bool{
		token: true, token + "=": true, token + "==": true, token + "!": false, token + " ": false, "!" + token: false,
		token + "!!!!": false, whole + "!": false, token + "A": false, strings.ToLower(token): false, token[:len(token)-1]: false,
	} {
		if _, _, err := parseDelegation(text); (err == nil) != want {
			t.Errorf("%s: %v, want %t", text, err, want)
		}
	}
}
