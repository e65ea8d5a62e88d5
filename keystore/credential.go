package keystore

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"strings"

	"claviger"
	"claviger/secret"
)

// The settings of Hadoop's credential providers.
const (
	// CredentialPathProperty is a comma list of stores, of which the first that has
	// a name's entry counts.
	CredentialPathProperty = "hadoop.security.credential.provider.path"
	// CredentialPasswordProperty names a file in the configuration folder that
	// holds the stores' password.
	CredentialPasswordProperty = "hadoop.security.credstore.java-keystore-provider.password-file"
	// CredentialPasswordEnv is the environment variable that holds it, and goes
	// before the file.
	CredentialPasswordEnv = "HADOOP_CREDSTORE_PASSWORD"
	// CredentialFallbackProperty: may a name without an entry have its value in the
	// configuration itself?
	CredentialFallbackProperty = "hadoop.security.credential.clear-text-fallback"

	// defaultCredentialPassword is Hadoop's, where none is set.
	defaultCredentialPassword = "none"
)

// CredentialPassword is the password of credential stores, by Hadoop's rules:
// the environment's, else that of the file, else the one that everybody knows. A
// relative file lies in dir.
func CredentialPassword(env func(string) (string, bool), file, dir string) (secret.Bytes, error) {
	if p, ok := env(CredentialPasswordEnv); ok {
		return secret.Bytes(p), nil
	}
	if file == "" {
		return secret.Bytes(defaultCredentialPassword), nil
	}
	if !filepath.IsAbs(file) {
		file = filepath.Join(dir, file)
	}
	text, err := readTLSFile(file)
	if err != nil {
		return nil, claviger.BadProperty(CredentialPasswordProperty, err, "%v", err)
	}
	return secret.Bytes(bytes.TrimSpace(text)), nil
}

// Credentials are the stores of a provider path, as `hadoop credential create`
// writes them.
type Credentials struct {
	stores []credentialStore
}

type credentialStore struct {
	path     string
	entries  *JCEKS
	password secret.Bytes
}

// OpenCredentials reads the stores of a provider path. One whose file is not there
// is empty, as for Hadoop, and is named in missing.
func OpenCredentials(path string, password secret.Bytes) (c *Credentials, missing []string, err error) {
	c = &Credentials{}
	files, err := CredentialFiles(path)
	if err != nil {
		return nil, nil, err
	}
	for _, file := range files {
		data, err := readTLSFile(file)
		if errors.Is(err, fs.ErrNotExist) {
			missing = append(missing, file)
			continue
		}
		if err != nil {
			return nil, nil, claviger.BadProperty(CredentialPathProperty, err, "provider %s: %v", file, err)
		}
		entries, err := ParseJCEKS(data, password)
		if errors.Is(err, ErrPassword) {
			err = fmt.Errorf("%w; its password comes from the environment variable %s, or from the file "+
				"that %s names", err,
				CredentialPasswordEnv, CredentialPasswordProperty)
		}
		var format *FormatError
		if errors.As(err, &format) && format.Is != "" {
			err = fmt.Errorf("%w; make the store with `hadoop credential create NAME -provider "+
				"localjceks://file/PATH`", err)
		}
		if err != nil {
			return nil, nil, claviger.BadProperty(CredentialPathProperty, err, "provider %s: %v", file, err)
		}
		c.stores = append(c.stores, credentialStore{file, entries, password})
	}
	return c, missing, nil
}

// CredentialFiles are the files of a provider path's stores.
func CredentialFiles(path string) ([]string, error) {
	var files []string
	for _, uri := range strings.Split(path, ",") {
		if uri = strings.TrimSpace(uri); uri == "" {
			continue
		}
		if scheme, _, _ := strings.Cut(uri, "://"); strings.EqualFold(scheme, "user") {
			// What a Java process's login holds, which in a server is nothing: Hadoop goes
			// on to the next store, and so do we.
			continue
		}
		file, err := credentialFile(uri)
		if err != nil {
			return nil, claviger.BadProperty(CredentialPathProperty, err, "provider %s: %v", uri, err)
		}
		files = append(files, file)
	}
	return files, nil
}

// credentialFile is the file of a provider's URI: jceks://file/p,
// jceks://file@/p, localjceks://file/p.
func credentialFile(uri string) (string, error) {
	scheme, rest, ok := strings.Cut(uri, "://")
	if !ok {
		return "", errors.New("it is no URI; it must be like localjceks://file/etc/hadoop/credentials.jceks")
	}
	switch strings.ToLower(scheme) {
	case "jceks", "localjceks":
	case "bcfks", "localbcfks":
		return "", errors.New("BouncyCastle's keystores are not read; make the store with localjceks://file/PATH")
	default:
		return "", fmt.Errorf("scheme %q is not known; localjceks://file/PATH and jceks://file/PATH are", scheme)
	}
	authority, file, _ := strings.Cut(rest, "/")
	switch authority {
	case "file", "file@":
		return "/" + file, nil
	}
	return "", fmt.Errorf("only local files are read, not a store on %q; copy it here and name it "+
		"localjceks://file/PATH",
		strings.TrimSuffix(authority, "@"))
}

// Get returns a name's credential; ok is false where no store has one.
func (c *Credentials) Get(name string) (value secret.Bytes, ok bool, err error) {
	for _, s := range c.stores {
		e := s.entries.Entry(name)
		if e == nil {
			continue
		}
		key, err := e.Open(s.password)
		if err != nil {
			return nil, false, fmt.Errorf("credential store %s: entry %s: %w", s.path, name, err)
		}
		return key.Material, true, nil
	}
	return nil, false, nil
}

// Passwords is how Hadoop's Configuration.getPassword finds a password.
type Passwords struct {
	Credentials *Credentials // nil: there are none
	// ClearText: a password may stand in the configuration.
	ClearText bool
}

// Get returns the password of a property: from the credential stores, else what
// conf says of it, where that is allowed; nil where it has none.
func (p *Passwords) Get(name string, conf func(name string) (string, bool)) (secret.Bytes, error) {
	if p.Credentials != nil {
		v, ok, err := p.Credentials.Get(name)
		if err != nil || ok {
			return v, err
		}
	}
	v, ok := conf(name)
	if !ok {
		return nil, nil
	}
	if !p.ClearText {
		return nil,
			fmt.Errorf("property %s has its value in the configuration, which %s=false forbids, and no credential "+
				"store has one; write it with `hadoop credential create %s -provider localjceks://file/PATH`",
				name, CredentialFallbackProperty, name)
	}
	return secret.Bytes(v), nil
}
