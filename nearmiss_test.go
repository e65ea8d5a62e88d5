package claviger_test

import (
	"testing"

	"claviger"
)

func TestNearMiss(t *testing.T) {
	ops := []string{"ALL", "READ", "MANAGEMENT", "GENERATE_EEK", "DECRYPT_EEK"}
	props := []string{"hadoop.kms.http.port", "hadoop.kms.http.host", "hadoop.kms.key.provider.uri"}
	for _, c := range []struct {
		word  string
		known []string
		want  string // "" where nothing is near
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
		{"hadoop.kms.http.post", props, "hadoop.kms.http.port"}, // host is as near; the first wins
		{"hadoop.kms.http_host", props, "hadoop.kms.http.host"},
		{"hadoop.kms.key.provider.url", props, "hadoop.kms.key.provider.uri"},
		{"hadoop.kms.colour", props, ""},
	} {
		got, ok := claviger.NearMiss(c.word, c.known)
		if got != c.want || ok != (c.want != "") {
			t.Errorf("NearMiss(%q) = %q, %v; want %q", c.word, got, ok, c.want)
		}
	}
}
