package hsmfaults

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"maps"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	p11 "github.com/miekg/pkcs11"
	"go.uber.org/goleak"

	"claviger/hadoopconf"
	"claviger/internal/faultmodule"
	"claviger/internal/logtest"
	"claviger/internal/softhsm"
	"claviger/internal/softhsm/softhsmtest"
	"claviger/kms"
	"claviger/kms/kmstest"
	"claviger/metastore/sqlite"
	"claviger/pkcs11"
	"claviger/pkcs11/worker"
)

func TestMain(m *testing.M) {
	worker.Main(os.Args)
	goleak.VerifyTestMain(m, goleak.IgnoreTopFunction("net/http.(*persistConn).readLoop"),
		goleak.IgnoreTopFunction("net/http.(*persistConn).writeLoop"))
}

// faultyKMS is a KMS whose token has a fault module before it.
type faultyKMS struct {
	*faultmodule.Module
	url     string
	db      string // the metastore's file
	dek     []byte // the DEK of edek
	edek    edek
	created atomic.Int64 // keys that were made by operations
	token   softhsm.Token
	start   func()
	stop    func() error
	log     logtest.Buffer
}

// edek is an EDEK as the KMS writes it.
type edek struct {
	Version   string `json:"versionName"`
	IV        string `json:"iv"`
	Encrypted struct {
		Name     string `json:"name"`
		Material string `json:"material"`
	} `json:"encryptedKeyVersion"`
}

// newFaultyKMS starts a KMS with the keys orders and other. Each has two versions, and edek is of the first of orders.
// change changes the keystore file.
func newFaultyKMS(t *testing.T, inWorker bool, change ...func(*pkcs11.FileConfig)) *faultyKMS {
	t.Helper()
	return newFaultyKMSWith(t, inWorker, nil, change...)
}

// newFaultyKMSWith is newFaultyKMS for a KMS with more properties.
func newFaultyKMSWith(t *testing.T, inWorker bool, properties map[string]string,
	change ...func(*pkcs11.FileConfig)) *faultyKMS {
	t.Helper()
	dir, tok := t.TempDir(), softhsmtest.New(t)
	l := &faultyKMS{Module: faultmodule.New(t, tok.Module), db: filepath.Join(dir, "c.db"), token: tok}
	file := filepath.Join(dir, "luna.keystore")
	keystore := pkcs11.FileConfig{Module: l.Path, Token: tok.Label, PINFile: tok.PINFile, Profile: pkcs11.Generic,
		MaxSessions: 6, Worker: pkcs11.WorkerNo}
	if inWorker {
		keystore.Worker = pkcs11.WorkerYes
	}
	for _, f := range change {
		f(&keystore)
	}
	if err := pkcs11.WriteKeystoreFile(file, keystore); err != nil {
		t.Fatal(err)
	}
	site := map[string]string{
		hadoopconf.ProviderURI:                           "cloudera.hsmkp://file@" + file,
		hadoopconf.MetastoreURI:                          "sqlite://" + l.db,
		"hadoop.kms.http.host":                           "127.0.0.1",
		"hadoop.kms.key.authorization.enable":            "false",
		"claviger.audit.file":                            filepath.Join(dir, "audit.log"),
		"hadoop.security.kms.encrypted.key.cache.size":   "1",
		"hadoop.security.kms.encrypted.key.cache.expiry": "1000",

		"hadoop.security.kms.encrypted.key.cache.low.watermark": "1",
	}
	maps.Copy(site, properties)
	kmstest.WriteSite(t, dir, site)
	var serve kms.Options
	serve.Dir, serve.Log, serve.Level = dir, slog.New(slog.NewTextHandler(&l.log, nil)), new(slog.LevelVar)
	l.start = func() {
		l.url, l.stop = kmstest.Start(t, func(ctx context.Context, ready string) error {
			serve.ReadyFile = ready
			return kms.Serve(ctx, serve)
		})
	}
	l.start()
	for _, key := range []string{"orders", "other"} {
		l.want(t, http.StatusCreated, "POST", "keys", map[string]any{"name": key})
	}
	var made []edek
	if err := json.Unmarshal(l.want(t, http.StatusOK, "GET", generateOrders, nil), &made); err != nil {
		t.Fatal(err)
	}
	l.edek = made[0]
	l.dek = material(t, l.want(t, http.StatusOK, "POST", l.opens(), l.edekBody()))
	for _, key := range []string{"orders", "other"} {
		l.want(t, http.StatusOK, "POST", "key/"+key, map[string]any{})
	}
	return l
}

const generateOrders = "key/orders/_eek?eek_op=generate&num_keys=20"

func (l *faultyKMS) opens() string { return "keyversion/" + l.edek.Version + "/_eek?eek_op=decrypt" }

func (l *faultyKMS) edekBody() map[string]any {
	return map[string]any{"name": "orders", "iv": l.edek.IV, "material": l.edek.Encrypted.Material}
}

// material returns the field of that name in an answer.
func material(t *testing.T, body []byte) []byte {
	t.Helper()
	var v struct{ Material string }
	if err := json.Unmarshal(body, &v); err != nil || v.Material == "" {
		t.Fatalf("%v in %d bytes", err, len(body))
	}
	return []byte(v.Material)
}

// request makes a request. Its error is one of the connection.
func (l *faultyKMS) request(ctx context.Context, method, path string, body any) (status int, answer []byte, err error) {
	sep := "?"
	if strings.Contains(path, "?") {
		sep = "&"
	}
	return kmstest.Send(ctx, http.DefaultClient, method, l.url+"/v1/"+path+sep+"user.name=u", body)
}

