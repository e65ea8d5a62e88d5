package server

import (
	"net/http"
	"time"

	"claviger"
)

// observer records the result of a request, for Config.Observe.
type observer struct {
	http.ResponseWriter
	status int
	err    error // error in a signed answer, whose status is 200
}

// Unwrap lets http.ResponseController reach the connection.
func (o *observer) Unwrap() http.ResponseWriter { return o.ResponseWriter }

// WriteHeader records the status.
func (o *observer) WriteHeader(status int) {
	if o.status == 0 {
		o.status = status
	}
	o.ResponseWriter.WriteHeader(status)
}

// serveObserved calls serve, and reports the result to Config.Observe.
func (s *Server) serveObserved(w http.ResponseWriter, r *http.Request, verb string) {
	if s.observe == nil {
		s.serve(w, r, verb)
		return
	}
	began := time.Now()
	o := &observer{ResponseWriter: w}
	s.serve(o, r, verb)
	s.observe(verb, o.result(), time.Since(began))
}

// recordResult records the error of the verb.
func recordResult(w http.ResponseWriter, err error) {
	if o, ok := w.(*observer); ok {
		o.err = err
	}
}

// result returns "ok" or a kind of error. For an unknown sender it is "denied", "invalid" or
// "unavailable".
func (o *observer) result() string {
	switch {
	case o.err != nil:
		return claviger.KindOf(o.err).String()
	case o.status == 0 || o.status == http.StatusOK:
		return "ok"
	case o.status == http.StatusForbidden:
		return claviger.Denied.String()
	case o.status >= http.StatusInternalServerError:
		return claviger.Unavailable.String()
	}
	return claviger.Invalid.String()
}
