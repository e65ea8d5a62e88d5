package location

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"claviger"
	"claviger/durable"
	"claviger/keystore"
	"claviger/owner"
	"claviger/trustee"
	"claviger/trustee/server/postgres"
	"claviger/trustee/server/sqlite"
)

// certificateLife is the life of the certificate that Init makes.
const certificateLife = 2 * 365 * 24 * time.Hour

// InitOptions are the options of Init.
type InitOptions struct {
	// Hosts are the names and addresses of this host. The first is its own name. A certificate that exists must be
	// valid for each of them. If there are none, Init takes the system's host name for what it makes.
	Hosts []string
	// Store is the URI of a database in PostgreSQL, or "" for the file in the folder.
	Store string
	// Empty makes Init replace a missing store, which a server has used, by an empty store.
	Empty bool
}

// Initialized is a folder after Init.
type Initialized struct {
	Folder *trustee.Folder
	// Certificate is the self-signed certificate that Init made, or "" if a certificate existed. Hosts are the
	// names in it, and Expires is the end of its validity.
	Certificate string
	Hosts       []string
	Expires     time.Time
}

// Init makes the parts that the folder of a Key Trustee Server lacks: identity, certificate, store. It may
// be repeated after an interruption. It never overwrites an identity.
func Init(ctx context.Context, dir string, o InitOptions) (done Initialized, err error) {
	if err := owner.RefuseRoot(dir); err != nil {
		return done, err
	}
	hosts := o.Hosts
	if len(hosts) == 0 {
		host, err := os.Hostname()
		if err != nil {
			return done, fmt.Errorf("this host has no name (%w): give a name with --hostname", err)
		}
		hosts = []string{host}
	}
	if done.Folder, err = initFolder(dir, hosts[0]); err != nil {
		return done, err
	}
	cert, key := filepath.Join(dir, trustee.TLSCert), filepath.Join(dir, trustee.TLSKey)
	if _, err := os.Stat(key); errors.Is(err, fs.ErrNotExist) {
		if _, err := os.Stat(cert); err == nil && !interrupted(done.Folder) {
			return done, fmt.Errorf("%s exists without its key %s: put the key there, or remove the certificate to "+
				"get a new one", cert, key)
		}
		if err := selfSigned(cert, key, hosts); err != nil {
			return done, err
		}
		done.Certificate, done.Hosts, done.Expires = cert, hosts, time.Now().Add(certificateLife)
	} else if err := checkCertificate(cert, key, o.Hosts); err != nil {
		return done, err
	}
	return done, initStore(ctx, done.Folder, o)
}

// checkCertificate returns an error if the certificate is not valid for one of the hosts. The files may be the copies
// of those of the other trustee.
func checkCertificate(certFile, keyFile string, hosts []string) error {
	if len(hosts) == 0 {
		return nil
	}
	pair, err := tls.LoadX509KeyPair(certFile, keyFile)
	if err != nil {
		return fmt.Errorf("%s and %s: %w", certFile, keyFile, err)
	}
	for _, host := range hosts {
		if err := pair.Leaf.VerifyHostname(host); err != nil {
			return fmt.Errorf("--hostname %s: the certificate %s exists, and is for other names (%w). Remove it and "+
				"%s to get a new one, or leave out --hostname to keep it", host, certFile, err, keyFile)
		}
	}
	return nil
}

// initFolder loads a folder, or makes it with a new identity.
func initFolder(dir, host string) (*trustee.Folder, error) {
	_, missing := os.Stat(filepath.Join(dir, trustee.ConfFile))
	if !errors.Is(missing, fs.ErrNotExist) && !trustee.Unfinished(dir) {
		f, err := trustee.LoadFolder(dir)
		if err != nil {
			return nil, err
		}
		return f, refuseClient(f)
	}
	if err := trustee.MakeFolder(dir); err != nil {
		return nil, err
	}
	id, err := trustee.NewIdentity("keytrustee", "keytrustee Server Key", "keytrustee@"+host, trustee.KeyBits,
		time.Now())
	if err != nil {
		return nil, err
	}
	return trustee.NewFolder(dir, id)
}

// interrupted reports whether an earlier Init was interrupted before it made the store, which comes last.
// Then that Init has made a certificate without a key.
func interrupted(f *trustee.Folder) bool {
	_, err := os.Stat(file(f))
	return f.Store == "" && errors.Is(err, fs.ErrNotExist)
}

// selfSigned makes a certificate and then its key, completely, because Init checks whether the key exists.
func selfSigned(certFile, keyFile string, hosts []string) error {
	cert, key, err := keystore.SelfSigned(hosts[0], hosts, certificateLife)
	if err != nil {
		return err
	}
	defer clear(key)
	if err := durable.MakeFolder(filepath.Dir(keyFile), 0o700); err != nil {
		return err
	}
	if err := durable.Replace(certFile, cert, 0o600); err != nil {
		return err
	}
	return durable.Create(keyFile, key, 0o600)
}

// initStore makes the store of a folder if it is missing. If o.Store names a database, initStore writes it
// into the configuration of the folder.
func initStore(ctx context.Context, f *trustee.Folder, o InitOptions) error {
	if o.Store == "" && f.Store == "" {
		return initFile(ctx, f, o.Empty)
	}
	conf := postgres.Config{URI: o.Store, Where: "--store", Identity: f.Identity.Fingerprint()}
	switch _, err := os.Stat(file(f)); {
	case o.Store == "":
		conf.URI, conf.Where, conf.Claim = f.Store, whereStore(f), true
	case f.Store == "" && err == nil:
		return fmt.Errorf("--store: this trustee's deposits are in %s; to move them: claviger trustee backup, then "+
			"claviger trustee restore --store into another folder", file(f))
	default:
		// If the folder names another database, the new one must already belong to this identity: a
		// standby, or the same database with another URI.
		conf.Claim = f.Store == "" || f.Store == o.Store
	}
	store, err := postgres.Open(ctx, conf)
	if err != nil {
		return err
	}
	if err := store.Close(); err != nil || conf.URI == f.Store {
		return err
	}
	f.Store = conf.URI
	return f.Save()
}

// initFile makes the SQLite store of a folder. If a server has used a store that is missing now, initFile
// refuses unless empty is true.
func initFile(ctx context.Context, f *trustee.Folder, empty bool) error {
	path := file(f)
	left := servedBefore(f)
	if len(left) > 0 && !empty {
		return claviger.Refuse("%s is missing, but these files show that a trustee has served it: %s. With an empty "+
			"store, the trustee would answer that no deposit exists, so no store was made. Put the file back, or one "+
			"of these copies in its place, or restore a backup into another folder (claviger trustee restore). If the "+
			"other of two trustees holds the deposits, or you need none: claviger trustee init --empty-store; then "+
			"start this server, if it is one of two, with --role passive", path, strings.Join(left, ", "))
	}
	// SQLite would remove the write-ahead log of the missing store, which may hold changes.
	if slices.Contains(left, path+"-wal") {
		aside := path + ".left-" + time.Now().UTC().Format("20060102T150405Z") + "-wal"
		if err := durable.Rename(path+"-wal", aside); err != nil {
			return err
		}
	}
	store, err := sqlite.Open(ctx, path, true)
	if err != nil {
		return err
	}
	return store.Close()
}
