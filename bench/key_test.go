package bench

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"

	"claviger"
	"claviger/internal/certtest"
	"claviger/kms"
	"claviger/kms/kmstest"
	"claviger/provider"
	"claviger/provider/hsm"
	"claviger/provider/kmsclient"
	"claviger/terminal"
)

// client is a client of a KMS, for checks.
func client(t *testing.T, base string) *kmsclient.Provider {
	t.Helper()
	p, err := kmsclient.New(strings.Replace(base, "http://", "kms://http@", 1), kmsclient.Options{User: "bench"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = p.Close() })
	return p
}

// TestExistingKey: a key of --key is used, and neither rolled nor removed.
func TestExistingKey(t *testing.T) {
	base := serveKMS(t)
	p := client(t, base)
	ctx := t.Context()
	_, err := p.Create(ctx, provider.Spec{Name: "mine", Cipher: claviger.DefaultCipher, BitLength: 128})
	if err == nil {
		_, err = p.Roll(ctx, "mine", nil)
	}
	if err != nil {
		t.Fatal(err)
	}
	r, _, err := command(t, base, "--key", "mine", "--load", "decrypt,batch", "--rounds", "1", "--connections", "1",
		"-o", "json")
	if err != nil {
		t.Fatal(err)
	}
	versions, err := p.Versions(ctx, "mine")
	if err != nil || len(versions) != 2 || r.Key != "mine" {
		t.Errorf("%d versions of the key, %v, want 2; the report names %q", len(versions), err, r.Key)
	}
	if names := keys(t, base); !slices.Equal(names, []string{"mine"}) {
		t.Errorf("keys %q", names)
	}
	if _, _, err = command(t, base, "--key", "none", "--rounds", "1"); err == nil || !strings.Contains(err.Error(),
		"none") {
		t.Errorf("a key that does not exist: %v", err)
	}
}

// onKey matches the path of a key, without its operations.
var onKey = regexp.MustCompile(`^/kms/v1/key/claviger-bench-[a-z0-9]+$`)

// TestMadeKey: a key that the load made has two versions, so that a batch is really re-encrypted.
func TestMadeKey(t *testing.T) {
	var rolls atomic.Int64
	proxy := newProxy(t, serveKMS(t), func(r *http.Request) {
		if r.Method == http.MethodPost && onKey.MatchString(r.URL.Path) {
			rolls.Add(1)
		}
	}, nil)
	proxy.Start()
	_, _, err := command(t, proxy.URL+"/kms", "--load", "batch", "--rounds", "1", "--connections", "1")
	if err != nil || rolls.Load() != 1 {
		t.Errorf("the key was rolled %d times, %v; want once", rolls.Load(), err)
	}
}

// TestKeyStays: if a key cannot be removed, the error names it, and says how to remove it.
func TestKeyStays(t *testing.T) {
	base := serveKMS(t)
	proxy := newProxy(t, base, nil, func(r *http.Response) error {
		if r.Request.Method == http.MethodDelete {
			r.StatusCode = http.StatusForbidden
		}
		return nil
	})
	proxy.Start()
	_, _, err := command(t, proxy.URL+"/kms", "--rounds", "1", "--connections", "1")
	if err == nil || !strings.Contains(err.Error(), "still has the key claviger-bench-") ||
		!strings.Contains(err.Error(), "'hadoop key delete claviger-bench-") {
		t.Errorf("%v", err)
	}
}

// TestDeletedKey: where a KMS keeps deleted keys, the deleted key of the load is destroyed, or named in the report.
func TestDeletedKey(t *testing.T) {
	dir, props := kmstest.HSM(t)
	props[hsm.PropertySoftDelete], props["claviger.purge.min.unused"] = "true", "0"
	kmstest.WriteSite(t, dir, props)
	kmstest.WriteFile(t, filepath.Join(dir, "kms-acls.xml"), kmstest.SiteXML("keytrustee.kms.acl.UNDELETE", "*",
		"keytrustee.kms.acl.PURGE", "*"))
	base := kmstest.Serve(t, func(ctx context.Context, ready string) error {
		return kms.Serve(ctx, kms.Options{Dir: dir, ReadyFile: ready, Log: slog.New(slog.DiscardHandler),
			Level: new(slog.LevelVar)})
	})
	p := client(t, base)
	r, _, err := command(t, base, "--rounds", "1", "--connections", "1", "-o", "json")
	if err != nil || len(r.NotRemoved) != 0 {
		t.Errorf("%v, %q", err, r.NotRemoved)
	}
	if list, err := p.DeletedKeys(t.Context()); err != nil || len(list) != 0 {
		t.Errorf("deleted keys %+v, %v", list, err)
	}
	proxy := newProxy(t, base, nil, func(r *http.Response) error {
		if strings.Contains(r.Request.URL.RawQuery, "trusteeOp=purge") {
			r.StatusCode = http.StatusForbidden
		}
		return nil
	})
	proxy.Start()
	r, _, err = command(t, proxy.URL+"/kms", "--rounds", "1", "--connections", "1", "-o", "json")
	if err != nil || len(r.NotRemoved) != 1 || !strings.Contains(r.NotRemoved[0], "keeps the deleted key "+keyPrefix) {
		t.Errorf("%v, %q", err, r.NotRemoved)
	}
}

