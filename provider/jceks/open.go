// Package jceks is a provider for Hadoop's own keystore files: those of
// org.apache.hadoop.crypto.key.JavaKeyStoreProvider, with the URI jceks://file@/path. It reads and writes them, so a
// site can migrate from such a file and back.
//
// The content is as in Hadoop. A version's id is a running number (k@0, k@1, ...). A key has two kinds of entries: its
// metadata under its name, as JSON in a serialised Java object, and each version under the version's name. The keystore
// lower-cases its aliases, so Hadoop refuses upper-case key names. A key may have a name that a version of another key
// could have (k@1). Hadoop's roll of key k overwrites that key. This package skips the number for versions of k, so
// both stay. Hadoop's list of names omits keys with an '@' in their name; Keys has them.
//
// An entry is decrypted at its first use (60 to 80 ms) and stays decrypted in memory, with its cipher, as long as it is
// in the file. The size limit of the file (keystore.MaxJCEKS) bounds the memory. Each call compares the file's identity
// with the identity that was read, so it sees every change by another process. Writers of this program exclude each
// other in all processes, by a lock on a separate file. Hadoop's writers do not use that lock.
package jceks

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"

	"claviger"
	"claviger/keystore"
	"claviger/provider"
	"claviger/secret"
)

const (
	passwordEnv          = "HADOOP_KEYSTORE_PASSWORD"
	passwordFileProperty = "hadoop.security.keystore.java-keystore-provider.password-file"
	defaultPassword      = "none"
	maxPasswordFile      = 4096
)

// Provider is a provider.Provider, a BlockEncrypter, an Importer and a Health over one keystore file.
type Provider struct {
	uri        string
	file       *file
	log        *slog.Logger
	iterations int // of new entries; 0 means Java's default

	closed atomic.Bool
	state  atomic.Pointer[state]

	// stateLock is a mutex, for which a call can stop waiting. It guards the next fields, and the changes of state.
	stateLock     chan struct{}
	lastReadError string   // the error that was last logged
	badID         identity // of a file that cannot be used because of badErr
	badErr        error
}

var (
	_ provider.Provider       = (*Provider)(nil)
	_ provider.BlockEncrypter = (*Provider)(nil)
	_ provider.Pinned         = (*Provider)(nil)
	_ provider.Conditional    = (*Provider)(nil)
	_ provider.Importer       = (*Provider)(nil)
	_ provider.Health         = (*Provider)(nil)
)

// Schemes returns the registry's entries for jceks://file@/path, and for localjceks://file/path, which means the same.
func Schemes() []provider.Scheme {
	return []provider.Scheme{{Name: "jceks", Open: Open}, {Name: "localjceks", Open: Open}}
}

// Open opens the keystore that uri names. The folder must exist. The file need not exist: the first new key makes it,
// with mode 0600. Open first finishes a change that a crash interrupted.
func Open(ctx context.Context, uri string, env provider.Env) (provider.Provider, error) {
	p, err := open(ctx, uri, env)
	if err != nil {
		return nil, err
	}
	return p, nil
}

func open(ctx context.Context, uri string, env provider.Env) (*Provider, error) {
	path, err := provider.UnnestPath(uri)
	if err != nil {
		return nil, err
	}
	log := env.Log
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	password, err := findPassword(env, log)
	if err != nil {
		return nil, fmt.Errorf("keystore %s: %w", path, err)
	}
	if err := checkFolder(path); err != nil {
		return nil, err
	}
	// A rename over a symbolic link would replace the link.
	if target, err := filepath.EvalSymlinks(path); err == nil {
		path = target
	}
	p := &Provider{uri: uri, file: &file{path: path, password: password, log: log}, log: log,
		stateLock: make(chan struct{}, 1)}
	st, err := p.file.readFirst(ctx)
	if err != nil {
		return nil, explainOpen(err, path)
	}
	p.state.Store(st)
	if foreign := st.foreign(); len(foreign) > 0 {
		log.Warn("keystore contains private keys or certificates, which Hadoop does not use; they are not changed",
			"file", path, "entries", foreign)
	}
	return p, nil
}

