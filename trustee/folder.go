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

// newRing is the private ring of an identity that is being made. The ring is renamed to PrivateRing
// last, so an identity whose ring has this name was never used.
const newRing = PrivateRing + ".new"

// maxFolderFile bounds each file of a folder.
const maxFolderFile = 4 << 20

// Folder is a ".keytrustee" folder: the identity of this host, and the servers that the host trusts.
type Folder struct {
	Path string
	// Identity is the identity of this host.
	Identity *Identity
	// Servers are the trustees whose answers this host accepts, the active one first.
	Servers []*Party
	// Org is the organization of this client; "" before the client is registered.
	Org string
	// Store is the URI of the database of a Key Trustee Server, in the form of libpq, without a
	// password. It is "" for a store in the folder, and for a client.
	Store string
	// Registered is when the client was registered; zero before the registration.
	Registered time.Time
}

// conf is keytrustee.conf. LOCAL_FINGERPRINT, and names that begin with DB_, are known from
// Cloudera's server; the other names are ours.
type conf struct {
	Local      string     `json:"LOCAL_FINGERPRINT"`
	Servers    []string   `json:"SERVER_FINGERPRINTS,omitempty"`
	Org        string     `json:"ORG,omitempty"`
	Registered *time.Time `json:"REGISTERED,omitempty"`
	Store      string     `json:"DB_CONNECT,omitempty"`
}

