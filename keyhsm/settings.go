package keyhsm

import (
	"bufio"
	"bytes"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"claviger/durable"
	"claviger/pkcs11"
	"claviger/shellword"
	"claviger/web"
)

// SettingsFile is the name of the settings file in the folder of a Key HSM. Cloudera uses the same name.
const SettingsFile = "application.properties"

// DefaultListen is the default address: for a trustee on the same host, as Cloudera advises.
const DefaultListen = "localhost:9090"

const (
	defaultMaxConnections = 256
	maxSettings           = 64 << 10
)

// Settings are the settings of a Key HSM. Relative paths in the file are relative to its
// folder; here, all paths are absolute.
type Settings struct {
	HSM    pkcs11.Profile `json:"hsm"`
	Module string         `json:"module"`
	// The token, by exactly one of these.
	Token  string `json:"token,omitempty"`
	Serial string `json:"serial,omitempty"`
	Slot   *uint  `json:"slot,omitempty"`
	// PINFile holds the PIN and nothing else.
	PINFile string `json:"pinFile"`
	// Worker says where the library runs, and CallLimit, a time such as 25s, how long a call in a worker may take.
	Worker    pkcs11.WorkerMode `json:"worker,omitempty"`
	CallLimit string            `json:"callLimit,omitempty"`
	// The pair that wraps new deposits. Every pair with KeyLabel unwraps.
	KeyLabel string `json:"keyLabel"`
	KeyID    string `json:"keyId"` // hexadecimal CKA_ID
	Listen   string `json:"listen"`
	// Certificate and PrivateKey are PEM files, which may be the same.
	Certificate string `json:"certificate"`
	PrivateKey  string `json:"privateKey"`
	// Trust is the folder of the trustees' certificates.
	Trust          string `json:"trust"`
	MaxConnections int    `json:"maxConnections"`
	// MaxPerAddress is the limit of connections of one address: nil is half of MaxConnections, 0 is no
	// limit.
	MaxPerAddress *int `json:"maxConnectionsPerAddress,omitempty"`
	// Unlimited is a comma list of the addresses and networks without that limit; nil is
	// web.Loopback.
	Unlimited *string `json:"unlimitedAddresses,omitempty"`
}

// Names of the properties, in the order in which they are written.
const (
	propHSM         = "keyhsm.hsm"
	propModule      = "keyhsm.module"
	propToken       = "keyhsm.token"
	propSerial      = "keyhsm.serial"
	propSlot        = "keyhsm.slot"
	propPINFile     = "keyhsm.pin.file"
	propPIN         = "keyhsm.pin" // refused
	propWorker      = "keyhsm.worker"
	propCallLimit   = "keyhsm.call.limit"
	propKeyLabel    = "keyhsm.key.label"
	propKeyID       = "keyhsm.key.id"
	propListen      = "keyhsm.listen"
	propCertificate = "keyhsm.tls.certificate"
	propPrivateKey  = "keyhsm.tls.key"
	propTrust       = "keyhsm.trust"
	propConnections = "keyhsm.max.connections"
	propPerAddress  = "keyhsm.max.connections.per.address"
	propUnlimited   = "keyhsm.unlimited.addresses"
)

// Connections returns the limits of connections. dir is the folder of the settings, for
// errors.
func (s *Settings) Connections(dir string) (web.ConnectionLimits, error) {
	l := web.ConnectionLimits{Total: int64(s.MaxConnections), TotalName: propConnections,
		PerAddressName: propPerAddress, UnlimitedName: propUnlimited}
	refused := func(name, value string, err error) error {
		return fmt.Errorf("%s: %s has the value %q; %w", filepath.Join(dir, SettingsFile), name, value, err)
	}
	perAddress := 0
	if s.MaxPerAddress != nil {
		perAddress = *s.MaxPerAddress
	}
	var err error
	if l.PerAddress, err = web.PerAddress(int64(perAddress), s.MaxPerAddress != nil, l.Total); err != nil {
		return l, refused(l.PerAddressName, strconv.Itoa(perAddress), err)
	}
	list := web.Loopback
	if s.Unlimited != nil {
		list = *s.Unlimited
	}
	if l.Unlimited, err = web.ParseAddresses(list); err != nil {
		return l, refused(l.UnlimitedName, list, err)
	}
	return l, nil
}

// ignored are properties of Cloudera's file that have no effect here, with the reason.
var ignored = map[string]string{
	"keyhsm.log.size":  logNotKept,
	"keyhsm.roll.size": logNotKept,
}

const logNotKept = "the log goes to standard error; rotate it where it is stored, as in journald"

// Check returns why WriteSettings would refuse to write s into a folder.
func (s *Settings) Check(dir string) error {
	path := filepath.Join(dir, SettingsFile)
	if _, err := os.Lstat(path); err == nil {
		return alreadyExists(path)
	}
	_, err := s.format(path)
	return err
}

func alreadyExists(path string) error {
	return fmt.Errorf("%s already exists and was not overwritten: deposits depend on the key that it names; "+
		"move it away if they do not, or choose another folder", path)
}

