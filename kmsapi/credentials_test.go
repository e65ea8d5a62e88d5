package kmsapi_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	"pgregory.net/rapid"

	"claviger/audit"
	"claviger/authn"
	"claviger/provider/memory"
	"claviger/secret"
)

// logBuffer is a log that a test can read while the server writes it.
type logBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *logBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

// take returns the text since the last call.
func (l *logBuffer) take() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	defer l.b.Reset()
	return l.b.String()
}

// revealed reports whether a text shows the token, or a long part of it, even if it is
// percent-encoded several times. It ignores line breaks, also escaped ones of Java or JSON.
func revealed(text, token string) bool {
	const enough = 60 // characters in one piece; the password alone is 27
	text = strings.NewReplacer(`\n`, "", `\r`, "", "\n", "", `\u000a`, "").Replace(text)
	for range 8 {
		for i := 0; i+enough <= len(token); i += 8 {
			if strings.Contains(text, token[i:i+enough]) {
				return true
			}
		}
		decoded := text
		var b strings.Builder
		for i := 0; i < len(text); i++ {
			if text[i] == '%' && i+2 < len(text) {
				if c, err := url.PathUnescape(text[i : i+3]); err == nil {
					b.WriteString(c)
					i += 2
					continue
				}
			}
			b.WriteByte(text[i])
		}
		if text = b.String(); text == decoded {
			break
		}
	}
	return false
}

// spelling draws one way to write a text in a URL.
func spelling(t *rapid.T, text, label string) string {
	levels := rapid.IntRange(0, 3).Draw(t, label+" levels")
	for range levels {
		every := rapid.IntRange(1, 20).Draw(t, label+" every")
		var b strings.Builder
		for i := range len(text) {
			switch {
			case i%every == 0 && rapid.Bool().Draw(t, label+" lower"):
				fmt.Fprintf(&b, "%%%02x", text[i])
			case i%every == 0:
				fmt.Fprintf(&b, "%%%02X", text[i])
			default:
				b.WriteByte(text[i])
			}
		}
		text = b.String()
	}
	if rapid.IntRange(0, 9).Draw(t, label+" broken") == 0 {
		text = "%" + text // not an escape, or one that includes the first characters of text
	}
	return text
}

// writtenBy returns what Hadoop's audit log and the chain write for the events, and drops the
// events.
func writtenBy(t *testing.T, tr *trail) string {
	t.Helper()
	var b bytes.Buffer
	hadoop := audit.NewHadoop(&b, 0)
	chain, err := audit.OpenChain(t.Context(), audit.ChainConfig{Node: "n",
		Streams: []audit.Stream{audit.NewWriter("w", &b)}})
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range tr.all() {
		hadoop.Log(t.Context(), e)
	}
	for _, e := range tr.all() {
		chain.Log(t.Context(), e)
	}
	if err := errors.Join(hadoop.Close(), chain.Close()); err != nil {
		t.Fatal(err)
	}
	tr.forget()
	return b.String()
}

// placed makes a request that contains a parameter's name and a value.
type placed func(name, value string) (method, target, body string, headers []string)

