package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"claviger"
	"claviger/internal/softhsm"
	"claviger/kms"
	"claviger/kms/kmstest"
	"claviger/migrate"
	"claviger/pkcs11"
	"claviger/provider"
	"claviger/provider/hsm"
	"claviger/provider/jceks"
)

// Environment variables that make this test binary a process that migrates: the configuration folder; the step at which
// it kills itself (0: none); the latest time after its first step at which it does so (0s: never); the number of keys
// that it imports in parallel.
const (
	envMigrateConf     = "CLAVIGER_TEST_MIGRATE_CONF"
	envMigrateKill     = "CLAVIGER_TEST_MIGRATE_KILL"
	envMigrateAfter    = "CLAVIGER_TEST_MIGRATE_AFTER"
	envMigrateParallel = "CLAVIGER_TEST_MIGRATE_PARALLEL"
)

// afterwards is the state that the process finds after its run.
type afterwards struct {
	Steps   []string
	State   migrate.State
	Runs    int
	Keys    []claviger.Metadata
	Objects int // AES keys in the HSM
	// Versions of each key, in order, according to the provider and to the journal.
	Versions, Journal map[string][]string
}

// migrateAndDie migrates with the configuration in the environment and with the real parts of the program. It returns
// the exit status.
func migrateAndDie() int {
	if err := migrateByEnv(context.Background(), os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return exitFailed
	}
	return exitOK
}

func migrateByEnv(ctx context.Context, out io.Writer) (err error) {
	killAt, err := strconv.Atoi(os.Getenv(envMigrateKill))
	if err != nil {
		return err
	}
	after, err := time.ParseDuration(os.Getenv(envMigrateAfter))
	if err != nil {
		return err
	}
	parallel, err := strconv.Atoi(os.Getenv(envMigrateParallel))
	if err != nil {
		return err
	}
	svc, err := kms.Open(ctx, os.Getenv(envMigrateConf), "claviger migrate run", hsm.Serve,
		slog.New(slog.DiscardHandler))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, svc.Close()) }()
	var found afterwards
	engine, err := svc.Engine(ctx, migrate.Config{Versions: migrate.All, Parallel: parallel,
		OnStep: func(key, step string) error {
			found.Steps = append(found.Steps, key+": "+step)
			if len(found.Steps) == 1 && after > 0 {
				time.AfterFunc(after, die)
			}
			if len(found.Steps) == killAt {
				die()
			}
			return nil
		}})
	if err != nil {
		return err
	}
	result, err := engine.Run(ctx)
	if err != nil {
		return err
	}
	found.State = result.Run.State
	if err := found.readBack(ctx, svc, engine); err != nil {
		return err
	}
	return json.NewEncoder(out).Encode(found)
}

// die ends this process at once, like a power failure.
func die() {
	if err := syscall.Kill(os.Getpid(), syscall.SIGKILL); err != nil {
		panic(err)
	}
	select {} // until the signal arrives
}

// readBack reads everything back, and encrypts with each version in the HSM.
func (a *afterwards) readBack(ctx context.Context, svc *kms.Service, engine *migrate.Engine) error {
	p := svc.Primary.(*hsm.Provider)
	names, err := p.Keys(ctx)
	if err != nil {
		return err
	}
	slices.Sort(names)
	ms, err := p.Metadata(ctx, names...)
	if err != nil {
		return err
	}
	a.Versions, a.Journal = map[string][]string{}, map[string][]string{}
	for _, m := range ms {
		a.Keys = append(a.Keys, *m)
		vs, err := p.Versions(ctx, m.Name)
		if err != nil {
			return err
		}
		for _, v := range vs {
			a.Versions[m.Name] = append(a.Versions[m.Name], v.Name)
			if err := p.EncryptBlocks(ctx, v.Name, make([]byte, 16)); err != nil {
				return err
			}
		}
	}
	objects, err := p.Objects(ctx)
	if err != nil {
		return err
	}
	for _, o := range objects {
		if o.Bits == 0 && o.ID == "" {
			// SoftHSM leaves a file of an object without a key and without a name, if the process is killed in
			// C_GenerateKey.
			continue
		}
		if o.Mark != hsm.InUse {
			return fmt.Errorf("the HSM holds an object that no version uses: %+v", o)
		}
		a.Objects++
	}
	standing, err := engine.Status(ctx)
	if err != nil {
		return err
	}
	a.Runs = len(standing.Runs)
	for _, k := range standing.Keys {
		for _, v := range k.Versions {
			a.Journal[k.Key] = append(a.Journal[k.Key], v.Target)
		}
	}
	return nil
}

