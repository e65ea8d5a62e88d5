package edeks

import (
	"bytes"
	"context"
	"crypto/md5" //nolint:gosec // Hadoop's digest of images
	"encoding/hex"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"

	"claviger"
	"claviger/internal/imagetest"
	"claviger/terminal"
)

// server answers as a NameNode does, with faults. test/hadoop fetches from a real one.
type server struct {
	mu      sync.Mutex // a client that gave up may have a request under way
	image   []byte
	txid    uint64
	digest  string // "" is the right one, "none" is an answer without a digest
	status  int    // 0 is 200
	breaks  int    // how many transfers break off
	fetches int
}

func (s *server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if s.status != 0 {
		w.WriteHeader(s.status)
		return
	}
	if txid := r.FormValue("txid"); r.URL.Path != "/imagetransfer" || r.FormValue("getimage") != "1" ||
		txid != "latest" && txid != strconv.FormatUint(s.txid, 10) {
		w.WriteHeader(http.StatusGone)
		return
	}
	sum := md5.Sum(s.image) //nolint:gosec // Hadoop's digest of images
	digest := s.digest
	if digest == "" {
		digest = hex.EncodeToString(sum[:])
	}
	if digest != "none" {
		w.Header().Set("X-MD5-Digest", digest)
	}
	w.Header().Set("X-Image-Edits-Name", "fsimage_000000000000000000"+strconv.FormatUint(s.txid, 10))
	w.Header().Set("Content-Length", strconv.Itoa(len(s.image)))
	if r.Method == http.MethodHead {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.fetches++
	if s.breaks > 0 {
		s.breaks--
		_, _ = w.Write(s.image[:len(s.image)/2])
		if s.breaks%2 == 0 {
			w.(http.Flusher).Flush()
		}
		panic(http.ErrAbortHandler)
	}
	_, _ = w.Write(s.image)
}

func start(t *testing.T, s *server) string {
	t.Helper()
	web := httptest.NewServer(s)
	t.Cleanup(web.Close)
	return web.URL
}

// smallImage is an image with one EDEK. If leaked is true, it also has an inode in no folder.
func smallImage(leaked bool) []byte {
	tree := imagetest.Tree{Nodes: []imagetest.Node{
		{ID: imagetest.Root, Folder: true, Children: []uint64{20000}},
		{ID: 20000, Name: "f", EDEK: "k@1"},
	}}
	if leaked {
		tree.Nodes = append(tree.Nodes, imagetest.Node{ID: 20001, Name: "g", EDEK: "k@0"})
	}
	b, _ := tree.Bytes()
	return b
}

// run runs the command, and returns its output.
func run(o Options, args ...string) (string, error) {
	var b bytes.Buffer
	o.Workers, o.Out = 2, *terminal.To(&b)
	err := Census(context.Background(), &o, args, io.Discard)
	return b.String(), err
}

// TestNewestNameNode: of several NameNodes, the one with the newest image is used, and those that do not answer are
// left out.
func TestNewestNameNode(t *testing.T) {
	old, newer := &server{image: smallImage(true), txid: 7}, &server{image: smallImage(false), txid: 8}
	urls := []string{start(t, &server{status: http.StatusForbidden}), start(t, old), start(t, newer),
		"http://127.0.0.1:1"}
	out, err := run(Options{NameNodes: urls})
	if err != nil || !strings.Contains(out, "k@1") || old.fetches != 0 || newer.fetches != 1 {
		t.Errorf("%v\n%s\nfetches %d and %d", err, out, old.fetches, newer.fetches)
	}
}

// TestBrokenTransfer: a transfer that breaks off begins again, and what it wrote before is not kept.
func TestBrokenTransfer(t *testing.T) {
	s := &server{image: smallImage(false), txid: 8, breaks: 2}
	if out, err := run(Options{NameNodes: []string{start(t, s)}}); err != nil || !strings.Contains(out, "k@1") {
		t.Errorf("%v\n%s", err, out)
	}
	s.breaks = 2
	file := filepath.Join(t.TempDir(), "image")
	out, err := run(Options{NameNodes: []string{start(t, s)}, Fetch: file})
	if err != nil || !strings.Contains(out, file) {
		t.Errorf("%v\n%s", err, out)
	}
	got, err := os.ReadFile(file)
	if err != nil || !bytes.Equal(got, s.image) {
		t.Errorf("%v: %d bytes, want %d", err, len(got), len(s.image))
	}
	info, err := os.Stat(file)
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", info, err)
	}
	sum := md5.Sum(s.image) //nolint:gosec // Hadoop's digest of images
	text, err := os.ReadFile(file + ".md5")
	if err != nil || string(text) != hex.EncodeToString(sum[:])+" *image\n" {
		t.Errorf("%v: the digest beside the image is %q", err, text)
	}
	if image, err := (&Options{Workers: 1}).readImage(t.Context(), file, io.Discard); err != nil || image.Unchecked {
		t.Errorf("a verdict on the fetched image: %v, %+v", err, image)
	}
	if err := os.Remove(file); err != nil {
		t.Fatal(err)
	}
	if _, err := run(Options{NameNodes: []string{start(t, s)}, Fetch: file}); !errors.Is(err, os.ErrExist) ||
		!strings.Contains(err.Error(), "image.md5") {
		t.Errorf("a digest is there: %v", err)
	}
	if _, err := os.Lstat(file); err == nil {
		t.Error("a digest is there, and the image was fetched all the same")
	}
	if err := errors.Join(os.Remove(file+".md5"), os.WriteFile(file, nil, 0o600)); err != nil {
		t.Fatal(err)
	}
	if _, err := run(Options{NameNodes: []string{start(t, s)}, Fetch: file}); !errors.Is(err, os.ErrExist) {
		t.Errorf("an image is there: %v", err)
	}
	if info, err := os.Stat(file); err != nil || info.Size() != 0 {
		t.Errorf("a file was overwritten: %v, %v", info, err)
	}
}

