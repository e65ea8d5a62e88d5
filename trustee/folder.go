package trustee

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/ProtonMail/go-crypto/openpgp"
	"golang.org/x/sys/unix"

	"claviger"
	"claviger/durable"
	"claviger/secret"
)

// Names in a ".keytrustee" folder. They are Cloudera's, and those of GnuPG before 2.1, whose rings
// these are.
const (
	ConfFile    = "keytrustee.conf"
	PublicRing  = "pubring.gpg"
	PrivateRing = "secring.gpg"
	TLSCert     = ".ssl/ssl-cert-keytrustee.pem"
	TLSKey      = ".ssl/ssl-cert-keytrustee-pk.pem"
)

// newRing is the private ring of an identity that is being made. It gets its last name at the very
// end, so an identity whose ring has this name was never used.
const newRing = PrivateRing + ".new"

// maxFolderFile bounds each file of a folder.
const maxFolderFile = 4 << 20

// Folder is a ".keytrustee" folder: this host's identity, and the servers that it knows.
type Folder struct {
	Path string
	// Identity is this host's.
	Identity *Identity
	// Servers are the trustees whose answers are believed, the active one first.
	Servers []*Party
	// Org is the organization that this client is registered with; "" before.
	Org string
	// Store is the URI of the database of a Key Trustee Server, libpq's, without a password. It is
	// "" for a store in the folder, and for a client.
	Store string
	// Registered is when the client was registered; zero before.
	Registered time.Time
}

// conf is keytrustee.conf. LOCAL_FINGERPRINT is a public name of Cloudera's, whose server has names
// that begin with DB_ too; the other names are ours.
type conf struct {
	Local      string     `json:"LOCAL_FINGERPRINT"`
	Servers    []string   `json:"SERVER_FINGERPRINTS,omitempty"`
	Org        string     `json:"ORG,omitempty"`
	Registered *time.Time `json:"REGISTERED,omitempty"`
	Store      string     `json:"DB_CONNECT,omitempty"`
}

// MakeFolder makes the folder of an identity that will be made, which takes seconds. First it
// checks that nothing is overwritten and that files can be written there.
func MakeFolder(path string) error {
	const op = "trustee.MakeFolder"
	names := []string{ConfFile, PublicRing, PrivateRing}
	if Unfinished(path) {
		names = nil // the files that exist were never used
	}
	for _, name := range names {
		if _, err := os.Lstat(filepath.Join(path, name)); err == nil {
			return claviger.Errorf(op, claviger.Invalid, "", "%s holds %s already: an identity is never overwritten, "+
				"since what was encrypted to it would be lost; name another folder", path, name)
		}
	}
	if err := durable.MakeFolder(path, 0o700); err != nil {
		return claviger.E(op, claviger.Invalid, "", err)
	}
	if err := unix.Access(path, unix.W_OK|unix.X_OK); err != nil {
		return claviger.Errorf(op, claviger.Invalid, "", "no identity was made: %w; the folder must be writable for "+
			"this user", &fs.PathError{Op: "write to", Path: path, Err: err})
	}
	return nil
}

// Unfinished reports whether a process was killed while it made the folder of a new identity.
// Nothing was encrypted to that identity, and it is made anew.
func Unfinished(path string) bool {
	_, err := os.Lstat(filepath.Join(path, newRing))
	_, done := os.Lstat(filepath.Join(path, PrivateRing))
	return err == nil && errors.Is(done, fs.ErrNotExist)
}

// NewFolder makes a folder for a new identity. It refuses to touch an existing one. The folder is
// complete when the private ring gets its name, which comes last: work that was broken off before
// may be repeated.
func NewFolder(path string, id *Identity) (*Folder, error) {
	const op = "trustee.NewFolder"
	if err := MakeFolder(path); err != nil {
		return nil, err
	}
	f := &Folder{Path: path, Identity: id}
	var ring bytes.Buffer
	if err := id.secret(&ring); err != nil {
		return nil, claviger.E(op, claviger.Internal, "", err)
	}
	defer clear(ring.Bytes())
	if err := durable.Replace(filepath.Join(path, newRing), ring.Bytes(), 0o600); err != nil {
		return nil, claviger.E(op, claviger.Invalid, "", err)
	}
	if err := f.Save(); err != nil {
		return nil, err
	}
	if err := durable.Rename(filepath.Join(path, newRing), filepath.Join(path, PrivateRing)); err != nil {
		return nil, claviger.E(op, claviger.Invalid, "", err)
	}
	return f, nil
}

