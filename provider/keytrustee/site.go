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

// site is what kts-site.xml says.
type site struct {
	file       string
	hosts      []string // host:port, the active one first
	org        string
	auth       secret.Bytes
	secrets    []secret.File // that hold auth
	roundRobin bool
	pool       int
	insecure   bool
	bits       int
}

// known are the properties that have a meaning, and those that Cloudera's KT KMS had and that have
// none here, with the reason.
var known = map[string]string{
	"hostname-ACTIVE": "", "hostname-PASSIVE": "", "org": "", "auth": "", "auth.file": "", "roundrobin": "",
	"pool.max": "", "insecure": "", "keylength": "", "protocol": "",
	"usepool":                "connections are always kept and used again",
	"pool.min.idle":          "connections are made when they are needed",
	"pool.max.idle":          "as many idle connections are kept as pool.max allows",
	"pool.abandoned.timeout": "each question has a time limit of its own",
	"tokensync":              "versions are never handed out before the Key Trustee Servers have them",
	"stronglocking":          "changes are compared and set at the Key Trustee Server",
}

// readSite reads kts-site.xml from the folder in cloudera.hsmkp.ktkms.config.dir, or from confDir.
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
			fmt.Errorf("%w; a keytrustee:// provider needs it: copy it from a KT KMS host, and name it by %s unless "+
				"it lies beside kms-site.xml", err, hadoopconf.TrusteeConf)
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
			// Cloudera's tools write all of them, so there is no warning.
		}
	}
	return s, append(c.Warnings(), warnings...), s.read(c)
}

// Hosts are the Key Trustee Servers in kts-site.xml ("host:port", the active one first). insecure
// is true if their certificates are not verified. place is the value of
// cloudera.hsmkp.ktkms.config.dir, and confDir the folder of kms-site.xml.
func Hosts(place, confDir string) (hosts []string, insecure bool, err error) {
	s, _, err := readSite(place, confDir)
	s.auth.Wipe()
	return s.hosts, s.insecure, err
}

// holding is a file with a secret.
func holding(path, what string) secret.File {
	return secret.File{Path: path, Harm: "and holds a secret (" + what + ")"}
}

// SecretFiles are kts-site.xml, if it holds the organization's secret, and the file that holds it
// otherwise. The arguments are those of Hosts.
func SecretFiles(place, confDir string) []secret.File {
	s, _, _ := readSite(place, confDir) // opening the provider says what is wrong
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

func (s *site) read(c *hadoopconf.Conf) error {
	c.SetDefault(prefix+"roundrobin", "true")
	c.SetDefault(prefix+"pool.max", "5")
	c.SetDefault(prefix+"insecure", "false")
	c.SetDefault(prefix+"keylength", strconv.Itoa(trustee.KeyBits))
	c.SetDefault(prefix+"protocol", "json-encrypt")
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
	s.org = strings.TrimSpace(c.String(prefix + "org"))
	auth, _ := c.Get(prefix + "auth")
	s.auth = secret.Bytes(auth)
	if auth != "" {
		s.secrets = append(s.secrets, holding(s.file, prefix+"auth"))
		if err := s.secrets[0].Refuse(); err != nil {
			return err
		}
	}
	if file, ok := c.Path(prefix + "auth.file"); ok {
		if auth != "" {
			return fmt.Errorf("%s: both %s and %s are set: keep the file", s.file, prefix+"auth", prefix+"auth.file")
		}
		b, err := os.ReadFile(file)
		if err != nil {
			return fmt.Errorf("%s: property %s: %w", s.file, prefix+"auth.file", err)
		}
		s.secrets = append(s.secrets, holding(file, "the organization's secret"))
		if err := s.secrets[0].Refuse(); err != nil {
			return err
		}
		s.auth = secret.Bytes(strings.TrimRight(string(b), "\r\n"))
		clear(b)
	}
	if v := c.String(prefix + "protocol"); v != "json-encrypt" {
		return fmt.Errorf("%s: property %s is %q: only json-encrypt is known, and means claviger's own protocol "+
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

// hostPort accepts a host with or without a port.
func hostPort(v string) (string, error) {
	if strings.ContainsAny(v, "/ @?#") {
		return "", fmt.Errorf("it must be a host's name, with :PORT where that is not %d", trustee.Port)
	}
	host, port, err := net.SplitHostPort(v)
	if err != nil {
		host, port = strings.Trim(v, "[]"), strconv.Itoa(trustee.Port)
	}
	if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 {
		return "", fmt.Errorf("%q is not a port", port)
	}
	if host == "" {
		return "", fmt.Errorf("the host's name is missing")
	}
	return net.JoinHostPort(host, port), nil
}
