package kmsclient_test

import (
	"net/http"
	"strings"
	"sync/atomic"
	"testing"

	"claviger/provider/kmsclient"
)

// TestRangerAdvice: what a Ranger KMS refuses is allowed by a policy of Ranger Admin,
// and so says the error. Its page of status is asked once.
func TestRangerAdvice(t *testing.T) {
	denied := func(op string) error {
		return &remoteError{403, "org.apache.hadoop.security.authorize.AuthorizationException",
			"User:mig not allowed to do '" + op + "'"}
	}
	for _, ranger := range []bool{true, false} {
		f := newFake(t)
		f.deny["GET_KEYS mig"] = denied("GET_KEYS")
		var asked atomic.Int32
		f.fault = func(w http.ResponseWriter, r *http.Request) bool {
			if r.URL.Path != "/kms/api/status" {
				return false
			}
			asked.Add(1)
			if r.URL.RawQuery != "" || r.Header.Get("Cookie") != "" {
				t.Error("an identity was sent to the page of status")
			}
			if ranger {
				json200(`{"status":"Ranger KMS service is running"}`)(w) // as RangerKMSRestApi.java writes it
				return true
			}
			return false // Hadoop's asks who we are
		}
		p := open(t, uriOf(serve(t, f)), kmsclient.Options{})
		for range 2 {
			_, err := p.Keys(t.Context())
			if err == nil {
				t.Fatal("not refused")
			}
			if says := strings.Contains(err.Error(), "getkeys on key *"); says != ranger {
				t.Errorf("Ranger %v: %v", ranger, err)
			}
			if says := strings.Contains(err.Error(), "kms-acls.xml"); says == ranger {
				t.Errorf("Ranger %v: %v", ranger, err)
			}
		}
		if n := asked.Load(); n != 1 {
			t.Errorf("Ranger %v: asked %d times", ranger, n)
		}
	}
}
