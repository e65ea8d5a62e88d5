package main

import (
	"bytes"
	"os"
	"strings"
	"testing"

	"claviger/doctor"
)

// TestDoctorPage: docs/doctor.md has the text of each check. -update writes the texts.
func TestDoctorPage(t *testing.T) {
	const page, mark = "../../docs/doctor.md", "<!-- checks -->\n"
	text, err := os.ReadFile(page)
	if err != nil {
		t.Fatal(err)
	}
	head, _, ok := strings.Cut(string(text), mark)
	if !ok {
		t.Fatalf("%s has no line %q", page, mark)
	}
	var b bytes.Buffer
	if err := doctor.Page(&b, doctorRoles); err != nil {
		t.Fatal(err)
	}
	want := head + mark + b.String()
	if *update {
		if err := os.WriteFile(page, []byte(want), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if text, err = os.ReadFile(page); err != nil || string(text) != want {
		t.Errorf("%s is not what the checks say, %v: run this test with -update", page, err)
	}
	if n := strings.Count(want, "\n### D-"); n < 6 {
		t.Errorf("%s has %d checks only", page, n)
	}
}
