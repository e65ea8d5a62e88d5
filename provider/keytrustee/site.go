package keytrustee

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"claviger"
	"claviger/hadoopconf"
	"claviger/secret"
	"claviger/trustee"
	"claviger/typo"
)

// siteFile is Cloudera's name of the file with a KT KMS's settings.
const siteFile = "kts-site.xml"

const prefix = "cloudera.trustee.keyprovider."

// site holds the settings of kts-site.xml.
type site struct {
	file       string
	hosts      []string // host:port, the active one first
	org        string
	auth       secret.Bytes
	secrets    []secret.File // the file that holds auth, if any
	roundRobin bool
	pool       int
	insecure   bool
	bits       int // of a new identity's key
}

// known has the names of all known properties, without the prefix. The value is empty for a property with an effect.
// For a property of Cloudera's KT KMS that has no effect here, the value is the reason.
var known = map[string]string{
	"hostname-ACTIVE": "", "hostname-PASSIVE": "", "org": "", "auth": "", "auth.file": "", "roundrobin": "",
	"pool.max": "", "insecure": "", "keylength": "", "protocol": "",
	"usepool":                "connections are always reused",
	"pool.min.idle":          "connections are made when they are needed",
	"pool.max.idle":          "as many idle connections are kept as pool.max allows",
	"pool.abandoned.timeout": "each request has its own timeout",
	"tokensync":              "a version is returned only after the Key Trustee Servers have it",
	"stronglocking":          "the Key Trustee Server makes each change by compare and set",
}

// readSite reads kts-site.xml. place is the value of cloudera.hsmkp.ktkms.config.dir: the file or its folder. If place
// is empty, the file is in confDir.
func readSite(place, confDir string) (s site, warnings []string, err error) {
	s.file = filepath.Join(confDir, siteFile)
	if place != "" {
		s.file = place
		if info, err := os.Stat(place); err == nil && info.IsDir() {
			s.file = filepath.Join(place, siteFile)
		}
	}
	c := hadoopconf.New(filepath.Dir(s.file), nil)
	if err := c.AddFile(s.file, false); err != nil {
		if errors.Is(err, fs.ErrPermission) {
			return s, nil, err
		}
		if place != "" {
			return s, nil, claviger.BadProperty(hadoopconf.TrusteeConf, err,
				"%v; it must be a copy of a KT KMS host's %s, or the folder that holds it", err, siteFile)
		}
		return s, nil,
			fmt.Errorf("%w; a keytrustee:// provider needs this file: copy it from a KT KMS host into the folder of "+
				"kms-site.xml, or set %s to its path", err, hadoopconf.TrusteeConf)
	}
	for _, name := range c.Names() {
		short, ours := strings.CutPrefix(name, prefix)
		if !ours {
			continue
		}
		p, _ := c.Lookup(name)
		switch why, ok := known[short]; {
		case !ok:
			w := fmt.Sprintf("%s: property %s is not known and has no effect", p.Where(), name)
			if near, ok := typo.Nearest(name, allNames()); ok {
				w += "; did you mean " + near + "?"
			}
			warnings = append(warnings, w)
		case why != "":
			// No warning: Cloudera's tools write all properties.
		}
	}
	return s, append(c.Warnings(), warnings...), s.read(c)
}

// Hosts returns the Key Trustee Servers in kts-site.xml ("host:port", the active one first). insecure
// is true if their certificates are not verified. place is the value of
// cloudera.hsmkp.ktkms.config.dir, and confDir the folder of kms-site.xml.
func Hosts(place, confDir string) (hosts []string, insecure bool, err error) {
	s, _, err := readSite(place, confDir)
	s.auth.Wipe()
	return s.hosts, s.insecure, err
}

// secretFile describes a file that holds the named secret.
func secretFile(path, name string) secret.File {
	return secret.File{Path: path, Risk: "and holds a secret (" + name + ")"}
}

// SecretFiles returns the file that holds the organization's secret: kts-site.xml, or the file that kts-site.xml names.
// The arguments are those of Hosts.
func SecretFiles(place, confDir string) []secret.File {
	s, _, _ := readSite(place, confDir) // open reports the error
	s.auth.Wipe()
	return s.secrets
}

