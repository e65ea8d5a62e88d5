package hsm_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"claviger/provider/hsm"
)

// inspect inspects a site, and returns the report also as text and as JSON.
func (b *testSite) inspect(t *testing.T) (found *hsm.Inspection, text, doc string) {
	t.Helper()
	b.access = hsm.Inspect
	p := b.mustOpen(t)
	found, err := p.InspectToken(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	mustClose(t, p)
	var buffer bytes.Buffer
	found.Text(&buffer)
	data, err := json.Marshal(found)
	if err != nil {
		t.Fatal(err)
	}
	return found, buffer.String(), string(data)
}

// wantParts demands that a text contains each part.
func wantParts(t *testing.T, text string, parts ...string) {
	t.Helper()
	for _, part := range parts {
		if !strings.Contains(text, part) {
			t.Errorf("%q is not in\n%s", part, text)
		}
	}
}

// TestInspectStandby: an inspection shows the standby, the keys that it lacks, and copies of destroyed keys. It refuses
// what is no full copy.
func TestInspectStandby(t *testing.T) {
	b := newSite(t)
	b.soft = "false"
	b.create(t, "copied")
	b.create(t, "destroyed")
	found, text, doc := b.inspect(t)
	if found.Standby != nil || found.Refusal() != nil || found.Keys[hsm.InUse] != 2 ||
		strings.Contains(text+doc, "standby") {
		t.Errorf("without a standby: %s\n%s\n%v", text, doc, found.Refusal())
	}
	clone, err := b.token.Clone("standby")
	if err != nil {
		t.Fatal(err)
	}
	alone, err := os.ReadFile(b.file)
	if err != nil {
		t.Fatal(err)
	}
	nameNone := func() {
		err := os.WriteFile(b.file, alone, 0o600)
		if err := errors.Join(err, os.Remove(filepath.Join(filepath.Dir(b.file), "standby.keystore"))); err != nil {
			t.Fatal(err)
		}
	}
	b.nameStandby(t, clone.Label)
	found, text, doc = b.inspect(t)
	if err := found.Refusal(); err != nil {
		t.Error(err)
	}
	wantParts(t, text, "standby token\tstandby\n", "standby serial\t"+found.Standby.Token.Serial+"\n",
		"standby mechanism\tCKM_AES_ECB\n", "standby lacks copies\t0\n", "standby has copies of destroyed keys\t0\n")
	wantParts(t, doc, `"standby":{"token":{"label":"standby"`, `"missing":[],"left":[]`)
	if found.Standby.Token.Serial == found.Token.Serial || !strings.Contains(text, "\nkeys in use\t2\n") {
		t.Errorf("the tokens are mixed up:\n%s", text)
	}

	nameNone()
	b.access = hsm.Serve
	p := b.mustOpen(t)
	if err := p.Delete(t.Context(), "destroyed"); err != nil {
		t.Fatal(err)
	}
	create(t, p, "lacking")
	mustClose(t, p)
	b.nameStandby(t, clone.Label)
	found, text, _ = b.inspect(t)
	if err := found.Refusal(); err == nil || !strings.Contains(err.Error(), "lacks copies of keys") {
		t.Errorf("a standby that lacks a key is not refused: %v", err)
	}
	wantParts(t, text, "standby lacks copies\t1: lacking@0\n", "copies of destroyed keys\t1: destroyed@0\n")

	nameNone()
	b.nameStandby(t, "nosuch")
	found, text, doc = b.inspect(t)
	if err := found.Refusal(); err == nil || found.Standby.Token != nil || !strings.Contains(doc, `"problem":"`) {
		t.Errorf("a standby that does not exist: %v\n%s", err, doc)
	}
	wantParts(t, text, "standby cannot be used\t", `token "nosuch"`)
}
