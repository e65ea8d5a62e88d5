package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"claviger"
	"claviger/provider"
	"claviger/provider/kmsclient"
)

// scriptCommands are the commands of scripts in addition to those of testscript.
var scriptCommands = map[string]func(ts *testscript.TestScript, neg bool, args []string){
	"exits":     scriptExits,
	"confirmed": scriptConfirmed,
	"await":     scriptAwait,
	"key":       scriptKey,
	"unkey":     scriptUnkey,
	"ready":     scriptReady,
	"wrap":      scriptWrap,
	"opens":     scriptOpens,
	// For the audit log:
	"appears": scriptAppears,
	"changed": scriptChanged,
	// For the Key Trustee Server:
	"register": scriptRegister,
	"deposit":  scriptDeposit,
}

// scriptAppears waits until a file exists and is not empty: appears FILE.
func scriptAppears(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: appears FILE")
	}
	for range 1500 {
		if st, err := os.Stat(ts.MkAbs(args[0])); err == nil && st.Size() > 0 {
			return
		}
		time.Sleep(20 * time.Millisecond)
	}
	ts.Fatalf("%s does not appear", args[0])
}

// scriptChanged replaces the first occurrence of a text in a file: changed FILE
// OLD NEW.
func scriptChanged(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 3 {
		ts.Fatalf("usage: changed FILE OLD NEW")
	}
	text := ts.ReadFile(args[0])
	if !strings.Contains(text, args[1]) {
		ts.Fatalf("%s does not hold %q", args[0], args[1])
	}
	ts.Check(os.WriteFile(ts.MkAbs(args[0]), []byte(strings.Replace(text, args[1], args[2], 1)), 0o600))
}

// scriptExits is exec with an expected exit status: exits 3 claviger migrate plan ...
func scriptExits(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: exits STATUS COMMAND...")
	}
	want, err := strconv.Atoi(args[0])
	ts.Check(err)
	status := 0
	err = ts.Exec(args[1], args[2:]...)
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		status = exit.ExitCode()
	} else {
		ts.Check(err)
	}
	if status != want {
		ts.Fatalf("exit status %d, want %d", status, want)
	}
}

// scriptAwait waits until a KMS has written its ready file, and sets a variable
// to its provider URI: await FILE NAME.
func scriptAwait(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 2 {
		ts.Fatalf("usage: await FILE NAME")
	}
	for range 1500 {
		if url, err := os.ReadFile(ts.MkAbs(args[0])); err == nil {
			ts.Setenv(args[1], "kms://"+strings.Replace(strings.TrimSpace(string(url)), "://", "@", 1))
			at, _, _ := strings.Cut(string(url)[strings.LastIndexByte(string(url), ':')+1:], "/")
			ts.Setenv(args[1]+"_PORT", at)
			return
		}
		time.Sleep(20 * time.Millisecond)
	}
	ts.Fatalf("%s was not written", args[0])
}

// scriptKey makes a key at a KMS: key URI NAME BITS VERSIONS. Negated, the KMS must refuse with a message that contains
// TEXT: ! key URI NAME BITS VERSIONS TEXT.
func scriptKey(ts *testscript.TestScript, neg bool, args []string) {
	if !neg && len(args) != 4 || neg && len(args) != 5 {
		ts.Fatalf("usage: key URI NAME BITS VERSIONS, ! key URI NAME BITS VERSIONS TEXT")
	}
	bits, err := strconv.Atoi(args[2])
	ts.Check(err)
	versions, err := strconv.Atoi(args[3])
	ts.Check(err)
	ctx, cancel := context.WithTimeout(context.Background(), processTimeout)
	defer cancel()
	k, err := kmsclient.New(args[0], kmsclient.Options{User: "keyadmin", Log: slog.New(slog.DiscardHandler)})
	ts.Check(err)
	_, err = k.Create(ctx, provider.Spec{Name: args[1], Cipher: claviger.DefaultCipher, BitLength: bits})
	for i := 1; i < versions && err == nil; i++ {
		_, err = k.Roll(ctx, args[1], nil)
	}
	if neg {
		if err == nil || !strings.Contains(err.Error(), args[4]) {
			ts.Fatalf("the KMS said %v, want %q", err, args[4])
		}
		err = nil
	}
	ts.Check(errors.Join(err, k.Close()))
}

