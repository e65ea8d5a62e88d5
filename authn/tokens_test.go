package authn

import (
	"bytes"
	"context"
	"crypto/hmac"
	"crypto/sha1" //nolint:gosec // HMAC-SHA1 is the token format's
	"errors"
	"log/slog"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"claviger"
	"claviger/internal/logtest"
)

// TestTokenLimitsArePositive: each limit of tokens must be positive.
func TestTokenLimitsArePositive(t *testing.T) {
	for name, change := range map[string]func(*TokenLimits){
		"":         func(*TokenLimits) {},
		"Total":    func(l *TokenLimits) { l.Total = 0 },
		"PerOwner": func(l *TokenLimits) { l.PerOwner = 0 },
		"Rate":     func(l *TokenLimits) { l.Rate = 0 },
		"Burst":    func(l *TokenLimits) { l.Burst = 0 },
		"Renewer":  func(l *TokenLimits) { l.Renewer = 0 },
	} {
		limits := DefaultTokenLimits
		change(&limits)
		_, err := NewDelegations(DelegationConfig{KeyUpdate: 1, MaxLife: 1, Renewal: 1, Scan: 1, Limits: limits})
		if (name == "") != (err == nil) || err != nil && claviger.KindOf(err) != claviger.Invalid {
			t.Errorf("%s is 0: %v", name, err)
		}
	}
}

// TestFull: Full reports a store with few free places, and refusals of the last minute.
func TestFull(t *testing.T) {
	d := limited(t, nil, TokenLimits{Total: 10, PerOwner: 2, Rate: 100, Burst: 100, Renewer: 10})
	full := func(when, want string) {
		t.Helper()
		err := d.tokens.Full()
		if (err == nil) != (want == "") || err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", when, err, want)
		}
	}
	for _, user := range strings.Split("abcdefghi", "") {
		if token, _, reason := d.requestToken(user); token == "" {
			t.Fatal(reason)
		}
	}
	full("with 9 of 10 tokens", "")
	last, _, _ := d.requestToken("j")
	full("with 10 of 10 tokens", "there are 10 delegation tokens, and 10 may be kept")
	d.now = d.now.Add(recountPause)
	if token, _, _ := d.requestToken("k"); token != "" {
		t.Fatal("the limit of all tokens does not hold")
	}
	full("after a refusal", "delegation tokens are refused")
	if res := d.do(http.MethodPut, "op=CANCELDELEGATIONTOKEN&user.name=j&token="+last); res.Refusal != nil {
		t.Fatal(res.Refusal)
	}
	d.now = d.now.Add(time.Minute)
	full("a minute after the refusal", "")
}

// TestTokenPasswords: the password of a token is the HMAC-SHA1 of its identifier by its master key, as a Java KMS
// computes it. Each node makes its own random key.
func TestTokenPasswords(t *testing.T) {
	store := newMemoryTokens(time.Now)
	for range 2 {
		d, err := NewDelegations(DelegationConfig{KeyUpdate: time.Hour, MaxLife: time.Hour, Renewal: time.Hour,
			Scan: time.Hour, Store: store})
		if err != nil {
			t.Fatal(err)
		}
		text, err := d.issue(t.Context(), "alice", "yarn", "", "")
		if err != nil {
			t.Fatal(err)
		}
		token, id, err := parseDelegation(text)
		if err != nil {
			t.Fatal(err)
		}
		mac := hmac.New(sha1.New, store.keys[id.keyID].Key)
		mac.Write(id.bytes())
		if want := mac.Sum(nil); !bytes.Equal(token.password, want) {
			t.Errorf("password %x, want %x", token.password, want)
		}
	}
	one, two := store.keys[1].Key, store.keys[2].Key
	if len(one) != 32 || len(two) != 32 || bytes.Equal(one, two) {
		t.Error("the master keys are not random")
	}
}

// TestTokenIdentifiers: the identifier of a token must have Hadoop's form, to the last byte.
func TestTokenIdentifiers(t *testing.T) {
	good := identifier{owner: "alice", renewer: "yarn", issued: 1, maxDate: 2, sequence: 3, keyID: 4}.bytes()
	for name, c := range map[string]struct {
		bytes []byte
		want  error
	}{
		"good":            {good, nil},
		"empty":           {nil, errEOF},
		"cut":             {good[:len(good)-1], errEOF},
		"too long":        {append(bytes.Clone(good), 0), errEOF},
		"another version": {append([]byte{1}, good[1:]...), errEOF},
	} {
		if _, err := parseIdentifier(c.bytes); !errors.Is(err, c.want) {
			t.Errorf("%s: %v, want %v", name, err, c.want)
		}
		token := delegation{identifier: c.bytes, password: make([]byte, 20), kind: delegationKind}
		if _, _, err := parseDelegation(token.text()); !errors.Is(err, c.want) {
			t.Errorf("%s, in a token: %v, want %v", name, err, c.want)
		}
	}
}

