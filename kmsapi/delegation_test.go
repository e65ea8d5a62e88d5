package kmsapi_test

import (
	"regexp"
	"testing"
	"time"

	"claviger/authn"
	"claviger/provider/memory"
)

var (
	// delegationToken matches a delegation token in a request.
	delegationToken = regexp.MustCompile(`\b[A-Za-z0-9_-]{70,}\b`)
	// issuedToken matches the delegation token in an answer.
	issuedToken = regexp.MustCompile(`"urlString"\s*:\s*"([^"]+)"`)
	// volatileIdentifier matches the parts of an identifier that are different in each token.
	volatileIdentifier = regexp.MustCompile(`issueDate=\d+, maxDate=\d+, sequenceNumber=\d+, masterKeyId=\d+`)
)

// delegations returns an issuer of delegation tokens with Hadoop's default periods.
func delegations(t *testing.T, now func() time.Time) *authn.Delegations {
	t.Helper()
	d, err := authn.NewDelegations(authn.DelegationConfig{KeyUpdate: 24 * time.Hour, MaxLife: 7 * 24 * time.Hour,
		Renewal: 24 * time.Hour, Scan: time.Hour, Now: now})
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// ownToken returns the token of this server that stands for a token in a recording of Hadoop's KMS. If the recorded
// request has such a token with one changed character, ownToken changes the same character of this server's token.
func (s *server) ownToken(recorded []byte) []byte {
	if ours, ok := s.tokens[string(recorded)]; ok {
		return []byte(ours)
	}
	for genuine, ours := range s.tokens {
		if len(genuine) != len(recorded) || len(ours) != len(recorded) {
			continue
		}
		var differ []int
		for i := range recorded {
			if genuine[i] != recorded[i] {
				differ = append(differ, i)
			}
		}
		if len(differ) != 1 {
			continue
		}
		altered, at := []byte(ours), differ[0]
		if altered[at] = recorded[at]; altered[at] == ours[at] {
			altered[at] = genuine[at]
		}
		return altered
	}
	if ours := s.withService(recorded); ours != nil {
		return ours
	}
	return recorded
}

// TestOwnerWithTooManyTokensIsRefused: the answer says how many tokens the owner has. Another owner is still served.
func TestOwnerWithTooManyTokensIsRefused(t *testing.T) {
	d, err := authn.NewDelegations(authn.DelegationConfig{KeyUpdate: 24 * time.Hour, MaxLife: 7 * 24 * time.Hour,
		Renewal: 24 * time.Hour, Scan: time.Hour,
		Limits: authn.TokenLimits{Total: 100, PerOwner: 2, Rate: 0.001, Burst: 4, Renewer: 100}})
	if err != nil {
		t.Fatal(err)
	}
	addr := start(t, stack{Primary: memory.New(memory.Config{}), Auth: authn.Config{Delegations: d}})
	get := func(user string) answer {
		return sendAs(t, addr, "GET", "/kms/v1/?op=GETDELEGATIONTOKEN&renewer=yarn&user.name="+user, "")
	}
	for range 2 {
		if a := get("mallory"); a.status != 200 {
			t.Fatalf("%d %s", a.status, a.body)
		}
	}
	a := get("mallory")
	class, message := a.thrown(t)
	if a.status != 403 || class != "java.io.IOException" ||
		message != "mallory has 2 delegation tokens, and one owner may have 2: "+
			"cancel those that are not needed any more" {
		t.Errorf("the third: %d %s %q", a.status, class, message)
	}
	if a := get("alice"); a.status != 200 {
		t.Errorf("alice's: %d %s", a.status, a.body)
	}
}
