package drills

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"claviger"
	"claviger/hadoopconf"
	"claviger/internal/faultmodule"
	"claviger/internal/logtest"
	"claviger/internal/pgtest"
	"claviger/internal/softhsm"
	"claviger/internal/softhsm/softhsmtest"
	"claviger/kms"
	"claviger/kms/kmstest"
	"claviger/pkcs11"
	"claviger/pkcs11/worker"
	"claviger/provider"
	"claviger/provider/kmsclient"
	"claviger/test/hadoop"
)

func TestMain(m *testing.M) {
	worker.Main(os.Args)
	os.Exit(pgtest.Main(m.Run))
}

// node is a KMS in this process, and its configuration folder.
type node struct {
	t    *testing.T
	dir  string
	port int
	url  string
	stop func() error
	log  logtest.Buffer
}

// start starts the node, until stop or the end of the test.
func (n *node) start() {
	n.t.Helper()
	n.url, n.stop = kmstest.Start(n.t, func(ctx context.Context, ready string) error {
		return kms.Serve(ctx, kms.Options{Dir: n.dir, Port: n.port, ReadyFile: ready, Level: new(slog.LevelVar),
			Log: slog.New(slog.NewTextHandler(&n.log, nil))})
	})
	n.t.Cleanup(n.end)
}

// end stops the node. It does nothing if the node does not run.
func (n *node) end() {
	n.t.Helper()
	if n.stop == nil {
		return
	}
	if err := n.stop(); err != nil {
		n.t.Errorf("the KMS ended: %v", err)
	}
	n.stop = nil
}

// isReady waits until /readyz for a purpose answers with that status.
func (n *node) isReady(purpose string, want int) {
	n.t.Helper()
	for end := time.Now().Add(60 * time.Second); ; time.Sleep(50 * time.Millisecond) {
		status, body := kmstest.Get(n.t, n.url, "/readyz?for="+purpose, "")
		if status == want {
			return
		}
		if time.Now().After(end) {
			n.t.Fatalf("/readyz?for=%s: %d, want %d: %s", purpose, status, want, body)
		}
	}
}

// hsmNode makes the folder of a KMS on a token, behind a module that makes faults.
func hsmNode(t *testing.T, properties map[string]string) (*node, softhsm.Token, *faultmodule.Module) {
	t.Helper()
	tok := softhsmtest.New(t)
	fault := faultmodule.New(t, tok.Module)
	n := &node{t: t, dir: t.TempDir()}
	file := filepath.Join(n.dir, "luna.keystore")
	if err := pkcs11.WriteKeystoreFile(file, pkcs11.FileConfig{Module: fault.Path, Token: tok.Label,
		PINFile: tok.PINFile, Profile: pkcs11.SoftHSM}); err != nil {
		t.Fatal(err)
	}
	n.write(properties, map[string]string{hadoopconf.ProviderURI: "cloudera.hsmkp://file@" + file})
	return n, tok, fault
}

// write writes the configuration.
func (n *node) write(sites ...map[string]string) {
	n.t.Helper()
	all := map[string]string{"hadoop.kms.http.host": "127.0.0.1",
		"claviger.audit.file": filepath.Join(n.dir, "audit.log")}
	for _, site := range sites {
		for name, value := range site {
			all[name] = value
		}
	}
	kmstest.WriteSite(n.t, n.dir, all)
	kmstest.WriteFile(n.t, filepath.Join(n.dir, "kms-acls.xml"), kmstest.SiteXML("default.key.acl.MANAGEMENT", "*",
		"default.key.acl.GENERATE_EEK", "*", "default.key.acl.DECRYPT_EEK", "*", "default.key.acl.READ", "*"))
}

// client connects to nodes as Hadoop's clients do: at one port, at several addresses.
func client(t *testing.T, o kmsclient.Options, uri string) *kmsclient.Provider {
	t.Helper()
	o.User, o.Timeout = "alice", 20*time.Second
	p, err := kmsclient.New(uri, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = p.Close() })
	return p
}