// WriteSettings writes the settings file into a folder. It never overwrites a file, because deposits depend
// on the key that the file names.
func WriteSettings(dir string, s Settings) error {
	path := filepath.Join(dir, SettingsFile)
	data, err := s.format(path)
	if err != nil {
		return err
	}
	if err = durable.Create(path, data, 0o600); errors.Is(err, fs.ErrExist) {
		return alreadyExists(path)
	}
	return err
}

// format returns the bytes of the settings file. It fails if ReadSettings would refuse the file.
func (s *Settings) format(path string) ([]byte, error) {
	var slot, connections, perAddress, unlimited string
	if s.MaxPerAddress != nil {
		perAddress = strconv.Itoa(*s.MaxPerAddress)
	}
	if s.Unlimited != nil {
		unlimited = *s.Unlimited
	}
	if s.Slot != nil {
		slot = strconv.FormatUint(uint64(*s.Slot), 10)
	}
	if s.MaxConnections != 0 {
		connections = strconv.Itoa(s.MaxConnections)
	}
	b := bytes.NewBufferString("# Key HSM. This file holds no secret; the PIN is in the file " + propPINFile + ".\n")
	for _, l := range []struct{ name, value string }{
		{propHSM, string(s.HSM)}, {propModule, s.Module}, {propToken, s.Token}, {propSerial, s.Serial},
		{propSlot, slot},
		{propPINFile, s.PINFile}, {propWorker, string(s.Worker)}, {propCallLimit, s.CallLimit},
		{propKeyLabel, s.KeyLabel}, {propKeyID, s.KeyID}, {propListen, s.Listen},
		{propCertificate, s.Certificate}, {propPrivateKey, s.PrivateKey}, {propTrust, s.Trust},
		{propConnections, connections}, {propPerAddress, perAddress}, {propUnlimited, unlimited},
	} {
		if l.value == "" {
			continue
		}
		if strings.TrimSpace(l.value) != l.value || strings.ContainsAny(l.value, "\r\n\x00") {
			return nil, fmt.Errorf("%s: %s has the value %q, which a line of the file cannot hold", path, l.name,
				l.value)
		}
		fmt.Fprintf(b, "%s = %s\n", l.name, l.value)
	}
	_, _, err := parseSettings(path, b.Bytes())
	return b.Bytes(), err
}

// ReadSettings reads the settings file of a folder. warnings are about lines without effect.
func ReadSettings(dir string) (s Settings, warnings []string, err error) {
	path := filepath.Join(dir, SettingsFile)
	data, err := readFile(path, maxSettings)
	if errors.Is(err, syscall.ENOTDIR) {
		return s, nil, fmt.Errorf("configuration folder %s is not a folder; name the folder of %s with --conf", dir,
			SettingsFile)
	}
	if errors.Is(err, fs.ErrNotExist) {
		return s, nil, fmt.Errorf("%s does not exist; make it with: claviger keyhsm setup "+
			"luna|ncipher|softhsm|cloudhsm|generic --conf %s --token LABEL --pin-file FILE", path, shellword.Quote(dir))
	}
	if err != nil {
		return s, nil, err
	}
	if err := pkcs11.SettingsFile("", path).Refuse(); err != nil {
		return s, nil, err
	}
	s, warnings, err = parseSettings(path, data)
	if err != nil {
		return Settings{}, nil, err
	}
	if dir, err = filepath.Abs(dir); err != nil {
		return Settings{}, nil, err
	}
	for _, p := range []*string{&s.PINFile, &s.Certificate, &s.PrivateKey, &s.Trust} {
		if !filepath.IsAbs(*p) {
			*p = filepath.Join(dir, *p)
		}
	}
	return s, warnings, nil
}

// parseSettings parses lines "name = value". path is the path of the file, for messages.
func parseSettings(path string, data []byte) (s Settings, warnings []string, err error) {
	seen := map[string]bool{}
	lines := bufio.NewScanner(bytes.NewReader(data))
	lines.Buffer(nil, maxSettings+1)
	for n := 1; lines.Scan(); n++ {
		text := strings.TrimSpace(lines.Text())
		if text == "" || text[0] == '#' || text[0] == '!' {
			continue
		}
		fail := func(format string, args ...any) (Settings, []string, error) {
			return Settings{}, nil, fmt.Errorf("%s:%d: %s", path, n, fmt.Sprintf(format, args...))
		}
		name, value, ok := strings.Cut(text, "=")
		name, value = strings.TrimSpace(name), strings.TrimSpace(value)
		switch {
		case !ok:
			return fail("there is no '=' in this line; lines are like \"%s = /path/of/library.so\"", propModule)
		case seen[name]:
			return fail("%s is in the file twice; keep one line", name)
		case value == "":
			return fail("%s has no value; give it a value or remove the line", name)
		}
		seen[name] = true
		if why, ok := ignored[name]; ok {
			warnings = append(warnings, fmt.Sprintf("%s:%d: %s has no effect here: %s", path, n, name, why))
			continue
		}
		if name == propPIN { // no message may show its value
			return fail("%s: this file must not contain a PIN; write the PIN into its own file (mode 0400) and name "+
				"that file: %s = PATH", name, propPINFile)
		}
		if known, err := s.set(name, value); err != nil {
			return fail("%s has the value %q; %v", name, value, err)
		} else if !known {
			return fail("%q is not known; docs/keyhsm.md lists the properties", name)
		}
	}
	if err := lines.Err(); err != nil {
		return Settings{}, nil, fmt.Errorf("%s: %w", path, err)
	}
	if err := s.check(); err != nil {
		return Settings{}, nil, fmt.Errorf("%s: %w", path, err)
	}
	if s.MaxConnections == 0 {
		s.MaxConnections = defaultMaxConnections
	}
	return s, warnings, nil
}

