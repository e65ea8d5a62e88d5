package kmsapi

import (
	"slices"
	"testing"

	"claviger/internal/openapitest"
)

// elsewhere are documented operations that neither routes nor pages has: those on delegation tokens, which any path
// takes, and the pages of package console.
var elsewhere = []string{"GET /kms/v1/", "PUT /kms/v1/", "GET /healthz", "GET /readyz", "GET /metrics"}

// TestOpenAPIRoutes: docs/openapi.yaml has the paths and methods of the tables routes and pages, and no
// others.
func TestOpenAPIRoutes(t *testing.T) {
	want := slices.Clone(elsewhere)
	for _, r := range routes {
		want = append(want, r.method+" "+base+"/v1/"+r.pattern)
	}
	for path := range pages {
		want = append(want, "GET "+path)
	}
	var got []string
	for _, o := range openapitest.Load(t).Operations() {
		got = append(got, o.Method+" "+o.Path)
	}
	for _, o := range want {
		if !slices.Contains(got, o) {
			t.Errorf("docs/openapi.yaml lacks %s", o)
		}
	}
	for _, o := range got {
		if !slices.Contains(want, o) {
			t.Errorf("docs/openapi.yaml has %s, which the server does not have", o)
		}
	}
}
