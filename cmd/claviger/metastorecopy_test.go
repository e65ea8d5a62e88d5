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

// copySite is a server whose metastore is moved.
type copySite struct {
	t     *testing.T
	dir   string
	props map[string]string
	kms   string
	end   func() error
}

// on configures the metastore.
func (s *copySite) on(store string) {
	s.t.Helper()
	s.props[hadoopconf.MetastoreURI] = store
	kmstest.WriteSite(s.t, s.dir, s.props)
}

func (s *copySite) start() {
	s.t.Helper()
	s.kms, s.end = startKMS(s.t, s.dir)
}

// newCopySite makes a site with its own token. It has no metastore yet.
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

// want sends a request. The answer must have a status. It returns the answer.
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

// copied runs claviger metastore copy.
func (s *copySite) copied(to string) (out string, err error) {
	s.t.Helper()
	return s.command("copy", "--conf", s.dir, "--to", to)
}

// refused checks that a copy to a place fails, with an error that holds some texts.
func (s *copySite) refused(to string, texts ...string) {
	s.t.Helper()
	out, err := s.copied(to)
	for _, text := range texts {
		if err == nil || !strings.Contains(err.Error(), text) {
			s.t.Errorf("copy to %s: %s, %v; want %q", to, out, err, text)
		}
	}
}

// startRefused checks that no server starts.
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

// movedStore is the state of TestMetastoreCopy.
type movedStore struct {
	*copySite
	lite, db string // the first metastore, in SQLite, and the second, in PostgreSQL
	shown    string // db in messages
	eek      struct {
		VersionName string `json:"versionName"`
		IV          string `json:"iv"`
		Encrypted   struct {
			Material string `json:"material"`
		} `json:"encryptedKeyVersion"`
	}
	dek string // the answer to a decrypt of eek
}

// TestMetastoreCopy moves the metastore of a server with keys to PostgreSQL and back. EDEKs open, new versions get the
// next numbers, deleted keys can be brought back, and no server starts on the old metastore.
func TestMetastoreCopy(t *testing.T) {
	m := &movedStore{copySite: newCopySite(t)}
	server := pgtest.Shared(t)
	m.lite, m.db = "sqlite://"+filepath.Join(m.dir, "c.db"), server.Database(t)
	m.shown, _, _ = strings.Cut(m.db, "?")
	m.makeKeys()
	m.interruptedCopy(server.Database(t))
	m.toPostgreSQL(server.Database(t))
	m.serveFromPostgreSQL()
	m.backToSQLite()
	m.restoreFirst()
}

// makeKeys makes the key k with an EDEK, and a deleted key. The store cannot be copied while the server runs.
func (m *movedStore) makeKeys() {
	m.t.Helper()
	m.on(m.lite)
	m.start()
	m.want(201, http.MethodPost, "keys", `{"name":"k","description":"a zone","attributes":{"key.acl.name":"x"}}`)
	m.want(201, http.MethodPost, "keys", `{"name":"gone"}`)
	m.want(200, http.MethodDelete, "key/gone", "")
	answer := m.want(200, http.MethodGet, "key/k/_eek?eek_op=generate&num_keys=1", "")
	made := []any{&m.eek}
	if err := json.Unmarshal([]byte(answer), &made); err != nil || len(made) != 1 {
		m.t.Fatalf("%v, %s", err, answer)
	}
	m.want(200, http.MethodPost, "key/k", `{}`)
	m.dek = m.decrypt()
	m.refused(m.db, "in use by claviger kms", "stop that process first")
	m.stop()
}

// decrypt opens the EDEK.
func (m *movedStore) decrypt() string {
	m.t.Helper()
	body, err := json.Marshal(map[string]string{"name": "k", "iv": m.eek.IV, "material": m.eek.Encrypted.Material})
	if err != nil {
		m.t.Fatal(err)
	}
	return m.want(200, http.MethodPost, "keyversion/"+m.eek.VersionName+"/_eek?eek_op=decrypt", string(body))
}

// wantEDEK checks that the EDEK opens to its DEK.
func (m *movedStore) wantEDEK() {
	m.t.Helper()
	if got := m.decrypt(); got != m.dek {
		m.t.Errorf("the EDEK opens to %s, was %s", got, m.dek)
	}
}

// wantRoll rolls the key k, which must get a version.
func (m *movedStore) wantRoll(version string) {
	m.t.Helper()
	if v := m.want(200, http.MethodPost, "key/k", `{}`); !strings.Contains(v, `"`+version+`"`) {
		m.t.Errorf("rolled to %s", v)
	}
}

// interruptedCopy copies to other, and is interrupted before the old store is marked. The next run completes the copy.
// A copy that has become old is refused.
func (m *movedStore) interruptedCopy(other string) {
	m.t.Helper()
	if out, err := m.copied(other); err != nil {
		m.t.Fatal(out, err)
	}
	m.unmark(m.lite)
	if out, err := m.copied(other); err != nil || !strings.Contains(out, "moved") {
		m.t.Error(out, err)
	}
	m.unmark(m.lite)
	m.start()
	m.want(200, http.MethodPost, "key/k", `{}`)
	m.stop()
	m.refused(other, "is not empty: it holds a copy of this one that differs from it in ", "key_version")
}