// Save writes the public parts: the ring with the keys of this host and of the servers, then
// keytrustee.conf, each whole or not at all.
func (f *Folder) Save() error {
	const op = "trustee.Save"
	var ring bytes.Buffer
	c := conf{Local: f.Identity.String(), Org: f.Org, Store: f.Store}
	if !f.Registered.IsZero() {
		at := f.Registered.UTC().Truncate(time.Second)
		c.Registered = &at
	}
	err := f.Identity.Public(&ring)
	for _, s := range f.Servers {
		c.Servers = append(c.Servers, s.String())
		err = errors.Join(err, s.Public(&ring))
	}
	if err != nil {
		return claviger.E(op, claviger.Internal, "", err)
	}
	text, err := json.MarshalIndent(c, "", "  ")
	if err == nil {
		err = durable.Replace(filepath.Join(f.Path, PublicRing), ring.Bytes(), 0o600)
	}
	if err == nil {
		err = durable.Replace(filepath.Join(f.Path, ConfFile), append(text, '\n'), 0o600)
	}
	if err != nil {
		return claviger.E(op, claviger.Invalid, "", err)
	}
	return nil
}

// WriteFile writes another file of this client into the folder, whole or not at all.
func (f *Folder) WriteFile(name string, data []byte) error {
	return durable.Replace(filepath.Join(f.Path, name), data, 0o600)
}

// ReadFile reads such a file; fs.ErrNotExist if it does not exist.
func (f *Folder) ReadFile(name string) ([]byte, error) { return readFile(filepath.Join(f.Path, name)) }

// Mark distinguishes a folder from its copies, on this host and others.
func Mark(path string) (string, error) {
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return "", &fs.PathError{Op: "stat", Path: path, Err: err}
	}
	host, err := os.Hostname()
	return fmt.Sprintf("%s %d", host, st.Ino), err
}

// ErrNoFolder says that there is no folder at a place, and no sign of one that was copied to the
// wrong place; or that its identity was never finished.
var ErrNoFolder = errors.New("no folder")

// LoadFolder reads a folder. Its errors, all of kind Invalid, say which file does not fit and what
// to do. ErrNoFolder is in the error if there is no folder.
func LoadFolder(path string) (*Folder, error) {
	f, err := loadFolder(path)
	if err != nil {
		return nil, claviger.Errorf("trustee.LoadFolder", claviger.Invalid, "", "%w", err)
	}
	return f, nil
}

func loadFolder(path string) (*Folder, error) {
	if Unfinished(path) {
		return nil, fmt.Errorf("%s holds an identity of which a process was killed while it made it, and which was "+
			"never used: the next start, or claviger trustee init, makes one anew (%w)", path, ErrNoFolder)
	}
	text, err := readFile(filepath.Join(path, ConfFile))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, missingConf(path)
	}
	if err != nil {
		return nil, err
	}
	var c conf
	if err := json.Unmarshal(text, &c); err != nil {
		return nil, fmt.Errorf("%s is not the JSON that it should be (%w): copy it anew, with both rings, from the "+
			"host that works", filepath.Join(path, ConfFile), err)
	}
	if c.Local == "" {
		return nil, fmt.Errorf("%s has no LOCAL_FINGERPRINT: copy it anew, with both rings, from the host that works",
			filepath.Join(path, ConfFile))
	}
	f := &Folder{Path: path, Org: c.Org, Store: c.Store}
	if c.Registered != nil {
		f.Registered = *c.Registered
	}
	private, err := readRing(path, PrivateRing)
	if err != nil {
		return nil, err
	}
	own := find(private, c.Local)
	if own == nil {
		return nil, fmt.Errorf("%s is of identity %s, but %s holds %s: the files are not of one host; copy %s, %s "+
			"and %s together from the host that works",
			filepath.Join(path, ConfFile), c.Local, PrivateRing, names(private), ConfFile, PublicRing, PrivateRing)
	}
	if err := usable(own, filepath.Join(path, PrivateRing), c.Local); err != nil {
		return nil, err
	}
	if f.Identity, err = newIdentity("trustee.LoadFolder", own); err != nil {
		return nil, err
	}
	public, err := readRing(path, PublicRing)
	if err != nil {
		return nil, err
	}
	if find(public, c.Local) == nil {
		return nil, fmt.Errorf("%s holds %s, but not our own key %s: the files are not of one host; copy %s, %s and "+
			"%s together from the host that works",
			filepath.Join(path, PublicRing), names(public), c.Local, ConfFile, PublicRing, PrivateRing)
	}
	for _, s := range c.Servers {
		e := find(public, s)
		if e == nil {
			return nil, fmt.Errorf("%s lacks the key of the Key Trustee Server, %s, which %s names: copy both anew "+
				"from the host that works",
				filepath.Join(path, PublicRing), s, ConfFile)
		}
		p, err := newParty("trustee.LoadFolder", e)
		if err != nil {
			return nil, err
		}
		f.Servers = append(f.Servers, p)
	}
	return f, nil
}

