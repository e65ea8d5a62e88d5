package audit_test

import (
	"bytes"
	"context"
	"fmt"
	"log"
	"os"
	"path/filepath"

	"claviger"
	"claviger/audit"
)

// A chain is written, verified, changed by one letter, and verified again.
func ExampleVerify() {
	dir, err := os.MkdirTemp("", "audit")
	if err != nil {
		log.Fatal(err)
	}
	defer os.RemoveAll(dir)
	path := filepath.Join(dir, "audit.json")
	file, err := audit.OpenExclusiveFile(path, audit.Rotation{})
	if err != nil {
		log.Fatal(err)
	}
	ctx := context.Background()
	chain, err := audit.OpenChain(ctx, audit.ChainConfig{Node: "kms1", File: file})
	if err != nil {
		log.Fatal(err)
	}
	alice := claviger.Caller{Principal: claviger.Principal{Name: "alice", Short: "alice"}}
	chain.Log(ctx, audit.Event{Status: audit.OK, Op: audit.CreateKey, Key: "finance", Caller: alice})
	if err := chain.Close(); err != nil {
		log.Fatal(err)
	}

	report, err := audit.Verify([]string{path}, audit.VerifyConfig{})
	fmt.Println(report.Node, len(report.Findings), err)

	text, err := os.ReadFile(path)
	if err != nil {
		log.Fatal(err)
	}
	forged := bytes.ReplaceAll(text, []byte("alice"), []byte("carol"))
	if err := os.WriteFile(path, forged, 0o600); err != nil {
		log.Fatal(err)
	}
	report, err = audit.Verify([]string{path}, audit.VerifyConfig{})
	fmt.Println(report.Node, len(report.Findings), err)
	// Output:
	// kms1 0 <nil>
	// kms1 1 <nil>
}
