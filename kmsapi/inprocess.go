package kmsapi

import (
	"net/http"
	"time"

	"claviger"
	"claviger/audit"
	"claviger/authn"
)

// This file is for another face of the same process, which shows pages to people. The
// face lets Authenticate find the caller, and sends the caller's requests by As. So the
// face has no rights of its own, and leaves the same audit records as any client.

// As serves a request of a caller that Authenticate has returned. The request passes
// the same rules, limits and audit as one that came over the network.
func (a *API) As(caller claviger.Principal, w http.ResponseWriter, r *http.Request) {
	c := &call{api: a.api, w: w, r: r, began: time.Now(), known: true}
	c.caller.Principal = caller
	a.run(c)
}

// Authenticate authenticates a request to another face, by a cookie, a ticket, a
// delegation token or user.name, as for a request to the KMS. It counts, logs and
// audits a refusal, but writes no answer. Servlets that need no login
// (kerberos.endpoint.whitelist) belong to the KMS alone, so the path does not matter.
func (a *API) Authenticate(r *http.Request) authn.Result {
	c := &call{api: a.api, r: r, began: time.Now()}
	c.caller.RequestID = a.requestID()
	req := authn.RequestOf(r)
	c.caller.RemoteAddr = req.RemoteIP.String()
	req.Path = "/"
	res := a.Auth.Authenticate(r.Context(), req)
	switch {
	case res.Anonymous:
		res = authn.Result{Refusal: &authn.Refusal{Kind: authn.Unauthenticated, Reason: "Authentication required",
			Challenges: []string{authn.PseudoAuth}}}
	case res.Refusal == nil:
		return res
	}
	c.reportRefusal(res.Refusal)
	if res.Refusal.Kind != authn.StoreUnavailable {
		c.audit(audit.Unauthenticated, res.Refusal.Reason)
	}
	return res
}
