package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"

	"claviger/hadoopconf"
	"claviger/internal/pgtest"
	"claviger/internal/softhsm/softhsmtest"
	"claviger/kms"
	"claviger/kms/kmstest"
	"claviger/metastore/location"
	"claviger/metastore/sqlite"
	"claviger/pkcs11"
	"claviger/provider/hsm"
	"claviger/recovery"
)

// copySite is a server whose metastore moves.
type copySite struct {
	t     *testing.T
	dir   string
	props map[string]string
	kms   string
	end   func() error
}

func (s *copySite) on(store string) {
	s.t.Helper()
	s.props[hadoopconf.MetastoreURI] = store
	kmstest.WriteSite(s.t, s.dir, s.props)
}

func (s *copySite) start() {
	s.t.Helper()
	s.kms, s.end = serveToEnd(s.t, s.dir)
}

// newCopySite makes a site with a token of its own, and no metastore yet.
func newCopySite(t *testing.T) *copySite {
	t.Helper()
	dir := t.TempDir()
	tok := softhsmtest.New(t)
	file := filepath.Join(dir, "luna.keystore")
	if err := pkcs11.WriteKeystoreFile(file, pkcs11.FileConfig{Module: tok.Module, Token: tok.Label,
		PINFile: tok.PINFile, Profile: pkcs11.SoftHSM}); err != nil {
		t.Fatal(err)
	}
	kmstest.WriteFile(t, filepath.Join(dir, "kms-acls.xml"),
		kmstest.SiteXML("default.key.acl.MANAGEMENT", "*", "default.key.acl.GENERATE_EEK", "*",
			"default.key.acl.DECRYPT_EEK", "*", "default.key.acl.READ", "*", "keytrustee.kms.acl.UNDELETE", "*"))
	return &copySite{t: t, dir: dir, props: map[string]string{hadoopconf.ProviderURI: "cloudera.hsmkp://file@" + file,
		"hadoop.kms.http.host": "127.0.0.1"}}
}

func (s *copySite) stop() {
	s.t.Helper()
	if err := s.end(); err != nil {
		s.t.Fatal(err)
	}
}

// want sends a request that is to be answered with that status, and returns the answer.
func (s *copySite) want(status int, method, path, body string) string {
	s.t.Helper()
	req, err := http.NewRequestWithContext(s.t.Context(), method,
		s.kms+"/v1/"+path+map[bool]string{true: "&", false: "?"}[strings.Contains(path, "?")]+"user.name=a",
		strings.NewReader(body))
	if err != nil {
		s.t.Fatal(err)
	}
	req.Header.Set("Content-Type", "application/json")
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		s.t.Fatal(err)
	}
	defer res.Body.Close()
	answer, err := io.ReadAll(res.Body)
	if err != nil || res.StatusCode != status {
		s.t.Fatalf("%s %s: %d, want %d: %s, %v", method, path, res.StatusCode, status, answer, err)
	}
	return string(answer)
}

// copied runs the command.
func (s *copySite) copied(to string) (out string, err error) {
	s.t.Helper()
	return s.command("copy", "--conf", s.dir, "--to", to)
}

func (s *copySite) refused(to string, texts ...string) {
	s.t.Helper()
	out, err := s.copied(to)
	for _, text := range texts {
		if err == nil || !strings.Contains(err.Error(), text) {
			s.t.Errorf("copy to %s: %s, %v; want %q", to, out, err, text)
		}
	}
}

// startRefused wants no server to start.
func (s *copySite) startRefused(text string) {
	s.t.Helper()
	if svc, err := kms.Open(s.t.Context(), s.dir, kms.Command, hsm.Serve, slog.New(slog.DiscardHandler)); err == nil ||
		!strings.Contains(err.Error(), text) {
		if err == nil {
			_ = svc.Close()
		}
		s.t.Errorf("a start: %v; want %q", err, text)
	}
}

