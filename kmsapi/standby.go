package kmsapi

import (
	"net/http"

	"claviger/kmswire"
)

// Standby answers every request in the way that makes a client try another node: for a
// server that has not started yet.
func Standby(why string) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		w.Header().Set("Retry-After", retryAfter)
		w.WriteHeader(http.StatusServiceUnavailable)
		_, _ = w.Write(kmswire.AppendException(nil, kmswire.Throw(kmswire.StandbyException, why))) // the client is gone if this fails
	})
}