// uriOf returns the URI of a single node.
func (n *node) uriOf() string { return "kms://" + strings.Replace(n.url, "://", "@", 1) }

// create makes a key.
func create(ctx context.Context, p provider.Writer, key string) error {
	_, err := p.Create(ctx, provider.Spec{Name: key, Cipher: claviger.DefaultCipher, BitLength: 128})
	return err
}

// sealed is an EDEK with its DEK.
type sealed struct {
	edek claviger.EDEK
	dek  []byte
}

// seal makes an EDEK of a key, and opens it.
func seal(t *testing.T, p *kmsclient.Provider, key string) sealed {
	t.Helper()
	made, err := p.Generate(t.Context(), key, 1)
	if err != nil {
		t.Fatal(err)
	}
	deks, err := p.Unwrap(t.Context(), key, "", made)
	if err != nil {
		t.Fatal(err)
	}
	return sealed{made[0], deks[0]}
}

// opens opens the EDEK again.
func (s sealed) opens(ctx context.Context, p *kmsclient.Provider) error {
	key, _ := claviger.KeyOfVersion(s.edek.Version)
	deks, err := p.Unwrap(ctx, key, "", []claviger.EDEK{s.edek})
	if err == nil && !bytes.Equal(deks[0], s.dek) {
		err = errors.New("another DEK")
	}
	return err
}

// load is a client that opens and makes files all the time. No request may fail.
type load struct {
	t    *testing.T
	done atomic.Int64
	stop func()
}

// use begins a load with a new key.
func use(t *testing.T, p *kmsclient.Provider, key string) *load {
	t.Helper()
	if err := create(t.Context(), p, key); err != nil {
		t.Fatal(err)
	}
	s := seal(t, p, key)
	ctx, cancel := context.WithCancel(context.Background())
	l := &load{t: t}
	var running sync.WaitGroup
	running.Go(func() {
		for ctx.Err() == nil {
			_, err := p.Generate(context.Background(), key, 2)
			if err == nil {
				err = s.opens(context.Background(), p)
			}
			if err != nil {
				t.Errorf("the client of %s: %v", key, err)
				return
			}
			l.done.Add(1)
			time.Sleep(5 * time.Millisecond)
		}
	})
	l.stop = sync.OnceFunc(func() { cancel(); running.Wait() })
	t.Cleanup(l.stop)
	return l
}

// step tells a step, and waits until the client has opened ten more files after it.
func (l *load) step(format string, args ...any) {
	l.t.Helper()
	from := l.done.Load()
	for end := time.Now().Add(time.Minute); l.done.Load() < from+10; time.Sleep(5 * time.Millisecond) {
		if l.t.Failed() || time.Now().After(end) {
			l.t.Fatalf("%s: the client does not go on", fmt.Sprintf(format, args...))
		}
	}
	l.t.Logf("%s; the client goes on, %d files so far", fmt.Sprintf(format, args...), l.done.Load())
}

// command runs claviger as an operator does, and returns its output. It must end with that exit status.
func command(t *testing.T, status int, args ...string) string {
	t.Helper()
	bin := hadoop.Binary(t) // the first call builds the program
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, bin, args...)
	out, err := cmd.CombinedOutput()
	if cmd.ProcessState == nil || cmd.ProcessState.ExitCode() != status {
		t.Fatalf("claviger %s: %v, want exit status %d\n%s", strings.Join(args, " "), err, status, out)
	}
	t.Logf("$ claviger %s\n%s", strings.Join(args, " "), out)
	return string(out)
}

// get sends a request with a cookie, or as a user.
func get(t *testing.T, url, user string, cookie *http.Cookie) (status int, made *http.Cookie) {
	t.Helper()
	if user != "" {
		url += "?user.name=" + user
	}
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	if cookie != nil {
		req.AddCookie(&http.Cookie{Name: cookie.Name, Value: cookie.Value, Quoted: cookie.Quoted})
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	_ = resp.Body.Close() // the status is all
	for _, c := range resp.Cookies() {
		if c.Name == "hadoop.auth" {
			made = c
		}
	}
	return resp.StatusCode, made
}