// tokenPlaces are the places of a request that may contain a token.
func tokenPlaces(token string) map[string]placed {
	const (
		query = "/kms/v1/keys/names?"
		key   = "/kms/v1/key/"
	)
	return map[string]placed{
		"parameter": func(n, v string) (string, string, string, []string) {
			return "GET", query + n + "=" + v, "",
				nil
		},
		"after ;": func(n, v string) (string, string, string, []string) {
			return "GET", query + "a=b;" + n + "=" + v, "", nil
		},
		"twice": func(n, v string) (string, string, string, []string) {
			return "GET", query + n + "=x&" + n + "=" + v + "&" + v, "", nil
		},
		"broken query": func(n, v string) (string, string, string, []string) {
			return "GET", query + "%zz&=;" + n + "=" + v + "%", "", nil
		},
		"no name": func(_, v string) (string, string, string, []string) { return "GET", query + v, "", nil },
		"wrong operation": func(n, v string) (string, string, string, []string) {
			return "GET", query + "op=RENEWDELEGATIONTOKEN&token=" + v, "", nil
		},
		"not found": func(n, v string) (string, string, string, []string) {
			return "GET", "/kms/v2/" + n + "=" + v, "",
				nil
		},
		"renewal": func(n, v string) (string, string, string, []string) {
			return "PUT", query + "op=RENEWDELEGATIONTOKEN&token=" + v + "x", "", nil
		},
		"user's name": func(_, v string) (string, string, string, []string) {
			return "GET", query + "user.name=" + v,
				"", nil
		},
		"doAs": func(_, v string) (string, string, string, []string) {
			return "GET", query + "user.name=alice&doAs=" + v, "", nil
		},
		"number": func(_, v string) (string, string, string, []string) {
			return "GET", key + "k/_eek?user.name=alice&eek_op=generate&num_keys=" + v, "", nil
		},
		"key": func(_, v string) (string, string, string, []string) {
			return "GET", key + v + "/_metadata?user.name=alice", "", nil
		},
		"key to roll": func(_, v string) (string, string, string, []string) {
			return "POST", key + v + "?user.name=alice", "{}", nil
		},
		"key in a body": func(_, v string) (string, string, string, []string) {
			return "POST", "/kms/v1/keys?user.name=alice", `{"name":"` + v + `"}`, nil
		},
		"version": func(_, v string) (string, string, string, []string) {
			return "GET", "/kms/v1/keyversion/k@" + v + "?user.name=alice", "", nil
		},
		"matrix parameter": func(n, v string) (string, string, string, []string) {
			return "GET", "/kms/v1/keys/names;" + n + "=" + v, "", nil
		},
		"header": func(_, v string) (string, string, string, []string) {
			return "GET", query, "", []string{"X-Hadoop-Delegation-Token: " + v + "x"}
		},
		"Authorization": func(_, v string) (string, string, string, []string) {
			return "GET", query, "", []string{"Authorization: Negotiate " + v}
		},
		"cookie": func(_, v string) (string, string, string, []string) {
			return "GET", query, "", []string{"Cookie: hadoop.auth=" + v}
		},
		"Referer": func(n, v string) (string, string, string, []string) {
			return "GET", query, "", []string{"Referer: http://kms:9600/kms/v1/?" + n + "=" + v}
		},
		"Host": func(_, v string) (string, string, string, []string) {
			return "GET", "http://" + token + "/kms/v1/nothing", "", nil
		},
		"method": func(_, v string) (string, string, string, []string) { return token, query, "", nil },
		"log level": func(_, v string) (string, string, string, []string) {
			return "GET", "/logLevel?log=" + v + "&user.name=alice", "", nil
		},
	}
}

// TestTokensStayOutOfLogs: wherever a request contains a valid delegation token, and however it
// is written, neither Hadoop's audit log, nor the chain, nor the server's log at level debug shows
// it.
func TestTokensStayOutOfLogs(t *testing.T) {
	tr, log := &trail{}, &logBuffer{}
	addr := withKey(t, stack{
		Primary: memory.New(memory.Config{SequentialIDs: true}), Trail: tr,
		Auth: authn.Config{Delegations: delegations(t, time.Now)},
		Log:  secret.LogHandler(slog.NewTextHandler(log, &slog.HandlerOptions{Level: slog.LevelDebug})),
	})
	a := send(t, addr, "GET", "/kms/v1/?op=GETDELEGATIONTOKEN&renewer=alice", "")
	var issued struct{ Token struct{ URLString string } }
	if err := json.Unmarshal(a.body, &issued); err != nil || len(issued.Token.URLString) < 70 {
		t.Fatalf("%d %s: %v", a.status, a.body, err)
	}
	token := issued.Token.URLString
	if a := sendAs(t, addr, "GET", "/kms/v1/keys/names?a=b;delegation="+token, ""); a.status != http.StatusOK {
		t.Fatalf("the token is not valid: %d %s", a.status, a.body)
	}
	written := func() string { return writtenBy(t, tr) + log.take() }
	if text := written(); revealed(text, token) || !strings.Contains(text, "GET_KEYS") {
		t.Fatalf("the log shows the token, or nothing:\n%s", text)
	}
	if !revealed(url.QueryEscape(strings.ReplaceAll(token, "A", "%41")), token) {
		t.Fatal("the test finds no token")
	}

	places := tokenPlaces(token)
	var names []string
	for name := range places {
		names = append(names, name)
	}
	rapid.Check(t, func(rt *rapid.T) {
		place := rapid.SampledFrom(names).Draw(rt, "place")
		name := rapid.SampledFrom([]string{"delegation", "Delegation", "DELEGATION", "+delegation", "delegation+",
			"delegation[]", "token", "x"}).Draw(rt, "name")
		plain := token
		if rapid.IntRange(0, 4).Draw(rt, "lines") == 0 {
			plain = token[:40] + "%0A" + token[40:]
		}
		value := spelling(rt, plain, "value")
		if place == "header" || place == "Authorization" || place == "cookie" {
			value = token
		}
		method, target, body, headers := places[place](spelling(rt, name, "name"), value)
		sendAs(t, addr, method, target, body, headers...)
		if text := written(); revealed(text, token) {
			rt.Fatalf("%s: %s %s: the log shows the token:\n%s", place, method, target, text)
		}
	})
}
