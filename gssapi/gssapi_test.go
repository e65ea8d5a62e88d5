//go:build cgo && !nogssapi

package gssapi

import (
	"bytes"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestMain replaces the machine's krb5.conf.
func TestMain(m *testing.M) {
	dir, err := os.MkdirTemp("", "gssapi")
	if err != nil {
		panic(err)
	}
	conf := filepath.Join(dir, "krb5.conf")
	if err := os.WriteFile(conf,
		[]byte("[libdefaults]\n default_realm = EXAMPLE.COM\n dns_lookup_kdc = false\n "+
			"dns_canonicalize_hostname = false\n"),
		0o600); err != nil {
		panic(err)
	}
	for name, value := range map[string]string{"KRB5_CONFIG": conf, "KRB5RCACHEDIR": dir} {
		if err := os.Setenv(name, value); err != nil {
			panic(err)
		}
	}
	code := m.Run()
	_ = os.RemoveAll(dir)
	os.Exit(code)
}

// writeKeytab writes a keytab (format 0x0502) with an AES-256 key of zeros for each principal, in the realm
// EXAMPLE.COM.
func writeKeytab(t testing.TB, principals ...string) string {
	t.Helper()
	file := []byte{5, 2}
	counted := func(b []byte, s string) []byte {
		return append(binary.BigEndian.AppendUint16(b, uint16(len(s))), s...)
	}
	for _, p := range principals {
		parts := strings.Split(p, "/")
		e := binary.BigEndian.AppendUint16(nil, uint16(len(parts)))
		e = counted(e, "EXAMPLE.COM")
		for _, part := range parts {
			e = counted(e, part)
		}
		e = append(e, 0, 0, 0, 1, 0, 0, 0, 0, 2, 0, 18) // name type, time, key version, aes256-cts
		e = counted(e, strings.Repeat("\x00", 32))
		file = append(binary.BigEndian.AppendUint32(file, uint32(len(e))), e...)
	}
	path := filepath.Join(t.TempDir(), "keytab")
	if err := os.WriteFile(path, file, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// TestKeytab: an Acceptor is made only if the keytab has a key of each principal. Otherwise the error lists the
// principals of the keytab.
func TestKeytab(t *testing.T) {
	both := writeKeytab(t, "HTTP/localhost", "ftp/localhost")
	for _, c := range []struct {
		name string
		conf AcceptorConfig
		want string // in the error; "" for none
	}{
		{"a principal", AcceptorConfig{Keytab: both, Principals: []string{"HTTP/localhost"}}, ""},
		{"with a realm", AcceptorConfig{Keytab: both, Principals: []string{"HTTP/localhost@EXAMPLE.COM"}}, ""},
		{"all HTTP principals", AcceptorConfig{Keytab: both, Principals: []string{"*"}}, ""},
		{"no principal", AcceptorConfig{Keytab: both}, "no principal"},
		{"another realm", AcceptorConfig{Keytab: both, Principals: []string{"HTTP/localhost@OTHER.ORG"}},
			"has no key of HTTP/localhost@OTHER.ORG; it has keys of HTTP/localhost@EXAMPLE.COM, " +
				"ftp/localhost@EXAMPLE.COM"},
		{"another host", AcceptorConfig{Keytab: both, Principals: []string{"HTTP/kms1"}}, "has no key of HTTP/kms1"},
		{"no HTTP principal", AcceptorConfig{Keytab: writeKeytab(t, "ftp/localhost"), Principals: []string{"*"}},
			"has no key of a principal HTTP/...; it has keys of ftp/localhost@EXAMPLE.COM"},
		{"no file", AcceptorConfig{Keytab: "/nowhere/keytab", Principals: []string{"*"}}, "no such file"},
		{"empty", AcceptorConfig{Keytab: writeKeytab(t), Principals: []string{"*"}}, "it is empty"},
		{"not a keytab", AcceptorConfig{Keytab: "gssapi_test.go", Principals: []string{"*"}}, "keytab gssapi_test.go"},
	} {
		a, err := NewAcceptor(c.conf)
		if (err == nil) != (c.want == "") || err != nil && !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", c.name, err, c.want)
		}
		if a != nil {
			a.Close()
			a.Close()
			if _, err := a.Accept(seeds(t)[0]); err == nil {
				t.Errorf("%s: Accept works after Close", c.name)
			}
		}
	}
}

// TestKeytabChanges: Check reports changes of the keytab while the acceptor is used.
func TestKeytabChanges(t *testing.T) {
	both := writeKeytab(t, "HTTP/localhost", "ftp/localhost")
	a, err := NewAcceptor(AcceptorConfig{Keytab: both, Principals: []string{"HTTP/localhost"}})
	if err != nil {
		t.Fatal(err)
	}
	defer a.Close()
	for _, c := range []struct {
		name   string
		change func() error
		want   string
	}{
		{"unchanged", func() error { return nil }, ""},
		{"of another service", func() error { return os.Rename(writeKeytab(t, "ftp/localhost"), both) },
			"has no key of HTTP/localhost"},
		{"removed", func() error { return os.Remove(both) }, "no such file"},
		{"restored", func() error { return os.Rename(writeKeytab(t, "HTTP/localhost"), both) }, ""},
	} {
		if err := c.change(); err != nil {
			t.Fatal(err)
		}
		if err := a.Check(); (err == nil) != (c.want == "") || err != nil && !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", c.name, err, c.want)
		}
	}
}

// TestDefaultRealm: the default realm is that of krb5.conf.
func TestDefaultRealm(t *testing.T) {
	if realm, err := DefaultRealm(); realm != "EXAMPLE.COM" || err != nil {
		t.Errorf("default realm %q, %v", realm, err)
	}
}

// seeds returns tokens that clients sent to a Java KMS: first SPNEGO, then plain krb5.
func seeds(t testing.TB) [][]byte {
	t.Helper()
	text, err := os.ReadFile("testdata/tokens.txt")
	if err != nil {
		t.Fatal(err)
	}
	var tokens [][]byte
	for line := range strings.Lines(string(text)) {
		token, err := base64.StdEncoding.DecodeString(strings.TrimSpace(line))
		if err != nil {
			t.Fatal(err)
		}
		tokens = append(tokens, token)
	}
	return tokens
}

// TestRefused: the kind of error, and Java's text for it, for each kind of token that is refused.
func TestRefused(t *testing.T) {
	a, err := NewAcceptor(AcceptorConfig{Keytab: writeKeytab(t, "HTTP/localhost"), Principals: []string{"*"}})
	if err != nil {
		t.Fatal(err)
	}
	defer a.Close()
	tokens := seeds(t)
	ntlm, _ := base64.StdEncoding.DecodeString("TlRMTVNTUAABAAAAB4IIogAAAAAAAAAAAAAAAAAAAAAKAGFKAAAADw==")
	for _, c := range []struct {
		name  string
		token []byte
		kind  Kind
		java  string
	}{
		{"empty", nil, BadToken, "java.nio.BufferUnderflowException"},
		{"zeros", []byte{0, 0, 0}, BadToken, "java.util.NoSuchElementException"},
		{"NTLM", ntlm, BadToken, "java.util.NoSuchElementException"},
		{"cut", tokens[0][:20], BadToken, "GSSException: Defective token detected"},
		{"too long", bytes.Repeat([]byte{0x60}, MaxToken+1), BadToken, "GSSException: Defective token detected"},
		{"another key, SPNEGO", tokens[0], NoKey,
			"GSSException: Failure unspecified at GSS-API level (Mechanism level: Checksum failed)"},
		{"another key, plain krb5", tokens[len(tokens)-1], NoKey,
			"GSSException: Failure unspecified at GSS-API level (Mechanism level: Checksum failed)"},
	} {
		_, err := a.Accept(c.token)
		var e *Error
		if !errors.As(err, &e) || e.Kind != c.kind || e.Java != c.java || e.Detail == "" {
			t.Errorf("%s: %+v", c.name, err)
		}
		if c.kind == NoKey && (e == nil || e.Cure == "") {
			t.Errorf("%s: no cure", c.name)
		}
	}
}

// TestNoLogin: an initiator without a usable login fails with the reason.
func TestNoLogin(t *testing.T) {
	for _, c := range []struct {
		conf InitiatorConfig
		want string
	}{
		{InitiatorConfig{Keytab: "/nowhere/keytab", Principal: "alice", Target: "HTTP@localhost"}, "no such file"},
		{InitiatorConfig{Keytab: writeKeytab(t, "alice"), Target: "HTTP@localhost"}, "no principal is named"},
		{InitiatorConfig{CCache: "FILE:/nowhere/ccache", Target: "HTTP@localhost"}, "No credentials cache found"},
	} {
		i, err := NewInitiator(c.conf)
		if err == nil { // the library may search for tickets only when it needs them
			_, _, err = i.Step(nil)
			if _, werr := i.Wrap([]byte("x")); werr == nil {
				t.Error("Wrap works before the context is established")
			}
			_ = i.Close()
		}
		var e *Error
		if !errors.As(err, &e) || e.Kind != NoCredentials || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%+v: %+v, want %q", c.conf, err, c.want)
		}
	}
}

// FuzzAccept: no token from the network is accepted without a ticket, and each refusal has the message of Java's KMS.
func FuzzAccept(f *testing.F) {
	if found, err := os.ReadDir("testdata/fuzz/FuzzAccept"); err != nil || len(found) == 0 {
		f.Fatalf("no seeds: %v", err)
	}
	a, err := NewAcceptor(AcceptorConfig{Keytab: writeKeytab(f, "HTTP/localhost"), Principals: []string{"*"}})
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(a.Close)
	f.Fuzz(func(t *testing.T, token []byte) {
		who, err := a.Accept(token)
		var e *Error
		if !errors.As(err, &e) || e.Java == "" {
			t.Fatalf("%x: %+v, %v", token, who, err)
		}
	})
}
