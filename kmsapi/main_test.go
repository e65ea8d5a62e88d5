package kmsapi_test

import (
	"testing"

	"go.uber.org/goleak"
)

// TestMain ignores a goroutine of net/http: after an answer that ends a connection, the server
// waits half a second for the client, which is about as long as goleak waits.
func TestMain(m *testing.M) {
	goleak.VerifyTestMain(m, goleak.IgnoreAnyFunction("net/http.(*conn).closeWriteAndWait"))
}