// TestMetastoreCopy moves the metastore of a server with keys to PostgreSQL and back:
// EDEKs open, versions and deleted keys go on, and no server starts on what was left.
func TestMetastoreCopy(t *testing.T) {
	s := newCopySite(t)
	dir := s.dir
	server := pgtest.Shared(t)
	lite, db := "sqlite://"+filepath.Join(dir, "c.db"), server.Database(t)
	shown, _, _ := strings.Cut(db, "?")
	s.on(lite)
	s.start()
	s.want(201, http.MethodPost, "keys", `{"name":"k","description":"a zone","attributes":{"key.acl.name":"x"}}`)
	s.want(201, http.MethodPost, "keys", `{"name":"gone"}`)
	s.want(200, http.MethodDelete, "key/gone", "")
	var made []struct {
		VersionName string `json:"versionName"`
		IV          string `json:"iv"`
		Encrypted   struct {
			Material string `json:"material"`
		} `json:"encryptedKeyVersion"`
	}
	if err := json.Unmarshal([]byte(s.want(200, http.MethodGet, "key/k/_eek?eek_op=generate&num_keys=1", "")),
		&made); err != nil || len(made) != 1 {
		t.Fatalf("%v, %+v", err, made)
	}
	s.want(200, http.MethodPost, "key/k", `{}`)
	opens := func() string {
		t.Helper()
		body, err := json.Marshal(
			map[string]string{"name": "k", "iv": made[0].IV, "material": made[0].Encrypted.Material})
		if err != nil {
			t.Fatal(err)
		}
		return s.want(200, http.MethodPost, "keyversion/"+made[0].VersionName+"/_eek?eek_op=decrypt", string(body))
	}
	dek := opens()
	s.refused(db, "in use by claviger kms", "stop it first")
	s.stop()

	other := server.Database(t)
	if out, err := s.copied(other); err != nil { // a copy that is left to grow old
		t.Fatal(out, err)
	}
	s.unmark(lite)
	// as after a run that was broken off
	if out, err := s.copied(other); err != nil || !strings.Contains(out, "moved") {
		t.Error(out, err)
	}
	s.unmark(lite)
	s.start()
	s.want(200, http.MethodPost, "key/k", `{}`)
	s.stop()
	s.refused(other, "is not empty: it holds a copy of this one that differs from it in ", "key_version")

	out, err := s.copied(db)
	if err != nil || !strings.Contains(out, "1 keys with 3 versions, 1 deleted keys") ||
		!strings.Contains(out, "claviger metastore verify --conf "+dir) {
		t.Fatal(out, err)
	}
	if out, err := s.copied(db); err != nil || !strings.Contains(out, "already; nothing to do") {
		t.Error(out, err)
	}
	s.refused(server.Database(t), "was moved to "+shown)
	s.startRefused("was moved to " + shown)
	if conf, err := hadoopconf.LoadKMS(dir, os.LookupEnv); err != nil {
		t.Error(err)
	} else if r, err := recovery.Verify(t.Context(), conf, "", true, slog.New(slog.DiscardHandler)); err != nil ||
		r.Moved == nil || r.Moved.To != shown {
		t.Errorf("verify: %+v, %v", r, err)
	}

	s.on(db)
	var log bytes.Buffer
	s.kms, s.end = serveLogged(t, dir, slog.New(slog.NewTextHandler(&log, nil)))
	if got := opens(); got != dek {
		t.Errorf("the EDEK opens to %s, was %s", got, dek)
	}
	if v := s.want(200, http.MethodPost, "key/k", `{}`); !strings.Contains(v, `"k@3"`) {
		t.Errorf("rolled to %s", v)
	}
	if m := s.want(200, http.MethodGet, "key/k/_metadata", ""); !strings.Contains(m, `"a zone"`) ||
		!strings.Contains(m, `"key.acl.name":"x"`) {
		t.Error(m)
	}
	s.want(200, http.MethodPost, "trustee/key/gone?trusteeOp=undelete", "")
	s.stop()
	if !strings.Contains(log.String(), "was at another place before") || !strings.Contains(log.String(), "was="+lite) {
		t.Errorf("the server does not tell of the former place: %s", log.String())
	}

	// And back, to a file of its own.
	s.refused(lite, "was itself moved to "+shown)
	back := "sqlite://" + filepath.Join(dir, "back.db")
	if out, err := s.copied(back); err != nil || !strings.Contains(out, "2 keys with 5 versions, 0 deleted keys") {
		t.Fatal(out, err)
	}
	s.startRefused("was moved to " + back)
	s.on(back)
	s.start()
	if got := opens(); got != dek {
		t.Errorf("the EDEK opens to %s, was %s", got, dek)
	}
	if v := s.want(200, http.MethodPost, "key/k", `{}`); !strings.Contains(v, `"k@4"`) {
		t.Errorf("rolled to %s", v)
	}
	s.stop()
	s.refused("mysql://x", "or for several nodes postgresql://")
	s.refused(back, "--to names the metastore that is configured already")

	// The later places are lost: the first one can be used again, by a word of the operator.
	s.on(lite)
	if out, err := s.command("verify", "--conf", dir, "--no-token"); !isRefused(err) ||
		!strings.Contains(out, "MOVED") {
		t.Errorf("verify: %v\n%s", err, out)
	}
	backup := filepath.Join(dir, "backup.db")
	if out, err := s.command("backup", "--conf", dir, "--out", backup); err != nil ||
		!strings.Contains(out, "was moved to "+shown) {
		t.Errorf("backup: %v\n%s", err, out)
	}
	if out, err := s.command("restore", "--conf", dir, backup); !isRefused(err) ||
		!strings.Contains(out, "MOVED  to "+shown) || !strings.Contains(out, "LOST  k@4") {
		t.Errorf("restore: %v\n%s", err, out)
	}
	s.startRefused("was moved to " + shown)
	if out, err := s.command("restore", "--conf", dir, "--lose-keys", backup); err != nil ||
		!strings.Contains(out, "restored") {
		t.Fatalf("restore: %v\n%s", err, out)
	}
	s.start()
	if got := opens(); got != dek {
		t.Errorf("the EDEK opens to %s, was %s", got, dek)
	}
	s.want(503, http.MethodPost, "keyversion/k@4/_eek?eek_op=decrypt",
		`{"name":"k","iv":"`+made[0].IV+`","material":"`+made[0].Encrypted.Material+`"}`)
	s.stop()
}