// missingConf says what is at the place of a folder instead.
func missingConf(path string) error {
	// `scp -r A/kms-keytrustee HOST:/B/kms-keytrustee/` puts the folder of A into the folder of B
	// if that exists.
	for _, inner := range []string{".keytrustee", "keytrustee/.keytrustee", "kms-keytrustee/keytrustee/.keytrustee",
		"kms-keytrustee/.keytrustee"} {
		nested := filepath.Join(path, inner)
		if _, err := os.Stat(filepath.Join(nested, ConfFile)); err == nil {
			return fmt.Errorf("%s has no %s, but %s has: a copy by scp -r into a folder that was there already goes "+
				"one level too deep; move the files of %s up to %s, or name that folder", path, ConfFile, nested,
				nested, path)
		}
	}
	parent := filepath.Dir(filepath.Clean(path))
	for _, nested := range []string{
		filepath.Join(parent, "kms-keytrustee", "keytrustee", ".keytrustee"),
		filepath.Join(parent, "kms-keytrustee", ".keytrustee"),
		filepath.Join(filepath.Dir(parent), "kms-keytrustee", "keytrustee", ".keytrustee"),
		filepath.Join(parent, "keytrustee", ".keytrustee"),
	} {
		if _, err := os.Stat(filepath.Join(nested, ConfFile)); err == nil {
			return fmt.Errorf("%s has no %s, but %s has: a copy by scp -r into a folder that was there already goes "+
				"one level too deep; move %s to %s", path, ConfFile, nested, nested, path)
		}
	}
	if list, err := os.ReadDir(path); len(list) == 0 && (err == nil || errors.Is(err, fs.ErrNotExist)) {
		return fmt.Errorf("%s is not there (%w): copy the folder from a KT KMS host, or let a KT KMS make it at its "+
			"first start", path, ErrNoFolder)
	}
	return fmt.Errorf("%s has no %s: copy it, with %s and %s, from a KT KMS host that works; if no KMS was ever "+
		"registered with what lies there, move it away", path, ConfFile, PublicRing, PrivateRing)
}

func readFile(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxFolderFile+1))
	if err == nil && len(b) > maxFolderFile {
		err = fmt.Errorf("%s is longer than %d bytes; is it the right file?", path, maxFolderFile)
	}
	return b, err
}

func readRing(path, name string) (openpgp.EntityList, error) {
	file := filepath.Join(path, name)
	b, err := readFile(file)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%s is missing: copy %s, %s and %s together from the host that works", file, ConfFile,
			PublicRing, PrivateRing)
	}
	if err != nil {
		return nil, err
	}
	defer clear(b)
	list, err := openpgp.ReadKeyRing(bytes.NewReader(b))
	if err != nil {
		return nil, fmt.Errorf("%s is no OpenPGP key ring (%w): copy it anew from the host that works. GnuPG 2.1 and "+
			"later keep other files (pubring.kbx, private-keys-v1.d); export from them with gpg --export and gpg "+
			"--export-secret-keys", file, err)
	}
	return list, nil
}

// find returns the key of a fingerprint in the form "4096R/<40 hex>".
func find(list openpgp.EntityList, fingerprint string) *openpgp.Entity {
	_, want, ok := strings.Cut(fingerprint, "/")
	if !ok {
		want = fingerprint
	}
	i := slices.IndexFunc(list, func(e *openpgp.Entity) bool {
		return strings.EqualFold(fmt.Sprintf("%X", e.PrimaryKey.Fingerprint), want)
	})
	if i < 0 {
		return nil
	}
	return list[i]
}

func names(list openpgp.EntityList) string {
	if len(list) == 0 {
		return "no key"
	}
	all := make([]string, len(list))
	for i, e := range list {
		all[i] = fmt.Sprintf("%X", e.PrimaryKey.Fingerprint)
	}
	return strings.Join(all, ", ")
}

// usable refuses a key whose private parts are missing or locked.
func usable(e *openpgp.Entity, file, fingerprint string) error {
	if e.PrivateKey == nil || e.PrivateKey.Dummy() {
		return fmt.Errorf("%s holds the key %s without its private part: copy the ring from the host that works", file,
			fingerprint)
	}
	locked := e.PrivateKey.Encrypted
	for _, s := range e.Subkeys {
		locked = locked || s.PrivateKey != nil && s.PrivateKey.Encrypted
	}
	if locked {
		return fmt.Errorf("in %s the key %s is locked by a passphrase, and a server has nobody to ask for it: remove "+
			"it with gpg --homedir FOLDER --edit-key %s passwd, and protect the folder by its mode", file, fingerprint,
			strings.TrimPrefix(fingerprint[strings.IndexByte(fingerprint, '/')+1:], "0x"))
	}
	return nil
}

// SecretFiles are the files that other users of this host must not read: the folder and its private
// ring, which GnuPG does not open to a group either.
func SecretFiles(path string) []secret.File {
	var list []secret.File
	for _, name := range []string{PrivateRing, ConfFile, "."} {
		list = append(list, secret.File{Path: filepath.Join(path, name), Deny: 0o077})
	}
	return list
}
