// Package backup writes a .keytrustee folder, and the store of a Key Trustee Server, as one OpenPGP
// message, and reads them back.
//
// The message holds a tar archive: the files of the folder, the records of the store as lines of JSON in
// several files, and at the end a manifest with the digests of all files and of the store. The archive is
// never written unencrypted. A restoration is compared with the manifest before it gets its final name.
package backup

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/ProtonMail/go-crypto/openpgp"
	"github.com/ProtonMail/go-crypto/openpgp/armor"
	"github.com/ProtonMail/go-crypto/openpgp/packet"
	"golang.org/x/sys/unix"

	"claviger/durable"
	"claviger/trustee"
	"claviger/trustee/server"
)

const (
	format       = 1
	manifestName = "manifest.json"
	folderPrefix = "folder/"
	storePrefix  = "store/"
	// pieceSize is about how many bytes of records are in one file of the archive. A tar header needs the
	// size of the file.
	pieceSize = 1 << 20
	// maxFile is the size limit of a file of an archive. A deposit of the greatest size is far smaller.
	maxFile = 16 << 20
)

// files are the files of a folder that a backup holds: the rings, the configuration, and certificates. A
// backup holds no other file.
var files = []string{
	trustee.ConfFile, trustee.PublicRing, trustee.PrivateRing,
	".ssl/ssl-cert-keytrustee.pem", ".ssl/ssl-cert-keytrustee-pk.pem", ".ssl/ssl-cert-keytrustee-ca.pem",
}

// Manifest says what is in a backup.
type Manifest struct {
	Format   int       `json:"format"`
	Made     time.Time `json:"made"`
	Host     string    `json:"host"`
	Identity string    `json:"identity"` // "4096R/<40 hex digits>"
	Files    []File    `json:"files"`
	Store    *Store    `json:"store,omitempty"` // nil for the folder of a client
}

// File is a file of the archive. Files are in the order of the archive.
type File struct {
	Name   string `json:"name"`
	Size   int64  `json:"size"`
	SHA256 string `json:"sha256"`
}

// Store counts the records of the store. Digest is that of server.Digester.
type Store struct {
	Orgs     int    `json:"orgs"`
	Clients  int    `json:"clients"`
	Deposits int    `json:"deposits"`
	Digest   string `json:"digest"`
}

// Recipients reads OpenPGP public keys, binary or armored, as gpg --export writes them.
func Recipients(r io.Reader) (openpgp.EntityList, error) { return keys(r) }

// keys reads a ring of at most 4 MiB.
func keys(r io.Reader) (openpgp.EntityList, error) {
	b, err := io.ReadAll(io.LimitReader(r, 4<<20))
	if err != nil {
		return nil, err
	}
	defer clear(b)
	var list openpgp.EntityList
	if bytes.HasPrefix(bytes.TrimSpace(b), []byte("-----BEGIN")) {
		list, err = openpgp.ReadArmoredKeyRing(bytes.NewReader(b))
	} else {
		list, err = openpgp.ReadKeyRing(bytes.NewReader(b))
	}
	if err == nil && len(list) == 0 {
		err = errors.New("it holds no key")
	}
	return list, err
}

// writer writes an archive.
type writer struct {
	tar *tar.Writer
	m   Manifest
}

func (w *writer) add(name string, data []byte) error {
	h := &tar.Header{Name: name, Mode: 0o600, Size: int64(len(data)), ModTime: w.m.Made, Format: tar.FormatPAX}
	if err := w.tar.WriteHeader(h); err != nil {
		return err
	}
	sum := sha256.Sum256(data)
	w.m.Files = append(w.m.Files, File{name, int64(len(data)), hex.EncodeToString(sum[:])})
	_, err := w.tar.Write(data)
	return err
}