// MakeFolder makes the folder of a new identity, before the identity is made, which takes seconds.
// It checks that the folder holds no identity and that files can be written into it.
func MakeFolder(path string) error {
	const op = "trustee.MakeFolder"
	names := []string{ConfFile, PublicRing, PrivateRing}
	if Unfinished(path) {
		names = nil // the files that exist were never used
	}
	for _, name := range names {
		if _, err := os.Lstat(filepath.Join(path, name)); err == nil {
			return claviger.Errorf(op, claviger.Invalid, "", "%s already holds %s: an identity is never overwritten, "+
				"because everything that was encrypted to it would be lost; name another folder", path, name)
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
// Nothing was encrypted to that identity, so NewFolder may replace it.
func Unfinished(path string) bool {
	_, err := os.Lstat(filepath.Join(path, newRing))
	_, done := os.Lstat(filepath.Join(path, PrivateRing))
	return err == nil && errors.Is(done, fs.ErrNotExist)
}

// NewFolder makes a folder for a new identity. It refuses to change a folder that holds an identity.
// Its last step, the rename of the private ring, completes the folder. After an interruption before
// that step, NewFolder may be called again.
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

// WriteFile writes another file of this client into the folder, completely or not at all.
func (f *Folder) WriteFile(name string, data []byte) error {
	return durable.Replace(filepath.Join(f.Path, name), data, 0o600)
}

// ReadFile reads a file that WriteFile wrote; fs.ErrNotExist if it does not exist.
func (f *Folder) ReadFile(name string) ([]byte, error) { return readFile(filepath.Join(f.Path, name)) }

// Mark returns a text that distinguishes a folder from its copies, on this host and others.
func Mark(path string) (string, error) {
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return "", &fs.PathError{Op: "stat", Path: path, Err: err}
	}
	host, err := os.Hostname()
	return fmt.Sprintf("%s %d", host, st.Ino), err
}

// ErrNoFolder means that there is no folder, and no sign of a folder that was copied to the wrong
// path; or that the identity in the folder is unfinished.
var ErrNoFolder = errors.New("no folder")

// LoadFolder reads a folder. Its errors are of kind Invalid, and name the file that is wrong and
// what to do. ErrNoFolder is in the error if there is no folder.
func LoadFolder(path string) (*Folder, error) {
	f, err := loadFolder(path)
	if err != nil {
		return nil, claviger.Errorf("trustee.LoadFolder", claviger.Invalid, "", "%w", err)
	}
	return f, nil
}

func loadFolder(path string) (*Folder, error) {
	if Unfinished(path) {
		return nil, fmt.Errorf("the identity in %s is unfinished: a process was killed while it made the identity, "+
			"and nothing used the identity; the next start, or claviger trustee init, makes a new one (%w)",
			path, ErrNoFolder)
	}
	c, err := loadConf(path)
	if err != nil {
		return nil, err
	}
	f := &Folder{Path: path, Org: c.Org, Store: c.Store}
	if c.Registered != nil {
		f.Registered = *c.Registered
	}
	if f.Identity, err = loadIdentity(path, c.Local); err != nil {
		return nil, err
	}
	f.Servers, err = loadServers(path, c)
	return f, err
}

// loadConf reads keytrustee.conf.
func loadConf(path string) (*conf, error) {
	text, err := readFile(filepath.Join(path, ConfFile))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, missingConf(path)
	}
	if err != nil {
		return nil, err
	}
	var c conf
	if err := json.Unmarshal(text, &c); err != nil {
		return nil, fmt.Errorf("%s is not the JSON that it should be (%w): copy it again, with both rings, from a "+
			"host that works", filepath.Join(path, ConfFile), err)
	}
	if c.Local == "" {
		return nil, fmt.Errorf("%s has no LOCAL_FINGERPRINT: copy it again, with both rings, from a host that works",
			filepath.Join(path, ConfFile))
	}
	return &c, nil
}

// loadIdentity reads the identity of this host, which has the fingerprint local, from the private ring.
func loadIdentity(path, local string) (*Identity, error) {
	private, err := readRing(path, PrivateRing)
	if err != nil {
		return nil, err
	}
	own := find(private, local)
	if own == nil {
		return nil, fmt.Errorf("%s names the identity %s, but %s holds %s: the files are not of one host; copy %s, "+
			"%s and %s together from a host that works",
			filepath.Join(path, ConfFile), local, PrivateRing, names(private), ConfFile, PublicRing, PrivateRing)
	}
	if err := checkPrivate(own, filepath.Join(path, PrivateRing), local); err != nil {
		return nil, err
	}
	return newIdentity("trustee.LoadFolder", own)
}

// loadServers reads the servers from the public ring, which must also hold the key of this host.
func loadServers(path string, c *conf) (servers []*Party, err error) {
	public, err := readRing(path, PublicRing)
	if err != nil {
		return nil, err
	}
	if find(public, c.Local) == nil {
		return nil, fmt.Errorf("%s holds %s, but not our own key %s: the files are not of one host; copy %s, %s and "+
			"%s together from a host that works",
			filepath.Join(path, PublicRing), names(public), c.Local, ConfFile, PublicRing, PrivateRing)
	}
	for _, s := range c.Servers {
		e := find(public, s)
		if e == nil {
			return nil, fmt.Errorf("%s lacks the key of the Key Trustee Server, %s, which %s names: copy both again "+
				"from a host that works", filepath.Join(path, PublicRing), s, ConfFile)
		}
		p, err := newParty("trustee.LoadFolder", e)
		if err != nil {
			return nil, err
		}
		servers = append(servers, p)
	}
	return servers, nil
}

// missingConf returns an error that says why a folder has no keytrustee.conf, and what to do.
func missingConf(path string) error {
	// `scp -r A/kms-keytrustee HOST:/B/kms-keytrustee/` copies the folder of A into the folder of B
	// if the folder of B exists.
	for _, inner := range []string{".keytrustee", "keytrustee/.keytrustee", "kms-keytrustee/keytrustee/.keytrustee",
		"kms-keytrustee/.keytrustee"} {
		nested := filepath.Join(path, inner)
		if _, err := os.Stat(filepath.Join(nested, ConfFile)); err == nil {
			return fmt.Errorf("%s has no %s, but %s has: a copy by scp -r into an existing folder goes "+
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
			return fmt.Errorf("%s has no %s, but %s has: a copy by scp -r into an existing folder goes "+
				"one level too deep; move %s to %s", path, ConfFile, nested, nested, path)
		}
	}
	if list, err := os.ReadDir(path); len(list) == 0 && (err == nil || errors.Is(err, fs.ErrNotExist)) {
		return fmt.Errorf("%s does not exist or is empty (%w): copy the folder from a KT KMS host, or let a KT KMS "+
			"make it at its first start", path, ErrNoFolder)
	}
	return fmt.Errorf("%s has no %s: copy it, with %s and %s, from a KT KMS host that works; if no KMS ever "+
		"registered with the identity in this folder, move the folder away", path, ConfFile, PublicRing, PrivateRing)
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
		return nil, fmt.Errorf("%s is missing: copy %s, %s and %s together from a host that works", file, ConfFile,
			PublicRing, PrivateRing)
	}
	if err != nil {
		return nil, err
	}
	defer clear(b)
	list, err := openpgp.ReadKeyRing(bytes.NewReader(b))
	if err != nil {
		return nil, fmt.Errorf("%s is not an OpenPGP key ring (%w): copy it again from a host that works. GnuPG 2.1 "+
			"and later have other files (pubring.kbx, private-keys-v1.d); export from them with gpg --export and gpg "+
			"--export-secret-keys", file, err)
	}
	return list, nil
}

// find returns the key with a fingerprint, which has the form "4096R/<40 hex>"; nil if the ring lacks it.
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

// checkPrivate refuses a key whose private parts are missing or locked by a passphrase.
func checkPrivate(e *openpgp.Entity, file, fingerprint string) error {
	if e.PrivateKey == nil || e.PrivateKey.Dummy() {
		return fmt.Errorf("%s holds the key %s without its private part: copy the ring from a host that works", file,
			fingerprint)
	}
	locked := e.PrivateKey.Encrypted
	for _, s := range e.Subkeys {
		locked = locked || s.PrivateKey != nil && s.PrivateKey.Encrypted
	}
	if locked {
		return fmt.Errorf("in %s the key %s is locked by a passphrase, which a server cannot enter: remove the "+
			"passphrase with gpg --homedir FOLDER --edit-key %s passwd, and protect the folder by its mode", file,
			fingerprint, strings.TrimPrefix(fingerprint[strings.IndexByte(fingerprint, '/')+1:], "0x"))
	}
	return nil
}

// SecretFiles are the files that other users of this host must not read. GnuPG does not let a group
// read them either.
func SecretFiles(path string) []secret.File {
	var list []secret.File
	for _, name := range []string{PrivateRing, ConfFile, "."} {
		list = append(list, secret.File{Path: filepath.Join(path, name), Deny: 0o077})
	}
	return list
}
