// Package demo runs the whole procedure of Cloudera's page "Migrating from a Key Trustee KMS to an HSM KMS" on one
// machine. It starts a Key Trustee Server with a Key HSM on a SoftHSM token, a Key Trustee KMS with keys and EDEKs in
// use, and an HSM KMS on another token, which migrates the keys at its start. Then it re-encrypts the EDEKs and removes
// the source. The demo acts as the administrator, the NameNode and the users. The servers are processes of the same
// binary. Each step prints what it does and what it found. A wrong result ends the demo with an error.
package demo

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"claviger"
	"claviger/provider"
	"claviger/secret"
)

// KMS is a Hadoop KMS, used through its REST protocol.
type KMS interface {
	provider.Provider
	provider.EDEKService
}

// Options configure a demo.
type Options struct {
	Exe   string    // the claviger binary; each server is a process of it
	Dir   string    // an empty folder for all files of the demo
	Out   io.Writer // gets the text of the steps
	EDEKs int       // number of EDEKs of each zone at the source
	// NewToken makes a SoftHSM token with that label in dir.
	NewToken func(dir, label string) (Token, error)
	// Connect opens a KMS as the given user.
	Connect func(ctx context.Context, uri, user string) (KMS, error)
}

// Token is a token that was made for the demo.
type Token struct {
	Module  string   // path of the PKCS#11 library
	Label   string   // of the token
	PINFile string   // file with the user's PIN
	Env     []string // environment that a process needs to find the token, as NAME=value
}

// file is one file in an encryption zone, without its content: its EDEK, and the DEK that encrypts its content.
type file struct {
	zone string
	edek claviger.EDEK
	dek  secret.Bytes
}

// run is the state of one demo.
type run struct {
	Options
	began  time.Time
	token  Token // of the HSM KMS
	keyhsm *server
	trust  *server // the Key Trustee Server
	secret string  // of the organization at the Key Trustee Server
	source *server
	hsm    *server
	files  []file
	// deleted is a file that was deleted before the re-encryption, and that a snapshot still holds.
	deleted     file
	transaction uint64           // of the last fsimage
	reencrypted map[string]times // by zone
}

// Users of the demo.
const (
	namenode = "hdfs"  // makes and re-encrypts EDEKs; may not decrypt
	reader   = "alice" // opens files
	keyadmin = "keyadmin"
)

// zones are the two encryption zones of the source. bits is the length of the key.
var zones = []struct {
	name string
	bits int
	desc string
	team string
}{
	{"finance", 256, "ledgers since 2014", "finance"},
	{"web-logs", 128, "", "web"},
}

// Run runs the demo. It stops the processes that it has started before it returns.
func Run(ctx context.Context, o Options) (err error) {
	r := &run{Options: o, began: time.Now(), reencrypted: map[string]times{}}
	defer func() {
		stopErr := errors.Join(r.hsm.stop(), r.source.stop(), r.trust.stop(), r.keyhsm.stop())
		if err == nil {
			err = stopErr
		}
		for _, f := range r.files {
			f.dek.Wipe()
		}
		r.deleted.dek.Wipe()
	}()
	steps := []struct {
		title string
		do    func(context.Context) error
	}{
		{"Before: a Key Trustee Server, its deposits wrapped by a Key HSM on a token", r.stepTrustee},
		{"Before: a Key Trustee KMS in use, with the keys of two zones and their files", r.stepSource},
		{"Steps 1-2: kts-site.xml and the .keytrustee folder", r.stepTrusteeFiles},
		{"Steps 3-4: trust the TLS certificate of the Key Trustee Server", r.stepTrust},
		{"Step 5: the configuration of the HSM KMS, and its token", r.stepConfigure},
		{"Step 6: plan, then set the migration for this node", r.stepPlan},
		{"Steps 7-8: cache sizes, and ZooKeeper under Kerberos", r.stepCaches},
		{"Steps 9-10: start the HSM KMS, which migrates at its start, and point HDFS at it", r.stepStart},
		{"After the migration: the keys are the same, the versions are new", r.stepCompare},
		{"Old files open with the trustee's keys, new files with keys of the HSM", r.stepServe},
		{"Re-encryption, in batches, as a NameNode does it", r.stepReencrypt},
		{"Step 11: initiatemigration off; can the source be removed?", r.stepStatus},
		{"May the source go? A verdict by an image of the namespace", r.stepVerdict},
		{"The proof for an auditor: a signed file, which the public key verifies", r.stepEvidence},
		{"KT KMS, trustee and Key HSM stop; every file still opens", r.stepSourceGone},
		{"Steps 12-14: clean up, and serve from the HSM alone", r.stepFinish},
	}
	for _, s := range steps {
		fmt.Fprintf(o.Out, "\n== %s\n", s.title)
		if err := s.do(ctx); err != nil {
			return fmt.Errorf("%s: %w", s.title, err)
		}
	}
	return r.report(ctx)
}

