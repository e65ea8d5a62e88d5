package authn

import (
	"crypto/hmac"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"claviger"
	"claviger/secret"
)

// token is the content of a hadoop.auth cookie. Its text is
//
//	u=<user>&p=<principal>&t=<type>[&i=<ms>]&e=<ms>
//
// with times in milliseconds since the epoch. At time i, a token that was not used expires; at time e, every token.
type token struct {
	user, principal, kind string
	idleUntil             time.Time // zero: no such limit
	expires               time.Time
	// who is the user of principal; nil if it is not known yet. Requests share it; it is read-only.
	who *claviger.Principal
}

func (t *token) text() string {
	idle := ""
	if !t.idleUntil.IsZero() {
		idle = "&i=" + strconv.FormatInt(t.idleUntil.UnixMilli(), 10)
	}
	return fmt.Sprintf("u=%s&p=%s&t=%s%s&e=%d", t.user, t.principal, t.kind, idle, t.expires.UnixMilli())
}

func (t *token) expired(now time.Time) bool {
	return !t.idleUntil.IsZero() && now.After(t.idleUntil) || now.After(t.expires)
}

// parseToken reads a token's text, whose signature was checked before. The errors have Hadoop's texts.
func parseToken(text string) (*token, error) {
	if len(text) >= 2 && text[0] == '"' && text[len(text)-1] == '"' {
		text = text[1 : len(text)-1]
	}
	attrs := make(map[string]string)
	for part := range strings.SplitSeq(text, "&") {
		if part == "" {
			continue
		}
		name, value, ok := strings.Cut(part, "=")
		if !ok {
			return nil, errors.New("Invalid authentication token") //nolint:staticcheck // Hadoop's text
		}
		attrs[name] = value
	}
	for _, name := range []string{"u", "p", "t", "e"} {
		if _, ok := attrs[name]; !ok {
			return nil, errors.New("Invalid token string, missing attributes") //nolint:staticcheck // Hadoop's text
		}
	}
	t := &token{user: attrs["u"], principal: attrs["p"], kind: attrs["t"]}
	if !validName(t.user) || !validName(t.principal) {
		return nil, errors.New("userName is NULL, empty or contains a '&'")
	}
	var err error
	if t.expires, err = parseMillis(attrs["e"]); err != nil {
		return nil, err
	}
	if i, ok := attrs["i"]; ok && i != "-1" {
		if t.idleUntil, err = parseMillis(i); err != nil {
			return nil, err
		}
	}
	return t, nil
}

func parseMillis(s string) (time.Time, error) {
	ms, err := strconv.ParseInt(s, 10, 64)
	if err != nil {
		return time.Time{}, fmt.Errorf("For input string: %q", s) //nolint:staticcheck // Java's text
	}
	return time.UnixMilli(ms), nil
}

// signatureMark separates a token's text from its signature, the padded standard base64 of the text's HMAC-SHA256.
const signatureMark = "&s="

// signer signs and opens tokens as hadoop-auth's Signer does.
type signer struct {
	secrets SecretProvider
	who     func(principal string) (claviger.Principal, error)
	opened  atomic.Pointer[openedCookies]
}

// openedCookies remembers the tokens of cookies that were signed by the secrets in valid. When other secrets are valid,
// the signer begins with a new openedCookies. Requests share the tokens, which are read-only.
type openedCookies struct {
	valid []secret.Bytes
	remembered[*token]
}

func (s *signer) sign(text string) string {
	current, _ := s.secrets.Secrets()
	return text + signatureMark + signature(current, text)
}

// open returns the token in a cookie's value, if one of the valid secrets made its signature. Errors have Hadoop's
// texts. The signature of a value that was opened before is not computed again. The caller checks the token's times,
// and must not change the token.
func (s *signer) open(signed string) (*token, error) {
	_, valid := s.secrets.Secrets()
	opened := s.opened.Load()
	if opened == nil || !slices.EqualFunc(valid, opened.valid, secret.Bytes.Equal) {
		opened = &openedCookies{valid: valid}
		s.opened.Store(opened)
	}
	d := digestOf(signed)
	if tok, ok := opened.get(d); ok {
		return tok, nil
	}
	text, err := verifySignature(signed, valid)
	if err != nil {
		return nil, fmt.Errorf("org.apache.hadoop.security.authentication.util.SignerException: %w", err)
	}
	tok, err := parseToken(strings.Clone(text)) // a part of signed would keep a long header in memory
	if err != nil {
		return nil, err
	}
	if who, err := s.who(tok.principal); err == nil {
		tok.who = &who
	}
	opened.put(d, tok)
	return tok, nil
}

