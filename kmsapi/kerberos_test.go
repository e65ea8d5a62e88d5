package kmsapi_test

import (
	"encoding/base64"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"claviger/authn"
	"claviger/provider/memory"
)

// tickets is an acceptor that has the tokens of the recordings, and gives the answers of the
// recorded server.
type tickets map[string]ticket

type ticket struct {
	client string
	reply  []byte
	err    error
}

func (k tickets) Accept(token []byte) (client string, reply []byte, err error) {
	if t, ok := k[string(token)]; ok {
		return t.client, t.reply, t.err
	}
	return "", nil, &authn.NegotiationError{Reason: "java.util.NoSuchElementException",
		Explanation: "no token of a recording"}
}

func (tickets) Check() error { return nil }

var negotiateHeader = regexp.MustCompile(`(?mi)^(Authorization|WWW-Authenticate): Negotiate (\S+)\r?$`)

// withKerberos configures the server of the krb recordings.
func withKerberos(t *testing.T, conf *authn.Config) {
	t.Helper()
	files, err := filepath.Glob("testdata/wire/krb-*.http")
	if err != nil {
		t.Fatal(err)
	}
	known := tickets{}
	for _, file := range files {
		rec := readRecording(t, "krb", strings.TrimSuffix(filepath.Base(file), ".http"))
		sent := negotiateHeader.FindSubmatch(rec.request)
		if sent == nil {
			continue
		}
		token, err := base64.StdEncoding.DecodeString(string(sent[2]))
		if err != nil {
			t.Fatal(err)
		}
		reply := negotiateHeader.FindStringSubmatch("WWW-Authenticate: " + rec.answer.header("WWW-Authenticate"))
		switch {
		case rec.name == "krb-replay":
			known[string(token)] = ticket{err: &authn.NegotiationError{
				Reason: "GSSException: Failure unspecified at GSS-API level " +
					"(Mechanism level: Request is a replay (34))",
				Explanation: "sent before",
			}}
		case reply != nil:
			one := ticket{client: "alice@EXAMPLE.COM"}
			switch {
			case strings.Contains(rec.name, "doas"):
				one.client = "migr@EXAMPLE.COM"
			case strings.Contains(rec.name, "two-component"):
				one.client = "hdfs/localhost@EXAMPLE.COM"
			case strings.Contains(rec.name, "norule"):
				one.client = "foo/localhost@EXAMPLE.COM"
			}
			if one.reply, err = base64.StdEncoding.DecodeString(reply[2]); err != nil {
				t.Fatal(err)
			}
			known[string(token)] = one
		}
	}
	javaTickets(t, known)
	if len(known) < 9 {
		t.Fatalf("only %d tokens in the recordings", len(known))
	}
	conf.Handler = kerberos(t, known)
	if conf.Rules, err = authn.ParseRules(`RULE:[2:$1@$0](hdfs@EXAMPLE\.COM)s/@.*// `+
		`RULE:[1:$1@$0](.*@EXAMPLE\.COM)s/@.*//`, authn.MechanismHadoop, "EXAMPLE.COM"); err != nil {
		t.Fatal(err)
	}
	now := time.UnixMilli(1795444407000)
	conf.Now = func() time.Time { return now }
	conf.Delegations = delegations(t, conf.Now)
}

func kerberos(t *testing.T, n authn.Negotiator, whitelist ...string) *authn.Kerberos {
	t.Helper()
	k, err := authn.NewKerberos(n, whitelist)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// TestOptionsOutside: clients with an unusual provider list ("http://a/kms,kms://http@b/kms")
// authenticate at paths that the KMS does not serve. Jetty's default servlet answers there.
func TestOptionsOutside(t *testing.T) {
	conf := authn.Config{Handler: kerberos(t, tickets{"x": {client: "alice"}})}
	addr := start(t, stack{Primary: memory.New(memory.Config{}), Auth: conf})
	for _, path := range []string{"/kms,kms:/http@h:1/kms/v1/?op=GETDELEGATIONTOKEN", "/kmsx", "/nothing", "/"} {
		for header, want := range map[string]int{"": 401, "Authorization: Negotiate eA==\r\n": 200} {
			a := exchange(t, addr, "OPTIONS", []byte("OPTIONS "+path+" HTTP/1.1\r\nHost: h\r\n"+header+"\r\n"))
			if a.status != want || want == 200 && (a.header("Allow") != "GET,HEAD,POST,OPTIONS" ||
				a.header("Set-Cookie") == "") {
				t.Errorf("%s %q: %d %v", path, header, a.status, a.headers)
			}
		}
	}
}
