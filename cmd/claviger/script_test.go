package main

import (
	"context"
	"errors"
	"log/slog"
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

// scriptCommands are what scripts can say beside testscript's own words.
var scriptCommands = map[string]func(ts *testscript.TestScript, neg bool, args []string){
	"exits": scriptExits,
	"await": scriptAwait,
	"key":   scriptKey,
	"unkey": scriptUnkey,
	// Of the audit log:
	"appears": scriptAppears,
	"changed": scriptChanged,
	// Of the Key Trustee Server:
	"register": scriptRegister,
	"deposit":  scriptDeposit,
}

// scriptAppears waits until a file is there and holds something: appears FILE.
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

// scriptExits is exec, with the exit status that is expected: exits 3 claviger
// migrate plan ...
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
			return
		}
		time.Sleep(20 * time.Millisecond)
	}
	ts.Fatalf("%s was not written", args[0])
}

// scriptKey makes a key at a KMS: key URI NAME BITS VERSIONS.
func scriptKey(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 4 {
		ts.Fatalf("usage: key URI NAME BITS VERSIONS")
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
	ts.Check(errors.Join(err, k.Close()))
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