// printf prints one line about a step.
func (r *run) printf(format string, args ...any) {
	fmt.Fprintf(r.Out, "   "+format+"\n", args...)
}

// connect opens a server's KMS as a user.
func (r *run) connect(ctx context.Context, s *server, user string) (KMS, error) {
	k, err := r.Connect(ctx, s.uri, user)
	if err != nil {
		return nil, fmt.Errorf("%s as %s: %w", s.name, user, err)
	}
	return k, nil
}

// as calls f with a connection of a user to s.
func (r *run) as(ctx context.Context, s *server, user string, f func(KMS) error) error {
	k, err := r.connect(ctx, s, user)
	if err != nil {
		return err
	}
	defer k.Close() //nolint:errcheck // closing a connection loses no data
	return f(k)
}

// openAll opens every file at s as the reader, and compares the DEKs.
func (r *run) openAll(ctx context.Context, s *server) error {
	return r.as(ctx, s, reader, func(k KMS) error {
		began := time.Now()
		for zone, edeks := range r.byZone() {
			deks, err := k.Unwrap(ctx, zone, "", edeks)
			if err != nil {
				return fmt.Errorf("%s opens %d files of zone %s at the %s: %w", reader, len(edeks), zone, s.name, err)
			}
			i := 0
			for _, f := range r.files {
				if f.zone != zone {
					continue
				}
				if !f.dek.Equal(deks[i]) {
					return fmt.Errorf("file %d of zone %s, EDEK of %s: the %s returns another DEK than the DEK "+
						"that encrypts the file", i, zone, f.edek.Version, s.name)
				}
				deks[i].Wipe()
				i++
			}
		}
		r.printf("%s opened all %d files at the %s in %v: each DEK is the DEK that encrypts the file", reader,
			len(r.files), s.name, since(began))
		return nil
	})
}

// byZone returns the EDEKs of the files by zone, in the order of r.files.
func (r *run) byZone() map[string][]claviger.EDEK {
	m := map[string][]claviger.EDEK{}
	for _, f := range r.files {
		m[f.zone] = append(m[f.zone], f.edek)
	}
	return m
}

// write makes n new files in a zone at s. The NameNode generates the EDEKs, and the reader opens them.
func (r *run) write(ctx context.Context, s *server, zone string, n int) error {
	var edeks []claviger.EDEK
	err := r.as(ctx, s, namenode, func(k KMS) (err error) {
		edeks, err = k.Generate(ctx, zone, n)
		return err
	})
	if err != nil {
		return err
	}
	return r.as(ctx, s, reader, func(k KMS) error {
		deks, err := k.Unwrap(ctx, zone, "", edeks)
		if err != nil {
			return err
		}
		for i := range edeks {
			r.files = append(r.files, file{zone: zone, edek: edeks[i], dek: deks[i]})
		}
		return nil
	})
}

// versions counts the files of a zone by the key version that wraps them.
func (r *run) versions(zone string) map[string]int {
	m := map[string]int{}
	for _, f := range r.files {
		if f.zone == zone {
			m[f.edek.Version]++
		}
	}
	return m
}

// since returns the time after t, rounded for the output.
func since(t time.Time) time.Duration { return time.Since(t).Round(100 * time.Microsecond) }

// conf writes a configuration folder.
func (r *run) conf(name string, files map[string]properties) (string, error) {
	dir := filepath.Join(r.Dir, name)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return "", err
	}
	for f, props := range files {
		if err := os.WriteFile(filepath.Join(dir, f), props.xml(), 0o600); err != nil {
			return "", err
		}
	}
	return dir, nil
}