// scriptReady checks that a KMS is ready for something: ready URI PURPOSE. Negated, the KMS must not be ready, with an
// answer that contains TEXT: ! ready URI PURPOSE TEXT.
func scriptReady(ts *testscript.TestScript, neg bool, args []string) {
	if !neg && len(args) != 2 || neg && len(args) != 3 {
		ts.Fatalf("usage: ready URI PURPOSE, ! ready URI PURPOSE TEXT")
	}
	base, _, _ := strings.Cut(strings.Replace(strings.TrimPrefix(args[0], "kms://"), "@", "://", 1), "/kms")
	var status int
	var body []byte
	for range 100 { // the server keeps an answer for some seconds
		resp, err := http.Get(base + "/readyz?for=" + args[1]) //nolint:noctx // of a server of this test
		ts.Check(err)
		body, err = io.ReadAll(resp.Body)
		ts.Check(errors.Join(err, resp.Body.Close()))
		if status = resp.StatusCode; (status != http.StatusOK) == neg {
			break
		}
		time.Sleep(200 * time.Millisecond)
	}
	if (status != http.StatusOK) != neg || neg && !strings.Contains(string(body), args[2]) {
		ts.Fatalf("%d %s", status, body)
	}
}

// scriptUnkey deletes a key at a KMS: unkey URI NAME.
func scriptUnkey(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 2 {
		ts.Fatalf("usage: unkey URI NAME")
	}
	ctx, cancel := context.WithTimeout(context.Background(), processTimeout)
	defer cancel()
	k, err := kmsclient.New(args[0], kmsclient.Options{User: "keyadmin", Log: slog.New(slog.DiscardHandler)})
	ts.Check(err)
	ts.Check(k.Delete(ctx, args[1]))
	ts.Check(k.Close())
}

// keptEDEK is an EDEK with its DEK.
type keptEDEK struct {
	EDEK claviger.EDEK
	DEK  []byte
}

// scriptWrap makes an EDEK at a KMS, opens it, and writes both into FILE: wrap URI NAME FILE.
func scriptWrap(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 3 {
		ts.Fatalf("usage: wrap URI NAME FILE")
	}
	ctx, cancel := context.WithTimeout(context.Background(), processTimeout)
	defer cancel()
	k, err := kmsclient.New(args[0], kmsclient.Options{User: "keyadmin", Log: slog.New(slog.DiscardHandler)})
	ts.Check(err)
	edeks, err := k.Generate(ctx, args[1], 1)
	ts.Check(err)
	deks, err := k.Unwrap(ctx, args[1], "", edeks)
	ts.Check(err)
	data, err := json.Marshal(keptEDEK{edeks[0], deks[0]})
	ts.Check(errors.Join(err, k.Close()))
	ts.Check(os.WriteFile(ts.MkAbs(args[2]), data, 0o600))
}

// scriptOpens opens the EDEK that wrap has written; the DEK must be the same: opens URI NAME FILE. Negated, the KMS
// must refuse with a message that contains TEXT: ! opens URI NAME FILE TEXT.
func scriptOpens(ts *testscript.TestScript, neg bool, args []string) {
	if !neg && len(args) != 3 || neg && len(args) != 4 {
		ts.Fatalf("usage: opens URI NAME FILE, ! opens URI NAME FILE TEXT")
	}
	data, err := os.ReadFile(ts.MkAbs(args[2]))
	ts.Check(err)
	var w keptEDEK
	ts.Check(json.Unmarshal(data, &w))
	ctx, cancel := context.WithTimeout(context.Background(), processTimeout)
	defer cancel()
	k, err := kmsclient.New(args[0], kmsclient.Options{User: "keyadmin", Log: slog.New(slog.DiscardHandler)})
	ts.Check(err)
	defer k.Close() //nolint:errcheck // nothing depends on it
	deks, err := k.Unwrap(ctx, args[1], "", []claviger.EDEK{w.EDEK})
	switch {
	case neg && (err == nil || !strings.Contains(err.Error(), args[3])):
		ts.Fatalf("the KMS said %v, want %q", err, args[3])
	case neg:
	case err != nil:
		ts.Fatalf("%s: %v", w.EDEK.Version, err)
	case !bytes.Equal(deks[0], w.DEK):
		ts.Fatalf("%s opens to another DEK", w.EDEK.Version)
	}
}

// scriptConfirmed runs a command that needs a confirmation: first without --confirm, which must end with exit status 3
// and print the digest, then with it. DIGEST is set to the digest. Negated, the confirmed command must do only a part,
// and end with exit status 3.
func scriptConfirmed(ts *testscript.TestScript, neg bool, args []string) {
	if len(args) < 2 {
		ts.Fatalf("usage: [!] confirmed COMMAND...")
	}
	_ = ts.Exec(args[0], args[1:]...) // its exit status is not needed: the digest shows that it was not confirmed
	_, digest, ok := strings.Cut(ts.ReadFile("stderr"), "--confirm ")
	if !ok {
		ts.Fatalf("no digest is printed")
	}
	ts.Setenv("DIGEST", strings.TrimSpace(digest))
	err := ts.Exec(args[0], append(args[1:], "--confirm", strings.TrimSpace(digest))...)
	if !neg {
		ts.Check(err)
	} else if exit := (*exec.ExitError)(nil); !errors.As(err, &exit) || exit.ExitCode() != exitRefused {
		ts.Fatalf("%v, want exit status %d", err, exitRefused)
	}
}
