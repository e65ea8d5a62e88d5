package edeks

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"claviger/hadoopconf"
)

// site has the facts about the namespaces of HDFS, from its configuration.
type site struct {
	names   []string // of nameservices
	unknown string   // why they are not known
	queue   time.Duration
	conf    *hadoopconf.Conf // nil if unknown is set
}

// onlyService names the namespace of an HDFS without nameservices.
const onlyService = "default"

const propQueue = "hadoop.security.kms.client.encrypted.key.cache.expiry"

// readSite reads core-site.xml and hdfs-site.xml. Without hdfs-site.xml, or if other properties name more namespaces,
// it is not known how many there are.
func readSite(dir string) (*site, error) {
	s := &site{queue: defaultQueue}
	file := filepath.Join(dir, "hdfs-site.xml")
	if _, err := os.Stat(file); errors.Is(err, fs.ErrNotExist) {
		s.unknown = fmt.Sprintf("there is no %s; name the folder with the hdfs-site.xml of the NameNodes by "+
			"--hdfs-conf", file)
		return s, nil
	}
	conf, err := hadoopconf.LoadHDFS(dir, os.LookupEnv)
	if err != nil {
		return nil, fmt.Errorf("--hdfs-conf: %w", err)
	}
	s.conf = conf
	for _, property := range []string{"dfs.internal.nameservices", "dfs.nameservices"} {
		text := s.get(property)
		s.names = s.list(property)
		odd := func(name string) bool { return strings.ContainsAny(name, "${} \t\n") }
		if text != "" && len(s.names) == 0 || slices.ContainsFunc(s.names, odd) {
			return nil, fmt.Errorf("--hdfs-conf: %s: %q is no list of nameservices, or has a variable that is not set "+
				"there: use the configuration of the NameNodes", property, text)
		}
		if len(s.names) > 0 {
			break
		}
	}
	if s.unknown = s.moreNamespaces(); len(s.names) == 0 {
		s.names = []string{onlyService}
	}
	if text := s.get(propQueue); text != "" {
		ms, err := strconv.ParseInt(text, 10, 64)
		if err != nil || ms < 0 || ms > int64(10*365*24*time.Hour/time.Millisecond) {
			return nil, fmt.Errorf("--hdfs-conf: %s: %q is no number of milliseconds", propQueue, text)
		}
		s.queue = max(s.queue, time.Duration(ms)*time.Millisecond)
	}
	return s, nil
}

// moreNamespaces says why the configuration may have more namespaces than names; "" if nothing shows that. The files of
// a client often name some of the namespaces only, and an image of each must be counted.
func (s *site) moreNamespaces() string {
	if s.get("dfs.internal.nameservices") != "" { // by definition all that this cluster has
		return ""
	}
	const mounts, nodes = "fs.viewfs.mounttable.", "dfs.ha.namenodes."
	cure := "; name all namespaces of this HDFS by dfs.nameservices, or by dfs.internal.nameservices if the others " +
		"are of other clusters"
	if strings.HasPrefix(s.get("fs.defaultFS"), "viewfs:") && len(s.names) == 0 {
		return "fs.defaultFS is viewfs, which joins namespaces, and dfs.nameservices is not set" + cure
	}
	mounted, ha := map[string]bool{}, s.conf.WithPrefix(nodes)
	for _, value := range s.conf.WithPrefix(mounts) {
		for target := range strings.SplitSeq(value, ",") {
			if u, err := url.Parse(strings.TrimSpace(target)); err == nil && u.Scheme == "hdfs" {
				mounted[strings.ToLower(u.Host)] = true
			}
		}
	}
	known := max(1, len(s.names))
	for property, found := range map[string]int{mounts + "*": len(mounted), nodes + "*": len(ha)} {
		if found > known {
			return fmt.Sprintf("%s names %d namespaces, and dfs.nameservices %d", property, found, len(s.names)) + cure
		}
	}
	return ""
}

func (s *site) get(property string) string {
	value, _ := s.conf.Get(property)
	return strings.TrimSpace(value)
}

// list returns the items of a list, without empty ones and duplicates.
func (s *site) list(property string) (items []string) {
	for item := range strings.SplitSeq(s.get(property), ",") {
		if item = strings.TrimSpace(item); item != "" && !slices.Contains(items, item) {
			items = append(items, item)
		}
	}
	return items
}

// serviceOf returns the nameservice that has a NameNode with its web server at this URL; "" if none has.
func (s *site) serviceOf(base string) string {
	u, err := url.Parse(base)
	if err != nil || s.conf == nil {
		return ""
	}
	for _, name := range s.names {
		for _, suffix := range s.suffixes(name) {
			for scheme, port := range map[string]string{"http": "9870", "https": "9871"} {
				if scheme == u.Scheme && s.address(scheme, suffix, port) == strings.ToLower(u.Host) {
					return name
				}
			}
		}
	}
	return ""
}

// suffixes returns the ends of the properties of each NameNode of a nameservice: ".NS.NN", ".NS" and "".
func (s *site) suffixes(name string) []string {
	if name == onlyService {
		return []string{""}
	}
	var all []string
	for _, node := range s.list("dfs.ha.namenodes." + name) {
		all = append(all, "."+name+"."+node)
	}
	if len(all) == 0 {
		all = []string{"." + name}
	}
	if len(s.names) == 1 {
		all = append(all, "")
	}
	return all
}

// address returns HOST:PORT of a NameNode's web server. If no host is set, it is the host of the NameNode's RPC server.
func (s *site) address(scheme, suffix, port string) string {
	host := ""
	if text := s.get("dfs.namenode." + scheme + "-address" + suffix); text != "" {
		h, p, err := net.SplitHostPort(text)
		if err != nil {
			return ""
		}
		host, port = h, p
	}
	if host == "" || host == "0.0.0.0" || host == "::" {
		rpc := s.get("dfs.namenode.rpc-address" + suffix)
		if u, err := url.Parse(s.get("fs.defaultFS")); rpc == "" && suffix == "" && err == nil {
			rpc = net.JoinHostPort(u.Hostname(), "8020")
		}
		host, _, _ = net.SplitHostPort(rpc)
	}
	if host == "" {
		return ""
	}
	return strings.ToLower(net.JoinHostPort(host, port))
}
