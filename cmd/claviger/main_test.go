package main

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"

	"claviger/internal/pgtest"
	"claviger/internal/softhsm"
)

// TestMain lets scripts call the real main as the command claviger, and
// TestKill start this binary as a process that migrates.
func TestMain(m *testing.M) {
	if os.Getenv(envMigrateConf) != "" {
		os.Exit(migrateAndDie())
	}
	if os.Getenv(envSayDumpable) != "" {
		os.Exit(sayDumpable())
	}
	// A program with the race detector sleeps a second as it ends, and the scripts run
	// hundreds.
	if os.Getenv(envRace) == "" {
		os.Setenv(envRace, "atexit_sleep_ms=0")
	}
	testscript.Main(served{m}, map[string]func(){"claviger": func() { os.Exit(run(os.Args[1:])) }})
}

// envRace holds the options of the race detector.
const envRace = "GORACE"

// served are tests that share a PostgreSQL server.
type served struct{ *testing.M }

func (s served) Run() int { return pgtest.Main(s.M.Run) }

// TestScripts runs testdata/*.txtar, each with a SoftHSM token of its own.
func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{Dir: "testdata", RequireExplicitExec: true, Cmds: scriptCommands,
		Setup: func(env *testscript.Env) error {
			token, err := softhsm.Create(filepath.Join(env.WorkDir, "token"), "script")
			if err != nil {
				return err
			}
			env.Vars = append(env.Vars, token.Env...)
			env.Setenv(envRace, os.Getenv(envRace))
			env.Setenv("MODULE", token.Module)
			env.Setenv("TOKEN", token.Label)
			env.Setenv("PINFILE", token.PINFile)
			return nil
		}})
}
