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

// TestUselessDirectoryIsClosed: if an LDAP server does not answer in time, or refuses the login, its connection is
// closed.
func TestUselessDirectoryIsClosed(t *testing.T) {
	// A BindResponse with the result invalidCredentials (49).
	const refusal = "\x30\x0c\x02\x01\x01\x61\x07\x0a\x01\x31\x04\x00\x04\x00"
	for name, c := range map[string]struct{ user, answer, want string }{
		"silent":            {"", "", "connection timed out"},
		"refuses the login": {"cn=reader", refusal, "Invalid Credentials"},
	} {
		t.Run(name, func(t *testing.T) {
			address, ended := answering(t, c.answer)
			groups, err := LDAPGroups(LDAPConfig{URLs: []string{"ldap://" + address}, UserFilter: "(uid={0})",
				GroupFilter: "(objectClass=group)", BindUser: c.user, BindPassword: []byte("x"),
				Connect: 20 * time.Second, Timeout: 50 * time.Millisecond})
			if err != nil {
				t.Fatal(err)
			}
			if list, err := groups("alice"); err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("groups %q, %v, want %q", list, err, c.want)
			}
			select {
			case err := <-ended:
				if err != nil {
					t.Error(err)
				}
			case <-time.After(20 * time.Second):
				t.Error("the connection stays open")
			}
		})
	}
}

// answering starts a server that gives one answer on each connection, and reports when the client closes one.
func answering(t *testing.T, answer string) (address string, ended <-chan error) {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = listener.Close() })
	ends := make(chan error, 10)
	go func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			go func() {
				_, wrong := io.ReadFull(conn, make([]byte, 1))
				_, unsent := io.WriteString(conn, answer)
				_, err := io.Copy(io.Discard, conn)
				ends <- errors.Join(wrong, unsent, err, conn.Close())
			}()
		}
	}()
	return listener.Addr().String(), ends
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
		token + "!!!!": false, whole + "!": false, token + "A": false,
		strings.ToLower(token): false, token[:len(token)-1]: false,
	} {
		if _, _, err := parseDelegation(text); (err == nil) != want {
			t.Errorf("%s: %v, want %t", text, err, want)
		}
	}
}
