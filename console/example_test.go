package console_test

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"

	"claviger/console"
)

// A check that fails for writes only leaves the node in service for decrypts.
func ExampleNew() {
	full := console.Check{Name: "HSM takes new keys", For: []console.Purpose{console.Write},
		Run: func(context.Context) error { return errors.New("the token is full") }}
	handler := console.New(console.Config{Checks: []console.Check{full}}, http.NotFoundHandler())
	for _, path := range []string{"/readyz?for=decrypt", "/readyz?for=write"} {
		answer := httptest.NewRecorder()
		handler.ServeHTTP(answer, httptest.NewRequest(http.MethodGet, path, nil))
		fmt.Println(path, answer.Code)
	}
	// Output:
	// /readyz?for=decrypt 200
	// /readyz?for=write 503
}
