package jceks

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"claviger"
	"claviger/provider"
)

// workerEnv makes the test binary a process that makes keys in a keystore, and prints each name after Create has
// returned. Its value is the path, a prefix and the number of keys.
const workerEnv = "CLAVIGER_TEST_JCEKS_WORKER"

func TestMain(m *testing.M) {
	if job := os.Getenv(workerEnv); job != "" {
		if err := work(strings.Split(job, "|")); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

func work(job []string) error {
	p, err := open(context.Background(), "jceks://file@"+job[0], env(hadoopPassword))
	if err != nil {
		return err
	}
	p.iterations = fewIterations
	n, err := strconv.Atoi(job[2])
	if err != nil {
		return err
	}
	for i := range n {
		name := fmt.Sprintf("%s%d", job[1], i)
		if _, err := p.Create(context.Background(), provider.Spec{Name: name, Cipher: claviger.DefaultCipher,
			BitLength: 128}); err != nil {
			return err
		}
		fmt.Println(name)
	}
	return p.Close()
}

func worker(t *testing.T, path, prefix string, n int) *exec.Cmd {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), os.Args[0])
	cmd.Env = append(os.Environ(), fmt.Sprintf("%s=%s|%s|%d", workerEnv, path, prefix, n))
	return cmd
}

// TestProcesses checks that no key is lost if several processes write the same file at the same time, and that an open
// provider sees all keys.
func TestProcesses(t *testing.T) {
	path := filepath.Join(t.TempDir(), "kms.keystore")
	p := openFile(t, path, hadoopPassword)
	const processes, keys = 3, 8
	var wg sync.WaitGroup
	for i := range processes {
		cmd := worker(t, path, fmt.Sprintf("p%d-", i), keys)
		wg.Go(func() {
			if out, err := cmd.CombinedOutput(); err != nil {
				t.Errorf("%v\n%s", err, out)
			}
		})
	}
	for i := range keys {
		mustCreate(t, p, fmt.Sprintf("own-%d", i))
	}
	wg.Wait()
	names, err := p.Keys(t.Context())
	if err != nil || len(names) != (processes+1)*keys {
		t.Fatalf("%d keys, want %d, %v", len(names), (processes+1)*keys, err)
	}
	list, err := p.Metadata(t.Context(), names...)
	if err != nil || slices.Contains(list, nil) {
		t.Errorf("a key without metadata, %v", err)
	}
}

// TestKill kills a writing process at random times. Each key that it printed must exist, and the keystore must be
// readable and writable.
func TestKill(t *testing.T) {
	path := filepath.Join(t.TempDir(), "kms.keystore")
	printed := []string{}
	for round := range 6 {
		cmd := worker(t, path, fmt.Sprintf("r%d-", round), 1000)
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		lines := bufio.NewScanner(out)
		for lines.Scan() {
			printed = append(printed, lines.Text())
			if strings.HasPrefix(lines.Text(), fmt.Sprintf("r%d-2", round)) {
				// Kill it during the next key, which takes some milliseconds.
				time.AfterFunc(time.Duration(round)*1700*time.Microsecond, func() { _ = cmd.Process.Kill() })
			}
		}
		if err := cmd.Wait(); err == nil {
			t.Error("the process was not killed")
		}
		p := openFile(t, path, hadoopPassword)
		names, err := p.Keys(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		for _, name := range printed {
			if !slices.Contains(names, name) {
				t.Errorf("round %d: key %q was made and does not exist", round, name)
			}
		}
		name := fmt.Sprintf("after-%d", round)
		mustCreate(t, p, name)
		printed = append(printed, name)
		if err := p.Close(); err != nil {
			t.Error(err)
		}
	}
	if exists(path+"_OLD") || exists(path+"_NEW") || slices.ContainsFunc(list(t, filepath.Dir(path)),
		func(name string) bool { return strings.Contains(name, ".tmp") }) {
		t.Error("the last write left files behind")
	}
}

// TestTwoProviders checks that a provider sees the changes of another provider of the same file at its next call, even
// if only the material differs.
func TestTwoProviders(t *testing.T) {
	path := filepath.Join(t.TempDir(), "kms.keystore")
	a, b := openFile(t, path, hadoopPassword), openFile(t, path, hadoopPassword)
	first := mustCreate(t, a, "k")
	encrypt := func(p *Provider) []byte {
		t.Helper()
		block := make([]byte, 16)
		if err := p.EncryptBlocks(t.Context(), "k@0", block); err != nil {
			t.Fatal(err)
		}
		return block
	}
	old := encrypt(b)
	if !bytes.Equal(old, encrypt(a)) {
		t.Error("two providers encrypt differently")
	}
	if err := a.Delete(t.Context(), "k"); err != nil {
		t.Fatal(err)
	}
	second := mustCreate(t, a, "k") // k@0 again, another key
	if first.Material.Equal(second.Material) {
		t.Fatal("the new key has the old material")
	}
	if got := encrypt(b); bytes.Equal(got, old) || !bytes.Equal(got, encrypt(a)) {
		t.Error("the other provider still uses the material of a deleted key")
	}
	if _, err := b.Roll(t.Context(), "k", nil); err != nil {
		t.Fatal(err)
	}
	v, err := a.Roll(t.Context(), "k", nil)
	if err != nil || v.Name != "k@2" {
		t.Errorf("%q, %v", v.Name, err)
	}
	if cur, err := b.Current(t.Context(), "k"); err != nil || cur.Name != "k@2" {
		t.Errorf("%q, %v", cur.Name, err)
	}
}

// TestLockHonoursContext checks that a writer that waits for the lock ends with its context.
func TestLockHonoursContext(t *testing.T) {
	path := filepath.Join(t.TempDir(), "kms.keystore")
	p := openFile(t, path, hadoopPassword)
	unlock, err := openFile(t, path, hadoopPassword).file.lock(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	_, err = p.Create(ctx, provider.Spec{Name: "k", Cipher: claviger.DefaultCipher, BitLength: 128})
	if !claviger.Is(err, claviger.Unavailable) {
		t.Errorf("%v, want kind Unavailable", err)
	}
	unlock()
	mustCreate(t, p, "k")
}

func list(t *testing.T, dir string) (names []string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}
