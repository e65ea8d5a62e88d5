package evidence_test

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"claviger/migrate/evidence"
)

// A site makes a key, and signs a report with it. An auditor verifies the report by the public key.
func Example() {
	if err := signAndVerify(); err != nil {
		fmt.Println(err)
	}
	// Output:
	// verified: true, on host kms1
	// after a change: verified: false
}

func signAndVerify() error {
	dir, err := os.MkdirTemp("", "evidence")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	pair, err := evidence.MakeKey(filepath.Join(dir, "report.key"))
	if err != nil {
		return err
	}
	private, err := evidence.ReadKey(pair.Private)
	if err != nil {
		return err
	}
	r := &evidence.Report{About: evidence.About{Made: time.Now().UTC(), Host: "kms1"}}
	for _, part := range []any{&r.Plan, &r.Status, &r.Journal, &r.Counters, &r.Verification, &r.Censuses, &r.Verdict,
		&r.Keys, &r.Audit} {
		r.RecordMissing(part, "this is an example")
	}
	var report bytes.Buffer
	if _, err := r.Write(&report, private); err != nil {
		return err
	}
	public, err := evidence.ReadPublicKey(pair.Public)
	if err != nil {
		return err
	}
	file := filepath.Join(dir, "report.zip")
	before := os.WriteFile(file, report.Bytes(), 0o600)
	v, err := evidence.Verify(file, public)
	if err = errors.Join(before, err); err != nil {
		return err
	}
	fmt.Printf("verified: %t, on host %s\n", v.Verified, v.Host)
	changed := bytes.Replace(report.Bytes(), []byte("kms1"), []byte("kms2"), 1)
	before = os.WriteFile(file, changed, 0o600)
	v, err = evidence.Verify(file, public)
	if err = errors.Join(before, err); err != nil {
		return err
	}
	fmt.Printf("after a change: verified: %t\n", v.Verified)
	return nil
}
