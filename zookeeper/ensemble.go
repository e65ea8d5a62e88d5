package zookeeper

import (
	"fmt"
	"net"
	"strconv"
	"strings"

	"claviger"
)

// Ensemble is a parsed connection string, "h1:2181,h2:2181,[::1]:2181/chroot".
type Ensemble struct {
	Servers []string // each is "host:port"
	// Chroot is the node above all paths, "" or "/a/b".
	Chroot string
}

// defaultPort is ZooKeeper's port, for a connection string without one.
const defaultPort = "2181"

// maxServers is the largest number of servers. Real ensembles are far smaller.
const maxServers = 128

// ParseEnsemble reads a connection string as ZooKeeper's own client does. Its error is of kind Invalid, and shows
// the form of a connection string.
func ParseEnsemble(s string) (Ensemble, error) {
	bad := func(why string) (Ensemble, error) {
		return Ensemble{}, claviger.Errorf("zookeeper.ParseEnsemble", claviger.Invalid, "",
			"%q is not a list of ZooKeeper servers: %s; write HOST:PORT,HOST:PORT or HOST:PORT,HOST:PORT/CHROOT",
			s, why)
	}
	hosts, chroot, found := strings.Cut(s, "/")
	var e Ensemble
	if found && strings.Trim(chroot, "/ ") != "" {
		e.Chroot = "/" + strings.TrimSpace(chroot)
		if err := checkPath(e.Chroot); err != nil {
			return bad(err.Error())
		}
	}
	for _, server := range strings.Split(hosts, ",") {
		if server = strings.TrimSpace(server); server == "" {
			continue
		}
		host, port, err := net.SplitHostPort(server)
		if err != nil { // there is no port, or the form is wrong
			host, port = strings.TrimSuffix(strings.TrimPrefix(server, "["), "]"), defaultPort
			if strings.Contains(host, ":") && net.ParseIP(host) == nil {
				return bad(fmt.Sprintf("%q is not a host with a port", server))
			}
		}
		if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 {
			return bad(fmt.Sprintf("port %q is not a number from 1 to 65535", port))
		}
		if host == "" || strings.ContainsAny(host, " \t\r\n#/[]\\\"'") {
			return bad(fmt.Sprintf("host %q is not a host name", host))
		}
		e.Servers = append(e.Servers, net.JoinHostPort(host, port))
	}
	switch {
	case len(e.Servers) == 0:
		return bad("it names no server")
	case len(e.Servers) > maxServers:
		return bad(fmt.Sprintf("it names more than %d servers", maxServers))
	}
	return e, nil
}

// String is the connection string.
func (e Ensemble) String() string { return strings.Join(e.Servers, ",") + e.Chroot }

// checkPath returns an error if a path is not a valid path in ZooKeeper.
func checkPath(path string) error {
	if !strings.HasPrefix(path, "/") {
		return fmt.Errorf("path %q does not begin with /", path)
	}
	for _, part := range strings.Split(path[1:], "/") {
		if part == "" || part == "." || part == ".." || strings.ContainsFunc(part,
			func(r rune) bool { return r < 0x20 || r >= 0x7f && r <= 0x9f || r == 0xfffd }) {
			return fmt.Errorf("path %q has the part %q, which ZooKeeper does not allow", path, part)
		}
	}
	return nil
}