// set sets one property.
func (s *Settings) set(name, value string) (known bool, err error) {
	switch name {
	case propHSM:
		s.HSM, err = pkcs11.ParseProfile(value)
	case propModule:
		s.Module = value
	case propToken:
		s.Token = value
	case propSerial:
		s.Serial = value
	case propSlot:
		n, err := strconv.ParseUint(value, 0, 32)
		if err != nil {
			return true, errors.New("it must be a slot number")
		}
		slot := uint(n)
		s.Slot = &slot
	case propPINFile:
		s.PINFile = value
	case propWorker:
		s.Worker, err = pkcs11.ParseWorkerMode(value)
	case propCallLimit:
		s.CallLimit = value
		_, err = pkcs11.ParseCallLimit(value)
	case propKeyLabel:
		s.KeyLabel = value
	case propKeyID:
		s.KeyID = value
	case propListen:
		s.Listen = value
	case propCertificate:
		s.Certificate = value
	case propPrivateKey:
		s.PrivateKey = value
	case propTrust:
		s.Trust = value
	case propConnections:
		if s.MaxConnections, err = strconv.Atoi(value); err != nil || s.MaxConnections < 1 || s.MaxConnections > 1<<16 {
			return true, errors.New("it must be a number from 1 to 65536")
		}
	case propPerAddress:
		n, err := strconv.Atoi(value)
		if err != nil || n < 0 || n > 1<<16 {
			return true, errors.New("it must be a number from 0 (no limit) to 65536")
		}
		s.MaxPerAddress = &n
	case propUnlimited:
		s.Unlimited = &value
	default:
		return false, nil
	}
	return true, err
}

// check checks that the settings are complete.
func (s *Settings) check() error {
	named := 0
	for _, is := range []bool{s.Token != "", s.Serial != "", s.Slot != nil} {
		if is {
			named++
		}
	}
	if named != 1 {
		return fmt.Errorf("the token must be named once, by one of %s (its label), %s or %s", propToken, propSerial,
			propSlot)
	}
	for _, p := range []struct{ name, value string }{
		{propModule, s.Module}, {propPINFile, s.PINFile}, {propKeyLabel, s.KeyLabel}, {propKeyID, s.KeyID},
		{propListen, s.Listen}, {propCertificate, s.Certificate}, {propPrivateKey, s.PrivateKey}, {propTrust, s.Trust},
	} {
		if p.value == "" {
			return fmt.Errorf("%s is missing", p.name)
		}
	}
	if s.CallLimit != "" && s.Worker == pkcs11.WorkerNo {
		return fmt.Errorf("%s has no effect with %s = no, because a call in the server's own process cannot be ended; "+
			"take out one of the two lines", propCallLimit, propWorker)
	}
	if !filepath.IsAbs(s.Module) {
		return fmt.Errorf("%s has the value %q; it must be an absolute path", propModule, s.Module)
	}
	if id, err := hex.DecodeString(s.KeyID); err != nil || len(id) > maxKeyID {
		return fmt.Errorf("%s has the value %q; it must be at most %d bytes in hexadecimal, as setup writes it",
			propKeyID, s.KeyID, maxKeyID)
	}
	if _, _, err := net.SplitHostPort(s.Listen); err != nil {
		return fmt.Errorf("%s has the value %q; it must be like %s", propListen, s.Listen, DefaultListen)
	}
	return nil
}

// ID is the CKA_ID of the pair.
func (s *Settings) ID() []byte {
	id, _ := hex.DecodeString(s.KeyID) // check has checked it
	return id
}

// PKCS11 returns the configuration that opens the token.
func (s *Settings) PKCS11() (pkcs11.Config, error) {
	c := pkcs11.FileConfig{Module: s.Module, Token: s.Token, Serial: s.Serial, Slot: s.Slot, PINFile: s.PINFile,
		Profile: s.HSM, Worker: s.Worker}
	if s.CallLimit != "" {
		var err error
		if c.CallLimit, err = pkcs11.ParseCallLimit(s.CallLimit); err != nil {
			return pkcs11.Config{}, fmt.Errorf("%s has the value %q; %w", propCallLimit, s.CallLimit, err)
		}
	}
	return c.Config("/") // the path of the PIN file is absolute
}
