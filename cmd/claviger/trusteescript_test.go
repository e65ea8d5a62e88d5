package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"os"
	"strings"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"claviger"
	"claviger/trustee"
)

// trusteeClient returns a client of the server in the variables URL and CERT. Its identity is in a folder; if there is
// none, it is made.
func trusteeClient(ctx context.Context, ts *testscript.TestScript, dir string) (*trustee.Client, *trustee.Identity) {
	folder, err := trustee.LoadFolder(ts.MkAbs(dir))
	if _, none := os.Stat(ts.MkAbs(dir)); errors.Is(none, os.ErrNotExist) {
		var id *trustee.Identity
		id, err = trustee.NewIdentity("keytrustee", "client", "kms@localhost", 2048, time.Now())
		ts.Check(err)
		folder, err = trustee.NewFolder(ts.MkAbs(dir), id)
	}
	ts.Check(err)
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM([]byte(ts.ReadFile(ts.Getenv("CERT")))) {
		ts.Fatalf("no certificate in %s", ts.Getenv("CERT"))
	}
	cfg := trustee.ClientConfig{Identity: folder.Identity,
		Servers: []trustee.Endpoint{{URL: strings.TrimSpace(ts.ReadFile(ts.Getenv("URL")))}},
		TLS:     &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12}}
	c, err := trustee.NewClient(cfg)
	ts.Check(err)
	defer c.Close()
	cfg.Servers[0].Server, err = c.Introduce(ctx, cfg.Servers[0].URL)
	ts.Check(err)
	c, err = trustee.NewClient(cfg)
	ts.Check(err)
	return c, folder.Identity
}

// expect ends a command of a script. If it is negated, the error must be of kind Denied.
func expect(ts *testscript.TestScript, neg bool, err error) {
	if neg && !claviger.Is(err, claviger.Denied) {
		ts.Fatalf("should have been denied, not %v", err)
	}
	if !neg {
		ts.Check(err)
	}
}

// scriptRegister registers a client, and sets FINGERPRINT to its fingerprint: register FOLDER ORG SECRET
// active|pending.
func scriptRegister(ts *testscript.TestScript, neg bool, args []string) {
	if len(args) != 4 {
		ts.Fatalf("usage: [!] register FOLDER ORG SECRET active|pending")
	}
	ctx, cancel := context.WithTimeout(context.Background(), processTimeout)
	defer cancel()
	c, id := trusteeClient(ctx, ts, args[0])
	defer c.Close()
	ts.Setenv("FINGERPRINT", id.Fingerprint())
	active, err := c.Register(ctx, args[1], args[2], false)
	expect(ts, neg, err)
	if !neg && active != (args[3] == "active") {
		ts.Fatalf("active is %v", active)
	}
}

// scriptDeposit makes a sealed deposit with a text, and reads it back: deposit FOLDER LABEL TEXT. Without TEXT it only
// reads a deposit, and does not check the content.
func scriptDeposit(ts *testscript.TestScript, neg bool, args []string) {
	if len(args) < 2 || len(args) > 3 {
		ts.Fatalf("usage: [!] deposit FOLDER LABEL [TEXT]")
	}
	ctx, cancel := context.WithTimeout(context.Background(), processTimeout)
	defer cancel()
	c, id := trusteeClient(ctx, ts, args[0])
	defer c.Close()
	if len(args) == 2 {
		_, err := c.Find(ctx, args[1])
		expect(ts, neg, err)
		return
	}
	sealed, err := id.Seal([]byte(args[2]), time.Now())
	ts.Check(err)
	uuid, err := c.Put(ctx, trustee.Deposit{Label: args[1], Content: sealed}, "")
	expect(ts, neg, err)
	if neg {
		return
	}
	d, err := c.Get(ctx, uuid)
	ts.Check(err)
	text, err := id.Open(d.Content, time.Now())
	ts.Check(err)
	if string(text) != args[2] {
		ts.Fatalf("%q came back for %q", text, args[2])
	}
}
