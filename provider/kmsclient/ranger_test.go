package kmsclient_test

import (
	"net/http"
	"strings"
	"sync/atomic"
	"testing"

	"claviger/provider/kmsclient"
)

// TestRangerAdvice checks that the error of a Ranger KMS's refusal names the policy of Ranger Admin. The status page of
// the KMS must be requested once only.
func TestRangerAdvice(t *testing.T) {
	denied := func(op string) error {
		return &remoteError{403, "org.apache.hadoop.security.authorize.AuthorizationException",
			"User:mig not allowed to do '" + op + "'"}
	}
	for _, ranger := range []bool{true, false} {
		f := newFake(t)
		f.deny["GET_KEYS mig"] = denied("GET_KEYS")
		var requests atomic.Int32
		f.fault = func(w http.ResponseWriter, r *http.Request) bool {
			if r.URL.Path != "/kms/api/status" {
				return false
			}
			requests.Add(1)
			if r.URL.RawQuery != "" || r.Header.Get("Cookie") != "" {
				t.Error("an identity was sent to the status page")
			}
			if ranger {
				json200(`{"status":"Ranger KMS service is running"}`)(w) // the text of RangerKMSRestApi.java
				return true
			}
			return false // Hadoop's KMS requires a login
		}
		p := open(t, uriOf(serve(t, f)), kmsclient.Options{})
		for range 2 {
			_, err := p.Keys(t.Context())
			if err == nil {
				t.Fatal("not refused")
			}
			if found := strings.Contains(err.Error(), "getkeys on key *"); found != ranger {
				t.Errorf("Ranger %v: %v", ranger, err)
			}
			if found := strings.Contains(err.Error(), "kms-acls.xml"); found == ranger {
				t.Errorf("Ranger %v: %v", ranger, err)
			}
		}
		if n := requests.Load(); n != 1 {
			t.Errorf("Ranger %v: the status page was requested %d times", ranger, n)
		}
	}
}