func (l *faultyKMS) want(t *testing.T, want int, method, path string, body any) []byte {
	t.Helper()
	status, answer, err := l.request(t.Context(), method, path, body)
	if err != nil || status != want {
		t.Fatalf("%s %s: %d %s, %v; want %d", method, path, status, answer, err, want)
	}
	return answer
}

// operation is a request that needs the HSM. run returns the status of its answer, and an error if the answer is wrong.
type operation struct {
	name string
	run  func(ctx context.Context, l *faultyKMS) (status int, err error)
}

var operations = []operation{
	{"decrypt", decrypt},
	{"generate", generate},
	{"re-encrypt", reencrypt},
	{"roll", func(ctx context.Context, l *faultyKMS) (int, error) {
		status, answer, err := l.request(ctx, "POST", "key/other", map[string]any{})
		return status, wrong(status, answer, err)
	}},
	{"create", func(ctx context.Context, l *faultyKMS) (int, error) {
		name := fmt.Sprintf("new%d", l.created.Load()) // a client repeats a creation that failed
		status, answer, err := l.request(ctx, "POST", "keys", map[string]any{"name": name})
		if status == http.StatusCreated && !strings.Contains(string(answer), name) {
			err = fmt.Errorf("the answer is %s", answer)
		}
		if status == http.StatusCreated {
			l.created.Add(1)
		}
		return status, wrong(status, answer, err)
	}},
}

func decrypt(ctx context.Context, l *faultyKMS) (int, error) {
	status, answer, err := l.request(ctx, "POST", l.opens(), l.edekBody())
	if status == http.StatusOK {
		var v struct{ Material string }
		if err := json.Unmarshal(answer, &v); err != nil || v.Material != string(l.dek) {
			return status, fmt.Errorf("a wrong DEK (%v)", err) //nolint:errorlint // err may be nil
		}
	}
	return status, wrong(status, answer, err)
}

func generate(ctx context.Context, l *faultyKMS) (int, error) {
	status, answer, err := l.request(ctx, "GET", generateOrders, nil)
	var made []edek
	if status == http.StatusOK {
		if err := json.Unmarshal(answer, &made); err != nil || len(made) != 20 {
			return status, fmt.Errorf("%d EDEKs (%v)", len(made), err) //nolint:errorlint // err may be nil
		}
	}
	return status, wrong(status, answer, err)
}

// reencrypt wraps the DEK of the KMS's edek anew. Callers that need to know whether the result opens use reencrypted
// and opensTo.
func reencrypt(ctx context.Context, l *faultyKMS) (int, error) {
	status, _, err := reencrypted(ctx, l)
	return status, err
}

func reencrypted(ctx context.Context, l *faultyKMS) (int, edek, error) {
	status, answer, err := l.request(ctx, "POST", "keyversion/"+l.edek.Version+"/_eek?eek_op=reencrypt", l.edekBody())
	var fresh edek
	if status == http.StatusOK {
		if err := json.Unmarshal(answer, &fresh); err != nil || fresh.Version == l.edek.Version {
			return status, fresh, fmt.Errorf("version %s (%v)", fresh.Version, err) //nolint:errorlint // err may be nil
		}
	}
	return status, fresh, wrong(status, answer, err)
}

// opensTo reports whether an EDEK opens to the DEK of the KMS's edek.
func (l *faultyKMS) opensTo(ctx context.Context, e edek) error {
	other := faultyKMS{url: l.url, edek: e, dek: l.dek}
	if status, err := decrypt(ctx, &other); err != nil || status != http.StatusOK {
		return fmt.Errorf("a re-encrypted EDEK: %d, %w", status, err)
	}
	return nil
}

// wrong returns an error if a failure is not in the form that makes a client try another node.
func wrong(status int, answer []byte, err error) error {
	if err == nil && status == http.StatusServiceUnavailable &&
		!strings.Contains(string(answer), "org.apache.hadoop.ipc.StandbyException") {
		return fmt.Errorf("503 without StandbyException: %s", answer)
	}
	return err
}

// recovers waits until the operation succeeds, and returns how long that took.
func (l *faultyKMS) recovers(t *testing.T, o operation) time.Duration {
	t.Helper()
	from := time.Now()
	for {
		status, err := o.run(t.Context(), l)
		if err != nil {
			t.Fatalf("%s: %v", o.name, err)
		}
		if status < 300 {
			return time.Since(from)
		}
		if time.Since(from) > 20*time.Second {
			t.Fatalf("%s: still %d after 20 s; the log ends with %s", o.name, status, l.tail())
		}
		time.Sleep(5 * time.Millisecond)
	}
}

// tail returns the end of the KMS's log.
func (l *faultyKMS) tail() string {
	text := l.log.String()
	return text[max(0, len(text)-4000):]
}

// end stops the KMS, and checks that it leaves no unfinished step in the metastore.
func (l *faultyKMS) end(t *testing.T) {
	t.Helper()
	if err := l.stop(); err != nil {
		t.Error(err)
	}
	store, err := sqlite.Open(t.Context(), l.db)
	if err != nil {
		t.Fatal(err)
	}
	defer store.Close() //nolint:errcheck // it has only read
	steps, err := store.Pending(t.Context())
	if err != nil || len(steps) > 0 {
		t.Errorf("unfinished steps: %v, %v", steps, err)
	}
}

// codes are the results that PKCS #11 names, but for CKR_OK, and one of a vendor.
func codes() (list []uint) {
	for code := uint(1); code < 0x400; code++ {
		if strings.Contains(p11.Error(code).Error(), "CKR_") {
			list = append(list, code)
		}
	}
	return append(list, p11.CKR_VENDOR_DEFINED|0x42)
}