// TestTokenRequests: the answer to an operation names the token, and a refusal has Hadoop's text.
func TestTokenRequests(t *testing.T) {
	d := newDelegating(t)
	res := d.do(http.MethodGet, "op=GETDELEGATIONTOKEN&user.name=alice&renewer=")
	want := "kms-dt owner=alice, renewer=, realUser=, issueDate=1795442630957, maxDate=1796047430957, " +
		"sequenceNumber=1, masterKeyId=1"
	if res.Sequence != 1 || res.Description != want {
		t.Errorf("%d %q, want %q", res.Sequence, res.Description, want)
	}
	for _, c := range []struct {
		name, method, query string
		kind                RefusalKind
		want                string
	}{
		{"no renewer", "PUT", "op=RENEWDELEGATIONTOKEN&user.name=alice&token=" + res.Token, BadDelegation,
			"AccessControlException: alice tried to renew a token (" + want + ") without a renewer"},
		{"not a token", "PUT", "op=RENEWDELEGATIONTOKEN&user.name=alice&token=AAAA", BadDelegation, errEOF.Error()},
		{"not a principal", "GET", "op=GETDELEGATIONTOKEN&user.name=alice&renewer=a@b@c", NoShortName,
			"java.lang.RuntimeException: java.lang.IllegalArgumentException: Malformed Kerberos name: a@b@c"},
		{"no user", "GET", "op=GETDELEGATIONTOKEN", NoDelegator, "Forbidden"},
	} {
		res := d.do(c.method, c.query)
		if r := res.Refusal; r == nil || r.Kind != c.kind || !strings.HasSuffix(r.Reason, c.want) ||
			res.Sequence != 0 || res.Description != "" {
			t.Errorf("%s: %+v, refusal %+v", c.name, res, r)
		}
	}
	if err := d.tokens.cancel(t.Context(), "AAAA", nil); !errors.Is(err, errEOF) {
		t.Errorf("cancelling what is not a token: %v", err)
	}
	r := d.request("")
	r.Header.Set("X-Hadoop-Delegation-Token", res.Token)
	if res := d.Authenticate(t.Context(), r); res.Principal == nil || res.Principal.Name != "alice" {
		t.Errorf("a token in a header: %+v", res)
	}
}

// TestTokenOfNoUser: if the rules map a token's names to no user any more, the token is refused.
func TestTokenOfNoUser(t *testing.T) {
	d := newDelegating(t)
	for _, users := range [][2]string{{"a@b@c", ""}, {"alice", "a@b@c"}} {
		text, err := d.tokens.issue(t.Context(), users[0], "yarn", users[1], "")
		if err != nil {
			t.Fatal(err)
		}
		res := d.byDelegation(t.Context(), text)
		if res.Principal != nil || res.Refusal == nil || res.Refusal.Kind != BadDelegation ||
			res.Refusal.Reason != "Malformed Kerberos name: a@b@c" {
			t.Errorf("%q: %+v, refusal %+v", users, res, res.Refusal)
		}
	}
}

// TestTokenRunLogs: Run logs failures and removals, and nothing else.
func TestTokenRunLogs(t *testing.T) {
	const counted, first, removed = "tokens could not be counted\"", "the next request for a token counts them",
		"could not be removed"
	for name, c := range map[string]struct {
		fail int // see storeCalls
		want string
	}{
		"no failure":          {0, ""},
		"first count fails":   {1, first},
		"recount fails":       {4, counted},
		"removal fails":       {7, removed},
		"tokens have expired": {-1, "removed expired delegation tokens"},
	} {
		inBubble(t, name, func(t *testing.T) {
			var log logtest.Buffer
			calls := &storeCalls{fail: c.fail}
			scan := recountAge + time.Minute
			d, err := NewDelegations(DelegationConfig{KeyUpdate: time.Hour, MaxLife: time.Hour, Renewal: time.Second,
				Scan: scan, Store: callsTokens{newMemoryTokens(time.Now), calls},
				Log: slog.New(slog.NewTextHandler(&log, nil))})
			if err != nil {
				t.Fatal(err)
			}
			if c.fail < 0 {
				calls.fail = 0
				if _, err := d.issue(t.Context(), "alice", "yarn", "", ""); err != nil {
					t.Fatal(err)
				}
				time.Sleep(removalDelay - recountAge)
			}
			ctx, cancel := context.WithCancel(t.Context())
			go d.Run(ctx)
			time.Sleep(scan + time.Second)
			cancel()
			synctest.Wait()
			lines := strings.Count(log.String(), "\n")
			if c.want == "" && lines > 0 || c.want != "" && (lines != 1 || !strings.Contains(log.String(), c.want)) {
				t.Errorf("%d lines, want %q: %s; calls %q", lines, c.want, log.String(), calls.list)
			}
		})
	}
}

// TestTokenRunEnds: failures that only the end of Run causes are not logged.
func TestTokenRunEnds(t *testing.T) {
	n := newTokenNode(t)
	var log logtest.Buffer
	n.conf.Log = slog.New(slog.NewTextHandler(&log, nil))
	n.quota.next = time.Time{}
	n.calls.list, n.calls.fail = nil, 1
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	n.Run(ctx)
	if text := log.String(); text != "" {
		t.Error(text)
	}
}