// TestUnwrittenReport: a report that cannot be written is an error.
func TestUnwrittenReport(t *testing.T) {
	base, page := serveKMS(t), filepath.Join(t.TempDir(), "page.html")
	o := Options{Loads: []string{loadDecrypt}, Connections: 1, Duration: shortest, Rounds: 1, Auth: authCookie,
		Connect: connectKeep, MaxFailures: -1, Client: kmsclient.Options{User: "bench"}}
	o.Out = *terminal.To(fullDisk{})
	if err := Run(t.Context(), &o, []string{base}, io.Discard); !errors.Is(err, syscall.ENOSPC) {
		t.Errorf("the text: %v", err)
	}
	o.Out, o.HTML = *terminal.To(beforeWrite(func() { _ = os.Mkdir(page, 0o700) })), page
	if err := Run(t.Context(), &o, []string{base}, io.Discard); err == nil || !strings.Contains(err.Error(), page) {
		t.Errorf("the page: %v", err)
	}
}

// fullDisk fails each write.
type fullDisk struct{}

func (fullDisk) Write([]byte) (int, error) { return 0, syscall.ENOSPC }

// beforeWrite is called before each write.
type beforeWrite func()

func (f beforeWrite) Write(p []byte) (int, error) { f(); return len(p), nil }

// TestLostAnswer: if the answer to the creation of the key is lost, the key is removed nevertheless.
func TestLostAnswer(t *testing.T) {
	base := serveKMS(t)
	proxy := newProxy(t, base, nil, func(r *http.Response) error {
		if r.Request.Method == http.MethodPost && r.Request.URL.Path == "/kms/v1/keys" {
			r.StatusCode = http.StatusInternalServerError
		}
		return nil
	})
	proxy.Start()
	if _, _, err := command(t, proxy.URL+"/kms", "--rounds", "1", "--connections", "1"); err == nil {
		t.Error("a creation that failed is no error")
	}
	if names := keys(t, base); len(names) != 0 {
		t.Errorf("keys %q are left behind", names)
	}
}

// TestResumption: with --connect resume, TLS sessions are resumed; with --connect new they are not. Either way each
// request has a connection of its own.
func TestResumption(t *testing.T) {
	a := certtest.New(t, t.TempDir())
	file := a.Issue("server", "127.0.0.1")
	pair, err := tls.LoadX509KeyPair(file, file)
	if err != nil {
		t.Fatal(err)
	}
	base := serveKMS(t)
	for connect, wanted := range map[string]bool{connectNew: false, connectResume: true} {
		var requests, resumed atomic.Int64
		proxy := newProxy(t, base, func(r *http.Request) {
			if strings.Contains(r.URL.RawQuery, "eek_op=decrypt") && r.TLS != nil {
				requests.Add(1)
				if r.TLS.DidResume {
					resumed.Add(1)
				}
			}
		}, nil)
		proxy.TLS = &tls.Config{Certificates: []tls.Certificate{pair}, MinVersion: tls.VersionTLS12}
		proxy.StartTLS()
		o := Options{Loads: []string{loadDecrypt}, Connections: 1, Duration: shortest, Rounds: 1, Auth: authCookie,
			Connect: connect, MaxFailures: 0, Quiet: true, Client: kmsclient.Options{User: "bench",
				TLS: &tls.Config{RootCAs: a.Pool(), MinVersion: tls.VersionTLS12}}}
		o.Out = *terminal.To(io.Discard)
		if err := Run(context.Background(), &o, []string{proxy.URL + "/kms"}, io.Discard); err != nil {
			t.Fatal(err)
		}
		load := requests.Load() - decryptEDEKs - 2*checkedEDEKs // the rest prepares the load
		if (resumed.Load() > load/2) != wanted || !wanted && resumed.Load() > 0 {
			t.Errorf("--connect %s: %d of %d connections were resumed", connect, resumed.Load(), load)
		}
	}
}
