package pkcs11

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
	"unicode"

	"claviger/durable"
	"claviger/secret"
)

// Config says which token to open, and how.
type Config struct {
	Module string // path of the vendor's library
	// TokenLabel, Serial and Slot name the token; each that is set must match. If none is set, the library must
	// show exactly one token.
	TokenLabel string
	Serial     string
	Slot       *uint
	// PIN reads the user's PIN; it is called once per login. PINSource names the place of the PIN in messages.
	PIN       func() (secret.Bytes, error)
	PINSource string
	// PINFile is the path of the file that holds the PIN; "" if an environment variable or a credential of
	// systemd holds it.
	PINFile string
	used    string // serial number of the token of an earlier login; it decides between tokens of one label
	// Files are the files that other users must not change, or must not read.
	Files   []secret.File
	Profile Profile
	// MaxSessions is the largest number of open sessions; 0 means the number of the profile. One session holds the
	// login, and each other serves one call at a time.
	MaxSessions int
	// Worker says where the library runs.
	Worker WorkerMode
	// CallLimit is the time that one call in the library may take; 0 means worker.DefaultCallLimit. A longer call ends
	// the worker. Without a worker it has no effect.
	CallLimit time.Duration
	// Standby, if not nil, is a token that has copies of this token's keys, made by the vendor's tools. This package
	// does not open it.
	Standby *Config
	// Serving says, for messages, that the caller is a server which is running without the token, and opens it again
	// and again.
	Serving bool
	// Careful: the PIN is not tried if the token says that a wrong PIN was tried before. A server tries it, because it
	// must serve; a check need not.
	Careful bool
	// OwnWorker gives the token a worker that it shares with no other token of this process.
	OwnWorker bool
	// SignOnly: the caller uses private keys of the token to sign, and nothing else. The token then need not have AES.
	SignOnly bool
	Log      *slog.Logger
	// Wrap, if not nil, wraps the calls of the library.
	Wrap func(Boundary) Boundary
}

// maxFile is the largest size of a keystore file or PIN file, in bytes.
const maxFile = 64 << 10

// FileConfig is the content of a keystore file. Exactly one of Token, Serial and Slot names the token. Exactly
// one of PINFile, PINEnv and Credential names the place of the PIN.
type FileConfig struct {
	Module      string
	Token       string
	Serial      string
	Slot        *uint
	PINFile     string // path of a file that holds the PIN alone
	PINEnv      string // name of an environment variable
	Credential  string // name of a systemd credential (LoadCredential=)
	Profile     Profile
	MaxSessions int
	Worker      WorkerMode
	CallLimit   time.Duration // of a call in a worker; 0 is worker.DefaultCallLimit
	Standby     string        // path of the keystore file of the standby token; "" if there is none
}

// WriteKeystoreFile writes the small file that a cloudera.hsmkp:// URI names. It never overwrites a file, because
// a running KMS may depend on it.
func WriteKeystoreFile(path string, c FileConfig) error {
	data, err := c.file(path)
	if err != nil {
		return err
	}
	if err := CheckNew(path); err != nil {
		return err
	}
	return durable.Create(path, data, 0o600)
}

// Check returns the error with which WriteKeystoreFile would refuse to write c to path. It does not check
// whether path exists; see CheckNew.
func (c *FileConfig) Check(path string) error {
	_, err := c.file(path)
	return err
}

// file returns the content of the keystore file, or an error if parseKeystore would not accept it.
func (c *FileConfig) file(path string) ([]byte, error) {
	data, err := c.format()
	if err != nil {
		return nil, fmt.Errorf("keystore file %s: %w", path, err)
	}
	_, err = parseKeystore(path, data)
	return data, err
}

// format returns the lines of the file; parseKeystore reads the same FileConfig from them.
func (c *FileConfig) format() ([]byte, error) {
	var slot, sessions, limit string
	if c.Slot != nil {
		slot = strconv.FormatUint(uint64(*c.Slot), 10)
	}
	if c.MaxSessions != 0 {
		sessions = strconv.Itoa(c.MaxSessions)
	}
	if c.CallLimit != 0 {
		limit = c.CallLimit.String()
	}
	b := bytes.NewBufferString("# Which HSM token claviger uses. It holds no secret; the PIN is where it says.\n")
	for _, l := range []struct{ name, value string }{
		{"module", c.Module}, {"token", c.Token}, {"serial", c.Serial}, {"slot", slot},
		{"pin-file", c.PINFile}, {"pin-env", c.PINEnv}, {"credential", c.Credential},
		{"profile", string(c.Profile)}, {"max-sessions", sessions},
		{"worker", string(c.Worker)}, {"call-limit", limit},
		{"standby", c.Standby},
	} {
		if l.value == "" {
			continue
		}
		if strings.TrimSpace(l.value) != l.value || strings.ContainsAny(l.value, "\n\x00") {
			return nil, fmt.Errorf("%s has the value %q, which a line of the file cannot hold: it would not be read "+
				"back as it is", l.name, l.value)
		}
		fmt.Fprintf(b, "%s = %s\n", l.name, l.value)
	}
	return b.Bytes(), nil
}

