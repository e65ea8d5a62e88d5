package authn

// Handler authenticates requests that bring neither a cookie nor a delegation
// token. There are Simple and *Kerberos.
type Handler interface {
	// tokenTypes are the types of cookies that it takes.
	tokenTypes() []string
	// authenticate looks at what the request says of its sender. management is
	// true for operations on delegation tokens.
	authenticate(r Request, management bool) attempt
}

// attempt is what became of a request. Exactly one of token, anonymous and
// refusal is set.
type attempt struct {
	// token lacks its expiry, and its user where the rules are to make it of the
	// principal.
	token     *token
	anonymous bool
	refusal   *Refusal
	reply     string // Result.ServerToken
}

// PseudoAuth is the challenge (WWW-Authenticate) of type simple.
const PseudoAuth = "PseudoAuth"

// simpleTokenType is the token type of type simple; the suffix says that the
// handler will take delegation tokens too. Clients look at it.
const simpleTokenType = "simple-dt"

// Simple is the authentication type "simple": it believes the user.name of the
// query string.
type Simple struct {
	Anonymous bool // simple.anonymous.allowed
}

func (Simple) tokenTypes() []string { return []string{simpleTokenType} }

func (s Simple) authenticate(r Request, _ bool) attempt {
	name, ok := queryValue(r.RawQuery, func(n string) bool { return n == "user.name" })
	switch {
	case !ok && s.Anonymous:
		return attempt{anonymous: true}
	case !ok:
		return attempt{refusal: &Refusal{Kind: Unauthenticated, Challenges: []string{PseudoAuth}}}
	case !validName(name):
		return attempt{refusal: &Refusal{Kind: Malformed, Reason: "userName is NULL, empty or contains a '&'",
			User: name,
			Explanation: "the parameter user.name is empty, longer than 512 bytes, or holds characters that no " +
				"user's name has"}}
	}
	return attempt{token: &token{user: name, principal: name, kind: simpleTokenType}}
}
