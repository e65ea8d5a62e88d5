package jceks

import (
	"bytes"
	"context"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"claviger/keystore"
	"claviger/provider"
	"claviger/provider/providertest"
)

// fewIterations keeps the tests fast. It is the smallest number that Java reads and writes.
const fewIterations = keystore.MinIterations

func env(password string) provider.Env {
	return provider.Env{
		Get: func(string) (string, bool) { return "", false },
		Getenv: func(name string) string {
			if name == passwordEnv {
				return password
			}
			return ""
		},
		Log: slog.New(slog.DiscardHandler),
	}
}

func openFile(t testing.TB, path, password string) *Provider {
	t.Helper()
	p, err := open(context.Background(), "jceks://file@"+path, env(password))
	if err != nil {
		t.Fatal(err)
	}
	p.iterations = fewIterations
	t.Cleanup(func() { _ = p.Close() })
	return p
}

// conformingNames returns the suite's odd names without those with upper case, which Hadoop refuses, and without those
// with '@'. TestAtInName tests these.
func conformingNames() []string {
	var names []string
	for _, n := range providertest.DefaultNames {
		if n == strings.ToLower(n) {
			names = append(names, n)
		}
	}
	return names
}

// TestProvider: the provider passes the suite of all providers.
func TestProvider(t *testing.T) {
	path := func(t *testing.T) string { return filepath.Join(t.TempDir(), "kms.keystore") }
	paths := map[provider.Provider]string{}
	providertest.Run(t, providertest.Suite{
		New: func(t *testing.T) provider.Provider {
			f := path(t)
			p := openFile(t, f, "password")
			paths[p] = f
			return p
		},
		Reopen: func(t *testing.T, p provider.Provider) provider.Provider {
			f := paths[p]
			if err := p.Close(); err != nil {
				t.Errorf("Close: %v", err)
			}
			again := openFile(t, f, "password")
			paths[again] = f
			return again
		},
		Objects: func(t *testing.T, p provider.Provider) int {
			data, err := os.ReadFile(paths[p])
			if os.IsNotExist(err) {
				return 0
			}
			if err != nil {
				t.Fatal(err)
			}
			s, err := keystore.ParseJCEKS(data, []byte("password"))
			if err != nil {
				t.Fatal(err)
			}
			n := 0
			for _, alias := range s.Aliases() {
				if strings.Contains(alias, "@") {
					n++
				}
			}
			return n
		},
		ForgetsNumbers: true,
		TakesMaterial:  true,
		ShowsMaterial:  true,
		Names:          conformingNames(),
		Refused:        []string{"UPPER", "ümlÄut", "not\xffutf-8", strings.Repeat("x", 1<<16)},
	})
}

// dump prints a keystore in the format of testdata/java/HadoopKeys.java.
func dump(t *testing.T, p *Provider, extra ...string) string {
	t.Helper()
	names, err := p.Keys(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	names = append(extra, names...)
	slices.Sort(names)
	return dumpKeys(t, p, slices.Compact(names))
}

// TestReadHadoop reads a keystore that Hadoop wrote, and compares all of it with Hadoop's own dump.
func TestReadHadoop(t *testing.T) {
	path := filepath.Join(t.TempDir(), "hadoop.jceks")
	copyFile(t, "testdata/hadoop.jceks", path)
	want, err := os.ReadFile("testdata/hadoop.dump")
	if err != nil {
		t.Fatal(err)
	}
	p := openFile(t, path, "secretpw")
	if got := dump(t, p, "at@1"); got != string(want) {
		t.Errorf("read\n%s\nHadoop says\n%s", got, want)
	}
	after, err := os.ReadFile(path)
	before, _ := os.ReadFile("testdata/hadoop.jceks")
	if err != nil || !bytes.Equal(after, before) {
		t.Errorf("reading changed the file, %v", err)
	}
}
