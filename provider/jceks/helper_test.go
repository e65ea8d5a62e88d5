package jceks

import (
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
)

func copyFile(t testing.TB, from, to string) {
	t.Helper()
	data, err := os.ReadFile(from)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(to, data, 0o600); err != nil {
		t.Fatal(err)
	}
}

// dumpKeys prints keys in the format of testdata/java/HadoopKeys.java.
func dumpKeys(t *testing.T, p *Provider, names []string) string {
	t.Helper()
	slices.Sort(names)
	list, err := p.Metadata(t.Context(), names...)
	if err != nil {
		t.Fatal(err)
	}
	var b strings.Builder
	for i, m := range list {
		if m == nil {
			t.Fatalf("no key %q", names[i])
		}
		description := "null"
		if m.Description != nil {
			description = *m.Description
		}
		var attributes []string
		for k, v := range m.Attributes {
			attributes = append(attributes, k+"="+v)
		}
		slices.Sort(attributes)
		fmt.Fprintf(&b, "%s %s %d %d %d %s {%s}\n", m.Name, m.Cipher, m.BitLength, m.Created.UnixMilli(), m.Versions,
			description, strings.Join(attributes, ", "))
		versions, err := p.Versions(t.Context(), m.Name)
		if err != nil {
			t.Fatal(err)
		}
		for _, v := range versions {
			fmt.Fprintf(&b, "  %s %x\n", v.Name, []byte(v.Material))
		}
	}
	return b.String()
}