// CheckNew returns an error if path exists already.
func CheckNew(path string) error {
	if _, err := os.Lstat(path); err == nil {
		return fmt.Errorf("%s already exists and was not overwritten; move it away if it is no longer used", path)
	}
	return nil
}

// ReadKeystoreFile reads a file that WriteKeystoreFile wrote, and the file of its standby. warnings name doubtful
// things that are no errors.
func ReadKeystoreFile(path string) (c Config, warnings []string, err error) {
	c, standby, warnings, err := readKeystoreFile(path)
	if err != nil || standby == "" {
		return c, warnings, err
	}
	more, err := c.readStandby(path, standby)
	if err != nil {
		return c, nil, err
	}
	return c, append(warnings, more...), nil
}

// readKeystoreFile reads a keystore file, and returns the value of its line standby.
func readKeystoreFile(path string) (c Config, standby string, warnings []string, err error) {
	file, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return c, "", nil, fmt.Errorf("keystore file %s does not exist; write it with: claviger hsm init "+
			"--module LIBRARY --token LABEL --pin-file FILE %s", path, path)
	}
	if err != nil {
		return c, "", nil, fmt.Errorf("keystore file: %w", err)
	}
	defer file.Close()
	settings := SettingsFile("keystore file", path)
	if err := settings.Refuse(); err != nil {
		return c, "", nil, err
	}
	settings.Deny = 0o020
	if err := settings.Refuse(); err != nil {
		warnings = append(warnings, err.Error())
	}
	data, err := io.ReadAll(io.LimitReader(file, maxFile+1))
	if err != nil {
		return c, "", nil, fmt.Errorf("keystore file: %w", err)
	}
	f, err := parseKeystore(path, data)
	if err != nil {
		return c, "", nil, err
	}
	c, err = f.config(filepath.Dir(path))
	if err != nil {
		return c, "", nil, fmt.Errorf("keystore file %s: %w", path, err)
	}
	c.Files = append(c.Files, SettingsFile("keystore file", path))
	return c, f.Standby, warnings, nil
}

// readStandby reads the keystore file of the standby token that the file path names.
func (c *Config) readStandby(path, standby string) (warnings []string, err error) {
	if !filepath.IsAbs(standby) {
		standby = filepath.Join(filepath.Dir(path), standby)
	}
	same, err := sameFile(path, standby)
	if err != nil || same {
		return nil, fmt.Errorf("%s: standby has the value %q; it must name the keystore file of another token that "+
			"has copies of this one's keys%s", path, standby, suffix(err))
	}
	s, its, warnings, err := readKeystoreFile(standby)
	switch {
	case err != nil:
		return nil, fmt.Errorf("%s: standby: %w", path, err)
	case its != "":
		return nil, fmt.Errorf("%s: a standby has no standby of its own; take out the line standby (%s names this "+
			"file as its standby)", standby, path)
	}
	s.OwnWorker = true
	c.Standby = &s
	c.Files = append(c.Files, s.Files...)
	return warnings, nil
}

// sameFile reports whether two paths name one file. The first need not exist.
func sameFile(a, b string) (bool, error) {
	second, err := os.Stat(b)
	if err != nil {
		return false, err
	}
	first, err := os.Stat(a)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	return err == nil && os.SameFile(first, second), err
}

// suffix returns ": err", or nothing.
func suffix(err error) string {
	if err == nil {
		return ""
	}
	return ": " + err.Error()
}

// SettingsFile describes a file that names the library to load into the server, and the place of the PIN. The
// file holds no secret, so other users may read it, but must not write it.
func SettingsFile(what, path string) secret.File {
	return secret.File{Path: path, Kind: what, Deny: 0o002, Risk: "who could have any library loaded"}
}

// ModuleFaults returns messages about the ways in which a user other than root and u could have other code run in place
// of a PKCS#11 library. Open and OpenLibrary refuse such a library, with u the user of this process.
func ModuleFaults(path string, u secret.User) []string {
	return u.ExposedCode(secret.File{Path: path, Kind: "PKCS#11 module",
		Risk: "who could have any code run by claviger"})
}

