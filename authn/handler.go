package authn

// Handler authenticates requests that have neither a cookie nor a delegation token. The implementations are Simple
// and *Kerberos.
type Handler interface {
	// tokenTypes returns the types of cookies that the handler accepts.
	tokenTypes() []string
	// authenticate finds the sender in the request. management is true for operations on delegation tokens.
	authenticate(r Request, management bool) attempt
}

// attempt is the result of a Handler for one request. Exactly one of token, anonymous and refusal is set.
type attempt struct {
	// token has no expiry yet. Its user is "" if the rules must make the user name from the principal.
	token     *token
	anonymous bool
	refusal   *Refusal
	reply     string // Result.ServerToken
}

// PseudoAuth is the challenge (WWW-Authenticate) of type simple.
const PseudoAuth = "PseudoAuth"

// simpleTokenType is the type of the cookies of type simple. Clients read the suffix: it says that the handler
// accepts delegation tokens too.
const simpleTokenType = "simple-dt"

// Simple is the authentication type "simple". It accepts the user.name of the query string without proof.
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
