package nodes

import (
	"encoding/json"
	"io"
	"net/http"
	"net/url"
	"testing"
	"time"
)

// TestCancelledAtAnotherNode: a delegation token that node 1 has cancelled is refused by node 2, which uses it all the
// time, at the latest a second later.
func TestCancelledAtAnotherNode(t *testing.T) {
	s := newSite(t, nil)
	one, two := s.start(t), s.start(t)
	send := func(method, target string) (int, []byte) {
		t.Helper()
		req, err := http.NewRequestWithContext(t.Context(), method, target, nil)
		if err != nil {
			t.Fatal(err)
		}
		res, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer res.Body.Close()
		b, err := io.ReadAll(res.Body)
		if err != nil {
			t.Fatal(err)
		}
		return res.StatusCode, b
	}
	for range 5 {
		_, b := send(http.MethodGet, one.url+"/v1/?op=GETDELEGATIONTOKEN&renewer=yarn&user.name=alice")
		var issued struct{ Token struct{ URLString string } }
		if err := json.Unmarshal(b, &issued); err != nil {
			t.Fatalf("%s: %v", b, err)
		}
		token := url.QueryEscape(issued.Token.URLString)
		use := func(n *node) int {
			status, _ := send(http.MethodGet, n.url+"/v1/keys/names?delegation="+token)
			return status
		}
		for _, n := range []*node{one, two, two} {
			if status := use(n); status != http.StatusOK {
				t.Fatalf("before the cancellation: %d", status)
			}
		}
		cancel := one.url + "/v1/?op=CANCELDELEGATIONTOKEN&token=" + token
		if status, b := send(http.MethodPut, cancel); status != http.StatusOK {
			t.Fatalf("%d %s", status, b)
		}
		cancelled := time.Now()
		if status := use(one); status != http.StatusForbidden {
			t.Errorf("the node that cancelled the token: %d", status)
		}
		for {
			late := time.Since(cancelled)
			status := use(two)
			if status == http.StatusForbidden {
				t.Logf("refused by the other node after %v", late)
				break
			}
			if status != http.StatusOK || late > time.Second {
				t.Fatalf("the other node, %v later: %d", late, status)
			}
		}
	}
}