// PINFile describes a file that holds a PIN.
func PINFile(path string) secret.File { return secret.File{Path: path, Kind: "PIN file"} }

// ParseProfile returns the profile of that name. "" is valid: the token's manufacturer then decides the profile.
func ParseProfile(name string) (Profile, error) {
	p := Profile(strings.ToLower(name))
	if _, ok := profiles[p]; ok || p == "" {
		return p, nil
	}
	return "", fmt.Errorf("unknown profile %q; known ones: %v", name, Profiles())
}

// parseKeystore reads the lines "name = value"; path is for messages.
func parseKeystore(path string, data []byte) (FileConfig, error) {
	var c FileConfig
	const form = "a keystore file has lines like \"module = /path/of/library.so\"; claviger hsm init writes one"
	if len(data) > maxFile || bytes.IndexByte(data, 0) >= 0 {
		return c, fmt.Errorf("%s is not a keystore file of claviger (a Java keystore?); %s", path, form)
	}
	seen := map[string]bool{}
	n := 0
	for line := range strings.Lines(string(bytes.TrimPrefix(data, byteOrderMark))) {
		n++
		text := strings.TrimSpace(line)
		if text == "" || text[0] == '#' {
			continue
		}
		name, value, ok := strings.Cut(text, "=")
		name, value = strings.TrimSpace(name), strings.TrimSpace(value)
		fail := func(format string, args ...any) (FileConfig, error) {
			return FileConfig{}, fmt.Errorf("%s:%d: %s", path, n, fmt.Sprintf(format, args...))
		}
		switch {
		case !ok:
			return fail("there is no '=' in this line; %s", form)
		case value == "":
			return fail("%s has no value; give it one or take the line out", name)
		case seen[name]:
			return fail("%s appears twice; keep one", name)
		}
		seen[name] = true
		if err := c.set(name, value); err != nil {
			return fail("%v", err)
		}
	}
	return c, c.check(path)
}

// set stores the value of one line of a keystore file.
func (c *FileConfig) set(name, value string) (err error) {
	switch name {
	case "module":
		c.Module = value
	case "token":
		c.Token = value
	case "serial":
		c.Serial = value
	case "slot":
		c.Slot, err = parseSlot(value)
	case "pin-file":
		c.PINFile = value
	case "pin-env":
		c.PINEnv = value
	case "credential":
		c.Credential = value
	case "pin":
		return errors.New("a PIN must not be in this file; put it into a file of its own (mode 0400) and name " +
			"that: pin-file = PATH")
	case "profile":
		c.Profile, err = ParseProfile(value)
	case "max-sessions":
		if c.MaxSessions, err = strconv.Atoi(value); err != nil || c.MaxSessions < 1 || c.MaxSessions > 4096 {
			return fmt.Errorf("max-sessions has the value %q; it must be a number from 1 to 4096", value)
		}
	case "worker":
		if c.Worker, err = ParseWorkerMode(value); err != nil {
			return fmt.Errorf("worker has the value %q; %w", value, err)
		}
	case "call-limit":
		if c.CallLimit, err = ParseCallLimit(value); err != nil {
			return fmt.Errorf("call-limit has the value %q; %w", value, err)
		}
	case "standby":
		c.Standby = value
	default:
		return fmt.Errorf("%q is not known; known are module, token, serial, slot, pin-file, pin-env, credential, "+
			"profile, max-sessions, worker, call-limit, standby", name)
	}
	return err
}

func parseSlot(value string) (*uint, error) {
	n, err := strconv.ParseUint(value, 0, 32)
	if err != nil {
		return nil, fmt.Errorf("slot has the value %q; it must be a slot number", value)
	}
	u := uint(n)
	return &u, nil
}

// check returns an error if the module, the token or the place of the PIN is not named, or is named twice.
func (c *FileConfig) check(path string) error {
	count := func(set ...bool) (n int) {
		for _, s := range set {
			if s {
				n++
			}
		}
		return n
	}
	switch {
	case c.Module == "":
		return fmt.Errorf("%s: module is missing: the path of the HSM's PKCS#11 library", path)
	case !filepath.IsAbs(c.Module):
		return fmt.Errorf("%s: module has the value %q; it must be an absolute path", path, c.Module)
	case count(c.Token != "", c.Serial != "", c.Slot != nil) != 1:
		return fmt.Errorf("%s: the token must be named once, by one of token (its label), serial or slot", path)
	case count(c.PINFile != "", c.PINEnv != "", c.Credential != "") != 1:
		return fmt.Errorf("%s: the place of the PIN must be named once, by one of pin-file, pin-env or credential",
			path)
	case c.CallLimit != 0 && c.Worker == WorkerNo:
		return fmt.Errorf("%s: call-limit has no effect with worker = no, because a call in the server's own process "+
			"cannot be ended; take out one of the two lines", path)
	}
	return nil
}