// TestRefusals: each failure says what to do, and leaves no file.
func TestRefusals(t *testing.T) {
	for want, s := range map[string]*server{
		"dfs.cluster.administrators": {status: http.StatusForbidden},
		"its log says more":          {status: http.StatusGone},
		"not by Kerberos":            {status: http.StatusUnauthorized},
		"(tried 3 times)":            {image: smallImage(false), txid: 1, breaks: 9},
		"MD5 digest is":              {image: smallImage(false), txid: 1, digest: strings.Repeat("ab", 16)},
		"has no X-MD5-Digest":        {image: smallImage(false), txid: 1, digest: "none"},
		"no MD5 digest":              {image: smallImage(false), txid: 1, digest: "xyz"},
	} {
		folder := t.TempDir()
		_, err := run(Options{NameNodes: []string{start(t, s)}, Fetch: filepath.Join(folder, "image")})
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %q", err, want)
		}
		if left, err := os.ReadDir(folder); err != nil || len(left) > 0 {
			t.Errorf("%s: %v left behind, %v", want, left, err)
		}
	}
	if _, err := run(Options{NameNodes: []string{"https://user:secret@nn"}}); err == nil ||
		strings.Contains(err.Error(), "secret") {
		t.Errorf("a password in the address: %v", err)
	}
	plain := httptest.NewServer(http.NotFoundHandler())
	defer plain.Close()
	if _, err := run(Options{NameNodes: []string{plain.URL}}); err == nil || !strings.Contains(err.Error(), "404") {
		t.Errorf("no NameNode: %v", err)
	}
}

// TestIncompleteCensus: counts that do not add up are shown, and the command refuses the conclusion.
func TestIncompleteCensus(t *testing.T) {
	file := filepath.Join(t.TempDir(), "image")
	if err := os.WriteFile(file, smallImage(true), 0o600); err != nil {
		t.Fatal(err)
	}
	out, err := run(Options{}, file)
	if !errors.As(err, new(*claviger.RefusedError)) || !strings.Contains(out, "PROBLEM: 1 inodes are reached by no") {
		t.Errorf("%v\n%s", err, out)
	}
}