// verifySignature returns the text before the signature, if one of the secrets made the signature. Errors have Hadoop's
// texts.
func verifySignature(signed string, valid []secret.Bytes) (string, error) {
	i := strings.LastIndex(signed, signatureMark)
	if i < 0 {
		return "", errors.New("Invalid signed text: " + signed) //nolint:staticcheck // Hadoop's text
	}
	text, given := signed[:i], []byte(signed[i+len(signatureMark):])
	match := 0
	for _, key := range valid { // no early exit, so the time does not reveal which key matched
		match |= subtle.ConstantTimeCompare(given, []byte(signature(key, text)))
	}
	if match == 0 {
		return "", errors.New("Invalid signature") //nolint:staticcheck // Hadoop's text
	}
	return text, nil
}

func signature(key secret.Bytes, text string) string {
	mac := hmac.New(sha256.New, key)
	mac.Write([]byte(text))
	return base64.StdEncoding.EncodeToString(mac.Sum(nil))
}

// CookieAttributes are the attributes of the cookie, from hadoop.kms.authentication.cookie.*
type CookieAttributes struct {
	Domain, Path string // "": the attribute is left out
	Persistent   bool
}

// Check returns an error if an attribute cannot be a part of a cookie.
func (c CookieAttributes) Check() error {
	for name, value := range map[string]string{"domain": c.Domain, "path": c.Path} {
		if strings.ContainsFunc(value, func(r rune) bool { return r <= ' ' || r >= 0x7f || r == ';' }) {
			return &claviger.PropertyError{Name: "hadoop.kms.authentication.cookie." + name, Value: value,
				Want: "it must be printable ASCII without blanks and ';'"}
		}
	}
	return nil
}

// text returns the value of a Set-Cookie header. Hadoop's clients expect exactly these bytes; http.SetCookie would
// drop the quotes and write the date in another form. An empty value clears the cookie.
func (c CookieAttributes) text(value string, expires time.Time, https bool) string {
	var b strings.Builder
	b.WriteString(CookieName + "=")
	if value != "" {
		b.WriteString(`"` + value + `"`)
	}
	if c.Path != "" {
		b.WriteString("; Path=" + c.Path)
	}
	if c.Domain != "" {
		b.WriteString("; Domain=" + c.Domain)
	}
	if c.Persistent {
		b.WriteString("; Expires=" + expires.UTC().Format("Mon, 02-Jan-2006 15:04:05 GMT"))
	}
	if https {
		b.WriteString("; Secure")
	}
	b.WriteString("; HttpOnly")
	return b.String()
}

// authCookie returns the value of the first hadoop.auth cookie, without quotes. As in Jetty, an empty value in
// quotes is not a cookie. The parser of net/http would drop a cookie whose value is not ASCII, and a user's name may
// be such a value.
func authCookie(headers []string) (value string, ok bool) {
	for _, h := range headers {
		for h != "" {
			var pair string
			pair, h = cutCookie(h)
			name, value, hasValue := strings.Cut(strings.TrimSpace(pair), "=")
			if !hasValue || strings.TrimSpace(name) != CookieName {
				continue
			}
			value = strings.TrimSpace(value)
			if value == `""` {
				continue
			}
			if len(value) >= 2 && value[0] == '"' && value[len(value)-1] == '"' {
				value = value[1 : len(value)-1]
			}
			return value, true
		}
	}
	return "", false
}

// cutCookie cuts a Cookie header at the first ';' that is not in quotes.
func cutCookie(h string) (pair, rest string) {
	quoted := false
	for i := range len(h) {
		switch {
		case h[i] == '"':
			quoted = !quoted
		case h[i] == ';' && !quoted:
			return h[:i], h[i+1:]
		}
	}
	return h, ""
}
