package pkcs11

import (
	"errors"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"strings"
)

// ParseURI reads an RFC 7512 URI: pkcs11:token=..;serial=..;slot-id=..?module-path=..&pin-source=file:.. . Instead
// of module-path, module-name names a library in one of moduleFolders. The vendor attribute x-claviger-profile names
// a profile. warnings name the attributes that are not used.
func ParseURI(uri string) (c Config, warnings []string, err error) {
	p := uriParser{seen: map[string]bool{}}
	return p.parse(uri)
}

// ParseKeyURI reads the URI of a private key: that of its token, as ParseURI, with the attributes object (CKA_LABEL) or
// id (CKA_ID) or both, and perhaps type=private.
func ParseKeyURI(uri string) (c Config, key PrivateKeyName, warnings []string, err error) {
	p := uriParser{seen: map[string]bool{}, key: new(PrivateKeyName)}
	if c, warnings, err = p.parse(uri); err == nil && p.key.Label == "" && len(p.key.ID) == 0 {
		err = errors.New("pkcs11: URI: the key is not named; name it by object (its label) or id")
	}
	if err != nil {
		return Config{}, PrivateKeyName{}, nil, err
	}
	return c, *p.key, warnings, nil
}

// parse reads a URI.
func (p *uriParser) parse(uri string) (c Config, warnings []string, err error) {
	scheme, rest, ok := strings.Cut(uri, ":")
	if !ok || !strings.EqualFold(scheme, "pkcs11") {
		return c, nil, fmt.Errorf("%q is no pkcs11: URI", uri)
	}
	path, query, _ := strings.Cut(rest, "?")
	for _, list := range []struct{ text, sep string }{{path, ";"}, {query, "&"}} {
		for _, part := range strings.Split(list.text, list.sep) {
			if part == "" {
				continue
			}
			if err := p.attribute(part); err != nil {
				return Config{}, nil, err
			}
		}
	}
	if err := p.findModule(); err != nil {
		return Config{}, nil, err
	}
	f := &p.file
	switch {
	case f.Serial != "" && f.Slot != nil:
		return Config{}, nil, errors.New("pkcs11: URI: serial and slot-id both name the token; keep one")
	case f.Token == "" && f.Serial == "" && f.Slot == nil: // a label may be given beside one of the others
		return Config{}, nil, errors.New("pkcs11: URI: the token is not named; name it by token (its label), serial " +
			"or slot-id")
	case f.PINFile == "":
		return Config{}, nil, errors.New("pkcs11: URI: pin-source is missing: file: and the path of a file that " +
			"holds the PIN")
	}
	if c, err = f.Config("/"); err != nil {
		return Config{}, nil, fmt.Errorf("pkcs11: URI: %w", err)
	}
	return c, p.warnings, nil
}

// uriParser collects the attributes of a pkcs11: URI.
type uriParser struct {
	file       FileConfig
	moduleName string
	seen       map[string]bool // names of the attributes so far
	key        *PrivateKeyName // nil: the URI names a token
	warnings   []string
}

// attribute reads one attribute, "name=value".
func (p *uriParser) attribute(part string) error {
	if strings.HasPrefix(part, "pin-value") { // first, so that no other message shows it
		return errors.New("pkcs11: URI: pin-value would put the PIN into configuration files, process lists and " +
			"logs; use pin-source=file:/path")
	}
	name, raw, ok := strings.Cut(part, "=")
	if !ok {
		return fmt.Errorf("pkcs11: URI: %q is no attribute; one is name=value", part)
	}
	if p.seen[name] {
		return fmt.Errorf("pkcs11: URI: attribute %s appears twice", name)
	}
	p.seen[name] = true
	value, err := url.PathUnescape(raw)
	if err != nil {
		return fmt.Errorf("pkcs11: URI: attribute %s: %w", name, err)
	}
	switch name {
	case "token", "serial", "slot-id", "module-path", "module-name", "pin-source", "x-claviger-profile":
	case "object", "id", "type":
		if p.key != nil {
			break
		}
		fallthrough
	default:
		p.warnings = append(p.warnings, fmt.Sprintf("pkcs11: URI: attribute %s is not used", name))
		return nil
	}
	if value == "" || name != "id" && strings.ContainsRune(value, 0) {
		return fmt.Errorf("pkcs11: URI: attribute %s has the value %q; give it one or take it out", name, value)
	}
	if err := p.set(name, value); err != nil {
		return fmt.Errorf("pkcs11: URI: %w", err)
	}
	return nil
}

// set stores the value of a known attribute.
func (p *uriParser) set(name, value string) (err error) {
	switch name {
	case "token":
		p.file.Token = value
	case "serial":
		p.file.Serial = value
	case "slot-id":
		p.file.Slot, err = parseSlot(value)
	case "module-path":
		p.file.Module = value
	case "module-name":
		p.moduleName = value
	case "pin-source":
		file, ok := strings.CutPrefix(value, "file:")
		p.file.PINFile = strings.TrimPrefix(file, "//")
		if !ok || !filepath.IsAbs(p.file.PINFile) {
			return fmt.Errorf("pin-source has the value %q; it must be file: and an absolute path", value)
		}
	case "x-claviger-profile":
		p.file.Profile, err = ParseProfile(value)
	case "object":
		p.key.Label = value
	case "id":
		p.key.ID = []byte(value)
	case "type":
		if value != "private" {
			return fmt.Errorf("type has the value %q; it must be private", value)
		}
	}
	return err
}

// findModule makes sure that the URI names one library, by its path or by its name.
func (p *uriParser) findModule() (err error) {
	f := &p.file
	switch {
	case p.moduleName != "" && f.Module != "":
		return errors.New("pkcs11: URI: module-path and module-name both name the library; keep one")
	case p.moduleName != "":
		if f.Module, err = moduleByName(p.moduleName); err != nil {
			return fmt.Errorf("pkcs11: URI: %w", err)
		}
	case f.Module == "":
		return errors.New("pkcs11: URI: module-path is missing: the path of the HSM's PKCS#11 library")
	case !filepath.IsAbs(f.Module):
		return fmt.Errorf("pkcs11: URI: module-path has the value %q; it must be an absolute path", f.Module)
	}
	return nil
}

// moduleFolders are the folders where distributions put PKCS#11 libraries, or links to them.
var moduleFolders = []string{
	"/usr/lib/x86_64-linux-gnu/pkcs11", "/usr/lib/aarch64-linux-gnu/pkcs11", "/usr/lib64/pkcs11", "/usr/lib/pkcs11",
	"/usr/local/lib/pkcs11",
	"/usr/lib/softhsm", "/usr/lib/x86_64-linux-gnu/softhsm", "/usr/lib/aarch64-linux-gnu/softhsm",
}

// moduleByName finds a library by its name without path, "lib" and ".so", as in RFC 7512.
func moduleByName(name string) (string, error) {
	if strings.ContainsRune(name, '/') {
		return "", fmt.Errorf("module-name has the value %q; a path is named by module-path", name)
	}
	for _, dir := range moduleFolders {
		for _, file := range []string{name + ".so", "lib" + name + ".so"} {
			path := filepath.Join(dir, file)
			if _, err := os.Stat(path); err == nil {
				return path, nil
			}
		}
	}
	return "", fmt.Errorf("module-name has the value %q; there is neither %[1]s.so nor lib%[1]s.so in %s; name the "+
		"library by module-path", name, strings.Join(moduleFolders, ", "))
}
