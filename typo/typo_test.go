package typo_test

import (
	"strconv"
	"testing"

	"claviger/typo"
)

// TestNearest: the most similar known word is found, and none if no known word is similar.
func TestNearest(t *testing.T) {
	ops := []string{"ALL", "READ", "MANAGEMENT", "GENERATE_EEK", "DECRYPT_EEK"}
	props := []string{"hadoop.kms.http.port", "hadoop.kms.http.host", "hadoop.kms.key.provider.uri"}
	for _, c := range []struct {
		word  string
		known []string
		want  string // "" if nothing is near
	}{
		{"read", ops, "READ"},
		{"REED", ops, "READ"},
		{"RAED", ops, "READ"},
		{"DECRYPT", ops, "DECRYPT_EEK"},
		{"MANAGMENT", ops, "MANAGEMENT"},
		{"DECRYPT_EEKS", ops, "DECRYPT_EEK"},
		{"GET", ops, ""},
		{"RE", ops, ""},
		{"", ops, ""},
		{"READ", nil, ""},
		{"hadoop.kms.http.prot", props, "hadoop.kms.http.port"},
		{"hadoop.kms.http.post", props, "hadoop.kms.http.port"}, // host has the same distance; port is first
		{"hadoop.kms.http_host", props, "hadoop.kms.http.host"},
		{"hadoop.kms.key.provider.url", props, "hadoop.kms.key.provider.uri"},
		{"hadoop.kms.colour", props, ""},
	} {
		got, ok := typo.Nearest(c.word, c.known)
		if got != c.want || ok != (c.want != "") {
			t.Errorf("Nearest(%q) = %q, %v; want %q", c.word, got, ok, c.want)
		}
	}
}

// TestDidYouMean: the suggestion for a message is empty if no known word is similar.
func TestDidYouMean(t *testing.T) {
	known := []string{"alpha", "beta"}
	if got := typo.DidYouMean("alpa", known, strconv.Quote); got != `; did you mean "alpha"?` {
		t.Errorf("got %q", got)
	}
	if got := typo.DidYouMean("omega", known, strconv.Quote); got != "" {
		t.Errorf("got %q for a word that is near to no known word", got)
	}
}

// TestDistance: an exchange of two adjacent letters counts as one change. No result is above the limit.
func TestDistance(t *testing.T) {
	const limit = 9
	for _, c := range []struct {
		a, b string
		want int
	}{
		{"", "", 0}, {"", "ab", 2}, {"password", "passwrod", 1}, {"passphrase", "pasphrasse", 2}, {"ca", "abc", 3},
		{"schlüssel", "schlussel", 1}, // letters are counted, not bytes of UTF-8
		{"secret", "unrelated words", limit},
	} {
		if got := typo.Distance(c.a, c.b, limit); got != c.want {
			t.Errorf("Distance(%q, %q) = %d; want %d", c.a, c.b, got, c.want)
		}
		if got, back := typo.Distance(c.a, c.b, 2), typo.Distance(c.b, c.a, 2); got != min(c.want, 2) || back != got {
			t.Errorf("Distance(%q, %q) with limit 2 = %d, and %d in the other direction; want %d", c.a, c.b, got, back,
				min(c.want, 2))
		}
	}
}
