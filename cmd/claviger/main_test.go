package main

import (
	"os"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"
)

// TestMain lets scripts call the real main as the command claviger.
func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){"claviger": func() { os.Exit(run(os.Args[1:])) }})
}

// TestScripts runs testdata/*.txtar.
func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{Dir: "testdata", RequireExplicitExec: true})
}