// site is a configuration folder with a new token and a new metastore. Several sites share a source.
type site struct {
	dir   string
	token softhsm.Token
}

func newSite(t *testing.T, source string) *site {
	t.Helper()
	s := &site{dir: t.TempDir()}
	var err error
	if s.token, err = softhsm.Create(filepath.Join(s.dir, "token"), "claviger-kill"); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(s.dir, "luna.keystore")
	if err := pkcs11.WriteKeystoreFile(file, pkcs11.FileConfig{Module: s.token.Module, Token: s.token.Label,
		PINFile: s.token.PINFile}); err != nil {
		t.Fatal(err)
	}
	kmstest.WriteSite(t, s.dir, map[string]string{
		"hadoop.kms.key.provider.uri":                     "cloudera.hsmkp://file@" + file,
		"hadoop.kms.key.provider.reencryption.source.uri": source,
		"claviger.metastore.uri":                          "sqlite://" + filepath.Join(s.dir, "claviger.db"),
	})
	return s
}

// processTimeout is how long one process may run. It needs much less, also on a busy machine.
const processTimeout = time.Minute

// process migrates in its own process, which kills itself at the step killAt. If the run never reaches that step,
// process returns the state after the run.
func (s *site) process(t *testing.T, killAt, parallel int) *afterwards {
	t.Helper()
	return s.start(t, killAt, 0, parallel)
}

func (s *site) start(t *testing.T, killAt int, after time.Duration, parallel int) (found *afterwards) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), processTimeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, os.Args[0])
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	cmd.Env = append(os.Environ(), s.token.Env...)
	cmd.Env = append(cmd.Env, envMigrateConf+"="+s.dir, fmt.Sprintf("%s=%d", envMigrateKill, killAt),
		fmt.Sprintf("%s=%v", envMigrateAfter, after), fmt.Sprintf("%s=%d", envMigrateParallel, parallel))
	err := cmd.Run()
	var exit *exec.ExitError
	if (killAt > 0 || after > 0) && ctx.Err() == nil && errors.As(err, &exit) {
		if status, ok := exit.Sys().(syscall.WaitStatus); ok && status.Signal() == syscall.SIGKILL {
			return nil
		}
	}
	if err != nil {
		t.Fatalf("killed at %d: %v\n%s", killAt, err, errs.Bytes())
	}
	found = new(afterwards)
	if err := json.Unmarshal(out.Bytes(), found); err != nil {
		t.Fatalf("%v in %q", err, out.Bytes())
	}
	return found
}

