package nodes

import (
	"encoding/json"
	"io"
	"net/http"
	"net/url"
	"testing"
	"time"
)

// TestCancelledAtAnotherNode: node 1 cancels a delegation token. Node 2 refuses the token at most a second later,
// although requests with it come all the time. The same is true of a token that is removed without a notice. Node 2
// accepts such a token from memory before it refuses it.
func TestCancelledAtAnotherNode(t *testing.T) {
	s := newSite(t, nil)
	one, two := s.start(t), s.start(t)
	fromMemory := 0
	for range 5 {
		token := one.token(t)
		if status := two.use(t, token); status != http.StatusOK {
			t.Errorf("the other node: %d", status)
		}
		cancel := one.url + "/v1/?op=CANCELDELEGATIONTOKEN&token=" + token
		if status, b := request(t, http.MethodPut, cancel); status != http.StatusOK {
			t.Fatalf("%d %s", status, b)
		}
		cancelled := time.Now()
		if status := one.use(t, token); status != http.StatusForbidden {
			t.Errorf("the node that cancelled the token: %d", status)
		}
		two.awaitRefusal(t, token, cancelled)

		token = two.token(t)
		s.database(t, "DELETE FROM delegation")
		fromMemory += two.awaitRefusal(t, token, time.Now())
	}
	if fromMemory == 0 {
		t.Error("no token was accepted without the database")
	}
}

func request(t *testing.T, method, target string) (int, []byte) {
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

// token gets a delegation token of alice, and uses it.
func (n *node) token(t *testing.T) string {
	t.Helper()
	_, b := request(t, http.MethodGet, n.url+"/v1/?op=GETDELEGATIONTOKEN&renewer=yarn&user.name=alice")
	var issued struct{ Token struct{ URLString string } }
	if err := json.Unmarshal(b, &issued); err != nil {
		t.Fatalf("%s: %v", b, err)
	}
	token := url.QueryEscape(issued.Token.URLString)
	if status := n.use(t, token); status != http.StatusOK {
		t.Fatalf("a new token: %d", status)
	}
	return token
}

func (n *node) use(t *testing.T, token string) (status int) {
	t.Helper()
	status, _ = request(t, http.MethodGet, n.url+"/v1/keys/names?delegation="+token)
	return status
}

// awaitRefusal uses a token until the node refuses it, which must be at most a second after the removal. It returns how
// often the node has accepted the token.
func (n *node) awaitRefusal(t *testing.T, token string, removed time.Time) (accepted int) {
	t.Helper()
	for {
		late := time.Since(removed)
		status := n.use(t, token)
		if status == http.StatusForbidden {
			t.Logf("accepted %d times, refused after %v", accepted, late)
			return accepted
		}
		if accepted++; status != http.StatusOK || late > time.Second {
			t.Fatalf("%v after the removal: %d", late, status)
		}
	}
}