// Write writes the folder in dir, and store if it is not nil, to out, encrypted to the recipients. The
// store may be in use.
func Write(ctx context.Context, out io.Writer, to openpgp.EntityList, dir string, store server.Store,
	now time.Time) (Manifest, error) {
	folder, err := trustee.LoadFolder(dir)
	if err != nil {
		return Manifest{}, err
	}
	for _, e := range to {
		if strings.EqualFold(fmt.Sprintf("%X", e.PrimaryKey.Fingerprint), folder.Identity.Fingerprint()) {
			return Manifest{}, fmt.Errorf("encrypt to the recipient: %s is the identity in the folder, so the backup "+
				"itself would hold the only key that opens it: give a key that is kept elsewhere", folder.Identity)
		}
	}
	host, err := os.Hostname()
	if err != nil {
		return Manifest{}, err
	}
	conf := &packet.Config{DefaultCipher: packet.CipherAES256, Time: func() time.Time { return now }}
	plain, err := openpgp.Encrypt(out, to, nil, &openpgp.FileHints{IsBinary: true, FileName: "keytrustee.tar"}, conf)
	if err != nil {
		return Manifest{}, fmt.Errorf("encrypt to the recipient: %w; see gpg --list-keys: it takes a key for "+
			"encryption [E] that has not expired", err)
	}
	w := &writer{tar.NewWriter(plain), Manifest{Format: format, Made: now.UTC().Truncate(time.Second), Host: host,
		Identity: folder.Identity.String()}}
	for _, name := range files {
		b, err := os.ReadFile(filepath.Join(dir, name))
		if errors.Is(err, fs.ErrNotExist) {
			continue // LoadFolder has found all required files
		}
		if err == nil {
			err = w.add(folderPrefix+name, b)
		}
		clear(b)
		if err != nil {
			return w.m, err
		}
	}
	if store != nil {
		if err := w.records(ctx, store); err != nil {
			return w.m, err
		}
	}
	text, err := json.MarshalIndent(w.m, "", "  ")
	if err == nil {
		err = w.add(manifestName, text)
		w.m.Files = w.m.Files[:len(w.m.Files)-1] // the manifest does not name itself
	}
	if err == nil {
		err = w.tar.Close()
	}
	if err == nil {
		err = plain.Close()
	}
	return w.m, err
}

func (w *writer) records(ctx context.Context, store server.Store) error {
	var buf bytes.Buffer
	n := 0
	flush := func() error {
		n++
		defer buf.Reset()
		return w.add(fmt.Sprintf("%s%06d.jsonl", storePrefix, n), buf.Bytes())
	}
	digest := new(server.Digester)
	enc := json.NewEncoder(&buf)
	err := store.Export(ctx, func(r server.Record) error {
		if err := digest.Add(r); err != nil {
			return err
		}
		if err := enc.Encode(r); err != nil {
			return err
		}
		if buf.Len() >= pieceSize {
			return flush()
		}
		return nil
	})
	if err == nil {
		err = flush()
	}
	w.m.Store = &Store{digest.Orgs, digest.Clients, digest.Deposits, digest.Sum()}
	return err
}

// Decrypt returns a reader of the archive in a backup. It uses the first key of the ring that opens the
// backup. At the end, the reader returns an error if the backup was altered or truncated.
func Decrypt(in io.Reader, ring io.Reader) (io.Reader, error) {
	list, err := keys(ring)
	if err != nil {
		return nil, fmt.Errorf("the key ring: %w", err)
	}
	for _, e := range list {
		if e.PrivateKey != nil && e.PrivateKey.Encrypted {
			return nil, fmt.Errorf("the key %X is locked by a passphrase: pipe the backup through gpg --decrypt "+
				"instead, and name no key ring", e.PrimaryKey.Fingerprint)
		}
	}
	head := make([]byte, len("-----BEGIN"))
	n, err := io.ReadFull(in, head)
	if err != nil && !errors.Is(err, io.ErrUnexpectedEOF) {
		return nil, err
	}
	in = io.MultiReader(bytes.NewReader(head[:n]), in)
	if string(head) == "-----BEGIN" {
		block, err := armor.Decode(in)
		if err != nil {
			return nil, err
		}
		in = block.Body
	}
	md, err := openpgp.ReadMessage(in, list, nil, nil)
	if err != nil {
		return nil, fmt.Errorf("this key ring does not open the backup: %w", err)
	}
	return md.UnverifiedBody, nil
}