// killSource serves the keys to migrate from a KMS in this process: keys of each length, with one and with several
// versions, with and without a description, and with an odd name.
func killSource(t *testing.T) (uri string, keys []claviger.Metadata) {
	t.Helper()
	dir := t.TempDir()
	keystore := "jceks://file@" + filepath.Join(dir, "kms.keystore")
	none := func(string) (string, bool) { return "", false }
	p, err := jceks.Open(t.Context(), keystore, provider.Env{Get: none,
		Getenv: func(string) string { return "" }, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	ledgers, born := "ledgers since 2014", time.Date(2014, 5, 6, 7, 8, 9, 123e6, time.UTC)
	keys = []claviger.Metadata{
		{Name: "finance", Cipher: claviger.DefaultCipher, BitLength: 256, Description: &ledgers, Created: born,
			Attributes: map[string]string{"team": "finance", claviger.ACLNameAttribute: "finance"}, Versions: 3},
		{Name: "hr of 'us'", Cipher: claviger.DefaultCipher, BitLength: 192, Created: born.Add(time.Hour),
			Attributes: map[string]string{claviger.ACLNameAttribute: "hr of 'us'"}, Versions: 2},
		{Name: "web-logs", Cipher: claviger.DefaultCipher, BitLength: 128, Created: born.Add(2 * time.Hour),
			Attributes: map[string]string{claviger.ACLNameAttribute: "web-logs"}, Versions: 1},
	}
	for _, m := range keys {
		if _, err := p.(provider.Importer).Import(t.Context(), m, m.Versions, 0, nil); err != nil {
			t.Fatal(err)
		}
	}
	if err := p.Close(); err != nil {
		t.Fatal(err)
	}
	kmstest.WriteSite(t, dir, map[string]string{
		"hadoop.kms.key.provider.uri":         keystore,
		"hadoop.kms.http.host":                "127.0.0.1",
		"hadoop.kms.key.authorization.enable": "false",
		"claviger.audit.file":                 filepath.Join(dir, "audit.log"),
	})
	return "kms://" + strings.Replace(serve(t, dir), "://", "@", 1), keys
}

// check compares the end of a resumed run with the end of a run without a kill.
func (a *afterwards) check(t *testing.T, want *afterwards) {
	t.Helper()
	if a.State != migrate.Complete || a.Runs != 1 {
		t.Errorf("the run is %s, and the journal has %d runs", a.State, a.Runs)
	}
	if a.Objects != want.Objects {
		t.Errorf("%d objects in the HSM; without a kill there are %d", a.Objects, want.Objects)
	}
	if !reflect.DeepEqual(a.Keys, want.Keys) {
		t.Errorf("keys\n%+v\nwithout a kill\n%+v", a.Keys, want.Keys)
	}
	if !reflect.DeepEqual(a.Journal, a.Versions) {
		t.Errorf("versions are %v; in the journal %v", a.Versions, a.Journal)
	}
	for _, m := range want.Keys {
		if 2*len(a.Versions[m.Name]) != m.Versions { // the same number as at the source, with the next version numbers
			t.Errorf("key %s counts %d versions and has %v", m.Name, m.Versions, a.Versions[m.Name])
		}
	}
}

// TestKill kills the migrating process with SIGKILL at each step that it makes durable, with a real token and a real
// metastore. The next process continues and is killed too. The one after that finishes. Then there are the same keys,
// and the same number of objects in the HSM, as after a run without a kill.
func TestKill(t *testing.T) {
	source, keys := killSource(t)
	want := newSite(t, source).process(t, 0, 1)
	for i := range keys {
		keys[i].Versions *= 2
	}
	if !reflect.DeepEqual(want.Keys, keys) || want.Objects != 6 {
		t.Fatalf("without a kill: %d objects, keys\n%+v\nwant\n%+v", want.Objects, want.Keys, keys)
	}
	want.check(t, want)
	for _, step := range []string{": begun", "finance: planned", "finance: importing", "finance: intent",
		"finance: generated 2 of 3", "finance: committed", "finance: done", ": complete"} {
		if !slices.Contains(want.Steps, step) {
			t.Errorf("no step %q in %q", step, want.Steps)
		}
	}
	for i, step := range want.Steps {
		t.Run(fmt.Sprintf("%02d %s", i+1, step), func(t *testing.T) {
			t.Parallel()
			s := newSite(t, source)
			if s.process(t, i+1, 1) != nil {
				t.Fatal("the process was not killed")
			}
			found := s.process(t, 4, 1)
			if found == nil {
				found = s.process(t, 0, 1)
			}
			found.check(t, want)
		})
	}
}

// TestKillSideBySide kills processes that import all keys in parallel, until one of them finishes. Each killed process
// leaves several unfinished keys.
func TestKillSideBySide(t *testing.T) {
	source, _ := killSource(t)
	want := newSite(t, source).process(t, 0, 4)
	for first := 8; first <= 14; first += 6 {
		t.Run(strconv.Itoa(first), func(t *testing.T) {
			t.Parallel()
			s := newSite(t, source)
			// Each later process runs a little longer, so that one of them finishes.
			for killAt := first; ; killAt++ {
				if killAt > first+len(want.Steps) {
					t.Fatal("no process finished")
				}
				if found := s.process(t, killAt, 4); found != nil {
					found.check(t, want)
					return
				}
			}
		})
	}
}

// TestKillAnytime kills processes at arbitrary times, also within HSM calls and writes, each a little later than the
// one before, until one of them finishes. No process is killed before its first step: SoftHSM can lose the token if it
// is killed in C_Login.
func TestKillAnytime(t *testing.T) {
	source, _ := killSource(t)
	want := newSite(t, source).process(t, 0, 4)
	for i := range 4 {
		t.Run(strconv.Itoa(i), func(t *testing.T) {
			t.Parallel()
			s := newSite(t, source)
			const pace = 4 * time.Millisecond
			for after := pace + rand.N(pace); ; after += pace + rand.N(2*pace) {
				if after > processTimeout/2 {
					t.Fatal("no process finished")
				}
				if found := s.start(t, 0, after, 4); found != nil {
					found.check(t, want)
					return
				}
			}
		})
	}
}