func allNames() []string {
	names := make([]string, 0, len(known))
	for n := range known {
		names = append(names, prefix+n)
	}
	return names
}

// read sets the fields of s from c.
func (s *site) read(c *hadoopconf.Conf) error {
	c.SetDefault(prefix+"roundrobin", "true")
	c.SetDefault(prefix+"pool.max", "5")
	c.SetDefault(prefix+"insecure", "false")
	c.SetDefault(prefix+"keylength", strconv.Itoa(trustee.KeyBits))
	c.SetDefault(prefix+"protocol", "json-encrypt")
	if err := s.readHosts(c); err != nil {
		return err
	}
	s.org = strings.TrimSpace(c.String(prefix + "org"))
	if err := s.readAuth(c); err != nil {
		return err
	}
	if v := c.String(prefix + "protocol"); v != "json-encrypt" {
		return fmt.Errorf("%s: property %s is %q: the only value is json-encrypt, and means claviger's own protocol "+
			"(docs/trustee-protocol.md)", s.file, prefix+"protocol", v)
	}
	var err error
	if s.roundRobin, err = c.Bool(prefix + "roundrobin"); err != nil {
		return err
	}
	if s.insecure, err = c.Bool(prefix + "insecure"); err != nil {
		return err
	}
	n, err := c.Int(prefix+"pool.max", 1, 1000)
	if err != nil {
		return err
	}
	s.pool = int(n)
	if n, err = c.Int(prefix+"keylength", 2048, 8192); err != nil {
		return err
	}
	s.bits = int(n)
	return nil
}

func (s *site) readHosts(c *hadoopconf.Conf) error {
	for _, name := range []string{"hostname-ACTIVE", "hostname-PASSIVE"} {
		v, _ := c.Get(prefix + name)
		if v = strings.TrimSpace(v); v == "" {
			if name == "hostname-ACTIVE" {
				return fmt.Errorf("%s: property %s is not set: it is the host of the active Key Trustee Server", s.file,
					prefix+name)
			}
			continue
		}
		host, err := hostPort(v)
		if err != nil {
			p, _ := c.Lookup(prefix + name)
			return fmt.Errorf("%s: property %s is %q: %w", p.Where(), prefix+name, v, err)
		}
		s.hosts = append(s.hosts, host)
	}
	return nil
}

// readAuth reads the organization's secret from kts-site.xml, or from the file that kts-site.xml names.
func (s *site) readAuth(c *hadoopconf.Conf) error {
	auth, _ := c.Get(prefix + "auth")
	s.auth = secret.Bytes(auth)
	if auth != "" {
		s.secrets = append(s.secrets, secretFile(s.file, prefix+"auth"))
		if err := s.secrets[0].Refuse(); err != nil {
			return err
		}
	}
	file, ok := c.Path(prefix + "auth.file")
	if !ok {
		return nil
	}
	if auth != "" {
		return fmt.Errorf("%s: both %s and %s are set: keep the file", s.file, prefix+"auth", prefix+"auth.file")
	}
	b, err := os.ReadFile(file)
	if err != nil {
		return fmt.Errorf("%s: property %s: %w", s.file, prefix+"auth.file", err)
	}
	s.secrets = append(s.secrets, secretFile(file, "the organization's secret"))
	if err := s.secrets[0].Refuse(); err != nil {
		return err
	}
	s.auth = secret.Bytes(strings.TrimRight(string(b), "\r\n"))
	clear(b)
	return nil
}

// hostPort returns host:port for a host with or without a port.
func hostPort(v string) (string, error) {
	if strings.ContainsAny(v, "/ @?#") {
		return "", fmt.Errorf("it must be the name of a host, with :PORT if the port is not %d", trustee.Port)
	}
	host, port, err := net.SplitHostPort(v)
	if err != nil {
		host, port = strings.Trim(v, "[]"), strconv.Itoa(trustee.Port)
	}
	if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 {
		return "", fmt.Errorf("%q is not a port", port)
	}
	if host == "" {
		return "", fmt.Errorf("the name of the host is missing")
	}
	return net.JoinHostPort(host, port), nil
}
