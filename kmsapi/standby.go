package kmsapi

import (
	"net/http"

	"claviger/kmswire"
)

// Standby returns a handler for a server that has not started yet: each answer
// makes the client try another node.
func Standby(why string) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		w.Header().Set("Retry-After", retryAfter)
		w.WriteHeader(http.StatusServiceUnavailable)
		// If Write fails, the client has gone.
		_, _ = w.Write(kmswire.AppendException(nil, kmswire.Throw(kmswire.StandbyException, why)))
	})
}