// Open makes the store of a folder that is being restored.
type Open func(ctx context.Context, dir string) (server.Store, error)

// Read restores the decrypted archive in, which Write wrote, into dir, which must be missing or empty. It
// works in a folder beside dir, and renames that folder to dir when everything agrees with the manifest.
// After an error, or if the caller is killed, dir has not changed, and the next run removes the work folder
// of a killed run. open makes the store, if the backup has one. If wanted is true, Read refuses a backup
// without a store.
func Read(ctx context.Context, in io.Reader, dir string, open Open, wanted bool) (m Manifest, err error) {
	dir = filepath.Clean(dir)
	if list, err := os.ReadDir(dir); len(list) > 0 || err != nil && !errors.Is(err, fs.ErrNotExist) {
		return m, fmt.Errorf("%s is not empty, and was not overwritten, because everything that was encrypted to an "+
			"identity is lost with it; name another folder, or move that one away (%w)", dir,
			errors.Join(fs.ErrExist, err))
	}
	if err := durable.MakeFolder(filepath.Dir(dir), 0o700); err != nil {
		return m, err
	}
	if err := removeKilled(filepath.Dir(dir)); err != nil {
		return m, err
	}
	work, err := os.MkdirTemp(filepath.Dir(dir), workPattern)
	if err != nil {
		return m, err
	}
	lock, err := os.Open(work)
	if err == nil {
		err = unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	}
	if err != nil {
		return m, errors.Join(err, os.RemoveAll(work))
	}
	defer func() {
		rerr := errors.Join(os.RemoveAll(work), lock.Close())
		if err == nil {
			err = rerr
		}
	}()
	r := &reader{tar: tar.NewReader(in), dir: filepath.Join(work, "folder")}
	if err := durable.MakeFolder(r.dir, 0o700); err != nil {
		return m, err
	}
	if err := r.all(ctx, open); err != nil {
		return m, err
	}
	// The check of the whole message comes after its last byte.
	if _, err := io.Copy(io.Discard, in); err != nil {
		return m, fmt.Errorf("the backup was altered or is truncated: %w", err)
	}
	folder, err := trustee.LoadFolder(r.dir)
	if err != nil {
		return m, err
	}
	if folder.Identity.String() != r.m.Identity {
		return m, fmt.Errorf("the backup has the folder of %s, but its manifest names %s", folder.Identity,
			r.m.Identity)
	}
	if wanted && r.m.Store == nil {
		return m, errors.New("the backup has the folder of a client, and no deposits for a store")
	}
	if err := os.Remove(dir); err != nil && !errors.Is(err, fs.ErrNotExist) { // it is empty
		return m, err
	}
	return r.m, durable.Rename(r.dir, dir)
}

// workPattern is the pattern of the names of work folders of restorations.
const workPattern = ".claviger-restore-*"

// removeKilled removes the work folders of killed restorations in dir, which may hold private keys. A
// running restoration locks its folder.
func removeKilled(dir string) error {
	list, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, entry := range list {
		if matches, err := path.Match(workPattern, entry.Name()); err != nil || !matches {
			continue
		}
		work := filepath.Join(dir, entry.Name())
		f, err := os.OpenFile(work, unix.O_DIRECTORY|unix.O_NOFOLLOW, 0)
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENOTDIR) {
			continue // removed meanwhile, or not a work folder: a file, or a symbolic link
		}
		if err != nil {
			return err
		}
		if err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err == nil {
			err = os.RemoveAll(work)
		} else if errors.Is(err, unix.EWOULDBLOCK) {
			err = nil
		}
		if err = errors.Join(err, f.Close()); err != nil {
			return err
		}
	}
	return nil
}

// reader reads an archive.
type reader struct {
	tar  *tar.Reader
	dir  string
	m    Manifest
	seen []File
}

