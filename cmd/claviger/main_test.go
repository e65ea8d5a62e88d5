package main

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"

	"claviger/internal/pgtest"
	"claviger/internal/softhsm"
)

// TestMain makes this binary the command claviger for scripts, and for TestKill a process that migrates.
func TestMain(m *testing.M) {
	if os.Getenv(envMigrateConf) != "" {
		os.Exit(migrateAndDie())
	}
	if os.Getenv(envSayDumpable) != "" {
		os.Exit(sayDumpable())
	}
	// A program with the race detector sleeps for a second at its end, and the scripts run hundreds of programs.
	if os.Getenv(envRace) == "" {
		os.Setenv(envRace, "atexit_sleep_ms=0")
	}
	testscript.Main(served{m}, map[string]func(){"claviger": func() { os.Exit(run(os.Args[1:])) }})
}

// envRace holds the options of the race detector.
const envRace = "GORACE"

// served runs tests that share a PostgreSQL server.
type served struct{ *testing.M }

func (s served) Run() int { return pgtest.Main(s.M.Run) }

// TestScripts runs testdata/*.txtar, each with its own SoftHSM token.
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
			images, err := filepath.Abs("../../census/testdata")
			if err != nil {
				return err
			}
			env.Setenv("IMAGES", images)
			return nil
		}})
}