// Config makes a Config as if c were in a file at path, which need not exist. It reads the file of the standby.
func (c *FileConfig) Config(path string) (Config, error) {
	cfg, err := c.config(filepath.Dir(path))
	if err == nil && c.Standby != "" {
		_, err = cfg.readStandby(path, c.Standby)
	}
	return cfg, err
}

// config makes a Config without its standby. A relative pin-file is relative to dir.
func (c *FileConfig) config(dir string) (Config, error) {
	cfg := Config{Module: c.Module, TokenLabel: c.Token, Serial: c.Serial, Slot: c.Slot, Profile: c.Profile,
		MaxSessions: c.MaxSessions, Worker: c.Worker, CallLimit: c.CallLimit}
	switch {
	case c.PINFile != "":
		path := c.PINFile
		if !filepath.IsAbs(path) {
			path = filepath.Join(dir, path)
		}
		cfg.PIN, cfg.PINSource, cfg.PINFile = pinFile(path), "file "+path, path
		cfg.Files = []secret.File{PINFile(path)}
	case c.PINEnv != "":
		cfg.PINSource = "environment variable " + c.PINEnv
		cfg.PIN = func() (secret.Bytes, error) {
			if v := os.Getenv(c.PINEnv); v != "" {
				return secret.Bytes(v), nil
			}
			return nil, fmt.Errorf("environment variable %s, which should hold the PIN, is not set", c.PINEnv)
		}
	default:
		if strings.ContainsRune(c.Credential, '/') {
			return cfg, fmt.Errorf("credential has the value %q; it must be a name without a slash", c.Credential)
		}
		base := os.Getenv("CREDENTIALS_DIRECTORY")
		if base == "" {
			return cfg, fmt.Errorf("credential %[1]s is asked for, but CREDENTIALS_DIRECTORY is not set: systemd "+
				"sets it for units. In a unit: LoadCredential=%[1]s:FILE; at a shell: systemd-run --pipe --wait "+
				"--uid=USER -p LoadCredential=%[1]s:FILE claviger ..., with USER and FILE as in the server's unit",
				c.Credential)
		}
		path := filepath.Join(base, c.Credential)
		cfg.PIN, cfg.PINSource = pinFile(path), "credential "+c.Credential
		cfg.Files = []secret.File{PINFile(path)}
	}
	return cfg, nil
}

// byteOrderMark is what some editors put at the start of a file.
var byteOrderMark = []byte("\ufeff")

// pinFile returns a function that reads a PIN from a file that only its owner (and group) may read. One newline
// at the end of the file is not part of the PIN. A file that certainly holds more than a PIN is an error, because each
// wrong PIN brings the HSM nearer to its lock.
func pinFile(path string) func() (secret.Bytes, error) {
	return func() (secret.Bytes, error) {
		info, err := os.Stat(path)
		if errors.Is(err, fs.ErrNotExist) {
			return nil, fmt.Errorf("PIN file %s does not exist; write the PIN, and nothing else, into it (mode 0400), "+
				"or name the file that has it", path)
		}
		if err != nil {
			return nil, fmt.Errorf("PIN file: %w", err)
		}
		if err := PINFile(path).Refuse(); err != nil {
			return nil, err
		}
		if info.Size() > maxFile {
			return nil, fmt.Errorf("PIN file %s is %d bytes long; that is no PIN: write the PIN alone into it, or "+
				"name the file that has it", path, info.Size())
		}
		pin, err := os.ReadFile(path)
		if err != nil {
			return nil, fmt.Errorf("PIN file: %w", err)
		}
		pin = bytes.TrimSuffix(bytes.TrimSuffix(pin, []byte("\n")), []byte("\r"))
		if len(pin) == 0 {
			return nil, fmt.Errorf("PIN file %s is empty; write the PIN into it", path)
		}
		if bytes.HasPrefix(pin, byteOrderMark) || bytes.ContainsFunc(pin, unicode.IsControl) {
			clear(pin)
			return nil, fmt.Errorf("PIN file %s holds more than the PIN (another line, a control character or a byte "+
				"order mark), and was not tried at the HSM; write the PIN, and nothing else, into it", path)
		}
		return pin, nil
	}
}