// readFirst reads the keystore for Open.
func (f *file) readFirst(ctx context.Context) (*state, error) {
	if !f.needsNoRecovery() {
		if !exists(f.path) && !exists(f.suffixed("_NEW")) && !exists(f.suffixed("_OLD")) {
			return newState(keystore.NewJCEKS(), identity{}, nil), nil
		}
		unlock, err := f.lock(ctx)
		if err != nil {
			return nil, fmt.Errorf("keystore %s: a write was interrupted and must be completed: %w", f.path, err)
		}
		defer unlock()
		s, id, err := f.load()
		if err != nil {
			return nil, err
		}
		return newState(s, id, nil), nil
	}
	s, id, err := f.read(f.path)
	if err != nil {
		return nil, err
	}
	return newState(s, id, nil), nil
}

func checkFolder(path string) error {
	folder := filepath.Dir(path)
	st, err := os.Stat(folder)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("keystore %s: the folder %s does not exist: make it, or correct the provider URI", path,
			folder)
	case err != nil:
		return fmt.Errorf("keystore %s: %w", path, err)
	case !st.IsDir():
		return fmt.Errorf("keystore %s: %s is not a folder: correct the provider URI", path, folder)
	}
	return nil
}

// findPassword returns the password from the first of Hadoop's places that has one: the environment, the password file,
// the well-known default.
func findPassword(env provider.Env, log *slog.Logger) (secret.Bytes, error) {
	source := "the environment variable " + passwordEnv
	var password secret.Bytes
	if env.Getenv != nil {
		password = secret.Bytes(env.Getenv(passwordEnv))
	}
	if len(password) == 0 {
		var name string
		if env.Get != nil {
			name, _ = env.Get(passwordFileProperty)
		}
		if name = strings.TrimSpace(name); name == "" {
			log.Warn("keystore password is not set, so Hadoop's default is used: "+
				"set "+passwordEnv+" or "+passwordFileProperty,
				"password", "the word \"none\"")
			return secret.Bytes(defaultPassword), nil
		}
		if !filepath.IsAbs(name) {
			name = filepath.Join(env.ConfDir, name)
		}
		source = "the password file " + name + " (property " + passwordFileProperty + ")"
		var err error
		if password, err = readPassword(name); err != nil {
			return nil, claviger.BadProperty(passwordFileProperty, err,
				"it must be a file that holds the keystore's password, which %s cannot be: %v", name, err)
		}
	}
	if err := keystore.CheckPassword(password); err != nil {
		return nil,
			fmt.Errorf("%s: %w: Java could open the keystore with this password, but neither read nor write a key in "+
				"it; choose another one", source, err)
	}
	return password, nil
}

func readPassword(name string) (secret.Bytes, error) {
	f, err := os.Open(name)
	if err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return nil, errors.New("there is no such file")
		}
		return nil, err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxPasswordFile+1))
	if err != nil {
		return nil, err
	}
	if len(data) > maxPasswordFile {
		return nil, fmt.Errorf("it is longer than %d bytes, so it cannot be the right file", maxPasswordFile)
	}
	// Trim as String.trim does. Most files end with a newline.
	start, end := 0, len(data)
	for start < end && data[start] <= ' ' {
		start++
	}
	for end > start && data[end-1] <= ' ' {
		end--
	}
	return data[start:end], nil
}

// URI names the provider.
func (p *Provider) URI() string { return p.uri }

// Close closes the provider. All changes are already written. Running calls finish with the state with which they
// began.
func (p *Provider) Close() error {
	p.closed.Store(true)
	return nil
}

// lockState locks stateLock. Writers need it, and readers that reload a changed file.
func (p *Provider) lockState(ctx context.Context) (leave func(), err error) {
	select {
	case p.stateLock <- struct{}{}:
		return func() { <-p.stateLock }, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}
