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
	// CredentialPathProperty is a list of stores, separated by commas. The first store that has an entry of a name
	// counts.
	CredentialPathProperty = "hadoop.security.credential.provider.path"
	// CredentialPasswordProperty names the file in the configuration folder with the password of the stores.
	CredentialPasswordProperty = "hadoop.security.credstore.java-keystore-provider.password-file"
	// CredentialPasswordEnv is the environment variable with the password of the stores. It overrides the file.
	CredentialPasswordEnv = "HADOOP_CREDSTORE_PASSWORD"
	// CredentialFallbackProperty is true if the configuration itself may contain the password of a name without an
	// entry.
	CredentialFallbackProperty = "hadoop.security.credential.clear-text-fallback"

	// defaultCredentialPassword is Hadoop's default password.
	defaultCredentialPassword = "none"
)

// CredentialPassword returns the password of credential stores by Hadoop's rules: from the environment, or else from
// the file, or else Hadoop's default. A relative file name is relative to dir.
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

// Credentials are the stores of a provider path. `hadoop credential create` writes such stores.
type Credentials struct {
	stores []credentialStore
}

type credentialStore struct {
	path     string
	entries  *JCEKS
	password secret.Bytes
}

// OpenCredentials reads the stores of a provider path. As in Hadoop, a store without a file is empty. missing names
// these files.
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
				"that %s names", err, CredentialPasswordEnv, CredentialPasswordProperty)
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

// CredentialFiles returns the files of a provider path's stores.
func CredentialFiles(path string) ([]string, error) {
	var files []string
	for _, uri := range strings.Split(path, ",") {
		if uri = strings.TrimSpace(uri); uri == "" {
			continue
		}
		if scheme, _, _ := strings.Cut(uri, "://"); strings.EqualFold(scheme, "user") {
			// user:// means the credentials of a Java process's login. A server has none, so the next store counts, as
			// in Hadoop.
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

// credentialFile returns the file of a provider's URI: jceks://file/p, jceks://file@/p, localjceks://file/p.
func credentialFile(uri string) (string, error) {
	scheme, rest, ok := strings.Cut(uri, "://")
	if !ok {
		return "", errors.New("it is not a URI; write it as in localjceks://file/etc/hadoop/credentials.jceks")
	}
	switch strings.ToLower(scheme) {
	case "jceks", "localjceks":
	case "bcfks", "localbcfks":
		return "", errors.New("BouncyCastle's keystores are not supported; make the store with localjceks://file/PATH")
	default:
		return "", fmt.Errorf("scheme %q is not known; the known URIs are localjceks://file/PATH and "+
			"jceks://file/PATH", scheme)
	}
	authority, file, _ := strings.Cut(rest, "/")
	switch authority {
	case "file", "file@":
		return "/" + file, nil
	}
	return "", fmt.Errorf("only local files are supported, not a store on %q; copy it to this host and name it "+
		"localjceks://file/PATH", strings.TrimSuffix(authority, "@"))
}

// Get returns the credential of a name. ok is false if no store has one.
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

// Passwords finds passwords as Hadoop's Configuration.getPassword does.
type Passwords struct {
	Credentials *Credentials // nil if there are no stores
	// ClearText means that the configuration may contain passwords.
	ClearText bool
}

// Get returns the password of a property: from the credential stores, or else from conf if ClearText allows that. It
// returns nil if there is none.
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
				"store has a value; store it with `hadoop credential create %s -provider localjceks://file/PATH`",
				name, CredentialFallbackProperty, name)
	}
	return secret.Bytes(v), nil
}