// TestMetastoreCopyKeepsWhatNodesSaw: a node that has seen changes of a metastore in
// PostgreSQL changes keys at a copy of it without more ado: in another database, and in one
// that took it from a file. At the place that it left it does not.
func TestMetastoreCopyKeepsWhatNodesSaw(t *testing.T) {
	s := newCopySite(t)
	server := pgtest.Shared(t)
	seen := filepath.Join(s.dir, location.SeenName)
	places := []string{server.Database(t), server.Database(t), "sqlite://" + filepath.Join(s.dir, "c.db"),
		server.Database(t)}
	for i, place := range places {
		s.on(place)
		s.start()
		key := fmt.Sprintf("k%d", i)
		s.want(201, http.MethodPost, "keys", `{"name":"`+key+`"}`)
		s.want(200, http.MethodPost, "key/k0", `{}`)
		s.want(200, http.MethodGet, "key/"+key+"/_metadata", "")
		s.stop()
		if text, err := os.ReadFile(seen); err != nil ||
			location.IsPostgres(place) && !strings.Contains(string(text), `"key":"`+key+`"`) {
			t.Fatalf("what the node has seen: %s, %v", text, err)
		}
		if i+1 < len(places) {
			if out, err := s.copied(places[i+1]); err != nil {
				t.Fatal(out, err)
			}
			s.startRefused("was moved to ")
		}
	}
	// Without the mark of the move the first place is a copy that lacks what the node has seen.
	conn, err := pgx.Connect(t.Context(), places[0])
	if err != nil {
		t.Fatal(err)
	}
	_, err = conn.Exec(t.Context(), `DELETE FROM setting WHERE name = 'store.moved'`)
	if err = errors.Join(err, conn.Close(t.Context())); err != nil {
		t.Fatal(err)
	}
	s.on(places[0])
	s.startRefused("is a copy of the metastore")
	s.refused(server.Database(t), "lacks changes that were acknowledged")
}

// TestCopyShowsNoPassword: the refusal of --to does not repeat what it was given.
func TestCopyShowsNoPassword(t *testing.T) {
	file := filepath.Join(t.TempDir(), "a.db")
	kmstest.WriteFile(t, file, "")
	s := &copySite{t: t, dir: t.TempDir(), props: map[string]string{}}
	s.on("sqlite://" + file)
	_, err := s.copied("postgresql:/claviger/hunter2@db1:5432")
	if err == nil || !strings.HasPrefix(err.Error(), "--to has a value of the scheme "+
		"postgresql that names no metastore") ||
		strings.Contains(err.Error(), "hunter2") {
		t.Errorf("--to: %v", err)
	}
}

// isRefused tells whether a command ends with exitRefused.
func isRefused(err error) bool {
	return exitCode(err) == exitRefused
}

// command runs a command of claviger metastore.
func (s *copySite) command(args ...string) (out string, err error) {
	s.t.Helper()
	cmd := newMetastoreCommand()
	var b bytes.Buffer
	cmd.SetOut(&b)
	cmd.SetErr(&b)
	cmd.SetArgs(args)
	cmd.SilenceUsage = true
	err = cmd.ExecuteContext(s.t.Context())
	return b.String(), err
}

// unmark takes the mark of a move from an SQLite store, as if the command had ended before it.
func (s *copySite) unmark(uri string) {
	s.t.Helper()
	file := strings.TrimPrefix(uri, "sqlite://")
	st, err := sqlite.Open(s.t.Context(), file)
	if err != nil {
		s.t.Fatal(err)
	}
	c, err := st.Content(s.t.Context())
	if err = errors.Join(err, st.Close(), os.Remove(file)); err != nil {
		s.t.Fatal(err)
	}
	if st, err = sqlite.Open(s.t.Context(), file); err != nil {
		s.t.Fatal(err)
	}
	if err := errors.Join(st.Fill(s.t.Context(), c), st.Close()); err != nil {
		s.t.Fatal(err)
	}
}
