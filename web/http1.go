package web

import "net/http"

// http1 refuses the beginning of HTTP/2 without TLS ("PRI * HTTP/2.0"), which net/http
// passes on to handlers.
func http1(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.ProtoMajor != 1 {
			w.Header().Set("Connection", "close")
			http.Error(w, "this server speaks HTTP/1.1", http.StatusHTTPVersionNotSupported)
			return
		}
		next.ServeHTTP(w, r)
	})
}