// toPostgreSQL moves the metastore to db. After that, the old metastore cannot be used or moved to another place.
func (m *movedStore) toPostgreSQL(another string) {
	m.t.Helper()
	out, err := m.copied(m.db)
	if err != nil || !strings.Contains(out, "1 keys with 3 versions, 1 deleted keys") ||
		!strings.Contains(out, "claviger metastore verify --conf "+m.dir) {
		m.t.Fatal(out, err)
	}
	if out, err := m.copied(m.db); err != nil || !strings.Contains(out, "already; nothing to do") {
		m.t.Error(out, err)
	}
	m.refused(another, "was moved to "+m.shown)
	m.startRefused("was moved to " + m.shown)
	conf, err := hadoopconf.LoadKMS(m.dir, os.LookupEnv)
	if err != nil {
		m.t.Fatal(err)
	}
	r, err := recovery.Verify(m.t.Context(), conf, "", true, slog.New(slog.DiscardHandler))
	if err != nil || r.Moved == nil || r.Moved.To != m.shown {
		m.t.Errorf("verify: %+v, %v", r, err)
	}
}

// serveFromPostgreSQL serves from db. The log names the former place.
func (m *movedStore) serveFromPostgreSQL() {
	m.t.Helper()
	m.on(m.db)
	var log bytes.Buffer
	m.kms, m.end = startLogged(m.t, m.dir, slog.New(slog.NewTextHandler(&log, nil)))
	m.wantEDEK()
	m.wantRoll("k@3")
	if got := m.want(200, http.MethodGet, "key/k/_metadata", ""); !strings.Contains(got, `"a zone"`) ||
		!strings.Contains(got, `"key.acl.name":"x"`) {
		m.t.Error(got)
	}
	m.want(200, http.MethodPost, "trustee/key/gone?trusteeOp=undelete", "")
	m.stop()
	if !strings.Contains(log.String(), "was at another place before") ||
		!strings.Contains(log.String(), "was="+m.lite) {
		m.t.Errorf("the log does not name the former place: %s", log.String())
	}
}

// backToSQLite moves the metastore to another file.
func (m *movedStore) backToSQLite() {
	m.t.Helper()
	m.refused(m.lite, "was itself moved to "+m.shown)
	back := "sqlite://" + filepath.Join(m.dir, "back.db")
	if out, err := m.copied(back); err != nil || !strings.Contains(out, "2 keys with 5 versions, 0 deleted keys") {
		m.t.Fatal(out, err)
	}
	m.startRefused("was moved to " + back)
	m.on(back)
	m.start()
	m.wantEDEK()
	m.wantRoll("k@4")
	m.stop()
	m.refused("mysql://x", "or for several nodes postgresql://")
	link := filepath.Join(m.dir, "link.db")
	if err := os.Symlink("back.db", link); err != nil {
		m.t.Fatal(err)
	}
	for _, name := range []string{back, "sqlite://" + link, "sqlite://" + filepath.Dir(link) + "/./back.db"} {
		m.refused(name, "--to names the metastore that is configured already")
	}
}

// restoreFirst restores the first metastore, as if the later ones were lost. That needs --lose-keys.
func (m *movedStore) restoreFirst() {
	m.t.Helper()
	m.on(m.lite)
	if out, err := m.command("verify", "--conf", m.dir, "--no-token"); !isRefused(err) ||
		!strings.Contains(out, "MOVED") {
		m.t.Errorf("verify: %v\n%s", err, out)
	}
	backup := filepath.Join(m.dir, "backup.db")
	if out, err := m.command("backup", "--conf", m.dir, "--out", backup); err != nil ||
		!strings.Contains(out, "was moved to "+m.shown) {
		m.t.Errorf("backup: %v\n%s", err, out)
	}
	if out, err := m.command("restore", "--conf", m.dir, backup); !isRefused(err) ||
		!strings.Contains(out, "MOVED  to "+m.shown) || !strings.Contains(out, "LOST  k@4") {
		m.t.Errorf("restore: %v\n%s", err, out)
	}
	m.startRefused("was moved to " + m.shown)
	if out, err := m.command("restore", "--conf", m.dir, "--lose-keys", backup); err != nil ||
		!strings.Contains(out, "restored") {
		m.t.Fatalf("restore: %v\n%s", err, out)
	}
	m.start()
	m.wantEDEK()
	m.want(503, http.MethodPost, "keyversion/k@4/_eek?eek_op=decrypt",
		`{"name":"k","iv":"`+m.eek.IV+`","material":"`+m.eek.Encrypted.Material+`"}`)
	m.stop()
}

// TestMetastoreCopyKeepsWhatNodesSaw: a node that has seen changes of a metastore in PostgreSQL can change keys in a
// copy of it: in another database, and in a database that was copied from a file. In the old metastore it cannot.
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
			t.Fatalf("the changes that the node has seen: %s, %v", text, err)
		}
		if i+1 < len(places) {
			if out, err := s.copied(places[i+1]); err != nil {
				t.Fatal(out, err)
			}
			s.startRefused("was moved to ")
		}
	}
	// Without the mark of the move, the first database is a copy that lacks changes the node has seen.
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

// TestCopyShowsNoPassword: an error of --to does not repeat its value.
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

// isRefused reports whether a command with this error has the exit status exitRefused.
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

// unmark removes the mark of a move from an SQLite store, as if the command was interrupted before it wrote the mark.
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