// next returns the next file of the archive.
func (r *reader) next() (name string, data []byte, err error) {
	h, err := r.tar.Next()
	if errors.Is(err, io.EOF) {
		return "", nil, errors.New("the backup ends before its manifest: it is truncated, or not a backup")
	}
	if err != nil {
		return "", nil, fmt.Errorf("this is not a backup of claviger, or it was altered: %w", err)
	}
	if h.Typeflag != tar.TypeReg || h.Size > maxFile {
		return "", nil, fmt.Errorf("the backup holds %q, of %d bytes, which claviger does not write", h.Name, h.Size)
	}
	if data, err = io.ReadAll(io.LimitReader(r.tar, maxFile)); err != nil {
		return "", nil, fmt.Errorf("the backup was altered or is truncated: %w", err)
	}
	sum := sha256.Sum256(data)
	if h.Name != manifestName {
		r.seen = append(r.seen, File{h.Name, int64(len(data)), hex.EncodeToString(sum[:])})
	}
	return h.Name, data, nil
}

func (r *reader) all(ctx context.Context, open Open) (err error) {
	name, data, err := r.next()
	for err == nil && strings.HasPrefix(name, folderPrefix) {
		file := strings.TrimPrefix(name, folderPrefix)
		if !slices.Contains(files, file) {
			return fmt.Errorf("the backup holds %q, which claviger does not write", name)
		}
		err = r.write(file, data)
		clear(data)
		if err == nil {
			name, data, err = r.next()
		}
	}
	var digest *server.Digester
	if err == nil && strings.HasPrefix(name, storePrefix) {
		store, oerr := open(ctx, r.dir)
		if oerr != nil {
			return oerr
		}
		err = store.Import(ctx, r.records(&name, &data))
		if err == nil {
			// Use the records in the store now, not the records that were read.
			digest = new(server.Digester)
			err = store.Export(ctx, digest.Add)
		}
		err = errors.Join(err, store.Close())
	}
	if err != nil {
		return err
	}
	if name != manifestName {
		return fmt.Errorf("the backup holds %q where its manifest should be", name)
	}
	if err := strict(data, &r.m); err != nil {
		return fmt.Errorf("the backup's manifest: %w", err)
	}
	return r.checkManifest(digest)
}

// records returns a function that returns the records in the files of the store, one by one. It then sets
// name and data to the file that follows.
func (r *reader) records(name *string, data *[]byte) func() (server.Record, error) {
	dec := json.NewDecoder(bytes.NewReader(*data))
	return func() (rec server.Record, err error) {
		for {
			err = dec.Decode(&rec)
			if !errors.Is(err, io.EOF) {
				return rec, err
			}
			if *name, *data, err = r.next(); err != nil {
				return rec, err
			}
			if !strings.HasPrefix(*name, storePrefix) {
				return rec, io.EOF
			}
			dec = json.NewDecoder(bytes.NewReader(*data))
		}
	}
}

func (r *reader) write(name string, data []byte) error {
	file := filepath.Join(r.dir, filepath.FromSlash(path.Clean(name)))
	if err := durable.MakeFolder(filepath.Dir(file), 0o700); err != nil {
		return err
	}
	return durable.Create(file, data, 0o600)
}

// checkManifest compares the archive and the restored store with the manifest.
func (r *reader) checkManifest(digest *server.Digester) error {
	switch {
	case r.m.Format != format:
		return fmt.Errorf("the backup has format %d, but this version of claviger reads only %d", r.m.Format, format)
	case !slices.Equal(r.m.Files, r.seen):
		return errors.New("the backup's files are not those of its manifest: it was altered")
	case (r.m.Store == nil) != (digest == nil):
		return errors.New("either the backup or its manifest has a store, but not both")
	case digest == nil:
		return nil
	}
	if got := (Store{digest.Orgs, digest.Clients, digest.Deposits, digest.Sum()}); got != *r.m.Store {
		return fmt.Errorf("the restored store has %d organizations, %d clients, %d deposits and digest %s, the "+
			"manifest %d, %d, %d and %s",
			got.Orgs, got.Clients, got.Deposits, got.Digest, r.m.Store.Orgs, r.m.Store.Clients, r.m.Store.Deposits,
			r.m.Store.Digest)
	}
	return nil
}

// strict decodes JSON, and refuses unknown names.
func strict(data []byte, into any) error {
	dec := json.NewDecoder(bytes.NewReader(data))
	dec.DisallowUnknownFields()
	return dec.Decode(into)
}
