package migrate

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"claviger/provider"
)

// The properties that name the KMS in HDFS' configuration. HDFSOldProvider is the spelling before Hadoop 3.
const (
	HDFSProvider    = "hadoop.security.key.provider.path"
	HDFSOldProvider = "dfs.encryption.key.provider.uri"
)

// hdfsProviderProps are the properties that name HDFS' KMS, the newer one first.
var hdfsProviderProps = []string{HDFSProvider, HDFSOldProvider}

// lookupTime bounds the lookup of one host name.
const lookupTime = 3 * time.Second

// hdfs checks that HDFS uses the source until every key is here. It compares addresses, because hosts may have several
// names.
func (p *Probes) hdfs(ctx context.Context, facts []HostFacts, complete bool) Check {
	c := Check{Name: nameHDFS}
	notTried := func(measured, cure string) Check {
		c.Status, c.Measured, c.Cure = NotTried, measured, cure
		return c
	}
	if p.HDFS == nil {
		return notTried("HDFS' configuration was not given", "give its folder: --hdfs-conf DIR")
	}
	for _, name := range hdfsProviderProps {
		value, ok := p.HDFS(name)
		if !ok || value == "" {
			continue
		}
		c.Measured = fmt.Sprintf("%s is %s", name, value)
		if len(p.OwnAddresses) == 0 {
			return notTried(c.Measured+"; the port of this server is not known",
				"set hadoop.kms.http.port")
		}
		own, source := p.endpoints(ctx, p.OwnAddresses, true), sourceEndpoints(facts)
		elsewhere, unknown, why := "", "", error(nil)
		for _, host := range kmsHosts(value) {
			switch addrs, err := p.resolve(ctx, host); {
			case slices.Contains(p.OwnAddresses, strings.ToLower(host)) || own.any(addrs):
				c.Measured += fmt.Sprintf("; %s is this server", host)
				if complete {
					return c // correct, because every key is here
				}
				c.Status = Failure
				c.Cure = fmt.Sprintf("HDFS uses %s already: until the migration is complete, creating and opening "+
					"files in encrypted zones fails; migrate before HDFS is restarted", host)
				return c
			case err != nil:
				unknown, why = host, err
			case len(source) > 0 && !source.any(addrs):
				elsewhere = host
			}
		}
		if unknown != "" {
			return notTried(fmt.Sprintf("%s; %s cannot be resolved here: %v", c.Measured, unknown, why),
				"correct the name, or the name service: it is not known whether the name is that of this server")
		}
		if elsewhere != "" {
			c.Status = Warning
			c.Measured += fmt.Sprintf("; %s is neither the source nor this server", elsewhere)
			c.Cure = "check that the source is the KMS that HDFS uses: keys that are made elsewhere are not migrated"
		}
		return c
	}
	return notTried("HDFS has no key provider configured",
		"check that the folder is that of HDFS' own core-site.xml; encryption zones need "+hdfsProviderProps[0])
}

// IsOwnAddress reports whether a "host:port" is one of OwnAddresses, or resolves to one.
func (p *Probes) IsOwnAddress(ctx context.Context, hostPort string) (bool, error) {
	if slices.Contains(p.OwnAddresses, strings.ToLower(hostPort)) {
		return true, nil
	}
	addrs, err := p.resolve(ctx, hostPort)
	return p.endpoints(ctx, p.OwnAddresses, true).any(addrs), err
}

// endpoints are addresses with their ports.
type endpoints []netip.AddrPort

// any reports whether one of the others is in the list. All loopback addresses count as one address, because on some
// systems a host's own name is 127.0.1.1.
func (list endpoints) any(others endpoints) bool {
	plain := func(a netip.AddrPort) netip.AddrPort {
		if a.Addr().IsLoopback() {
			return netip.AddrPortFrom(netip.IPv6Loopback(), a.Port())
		}
		return a
	}
	for _, o := range others {
		if slices.ContainsFunc(list, func(a netip.AddrPort) bool { return plain(a) == plain(o) }) {
			return true
		}
	}
	return false
}

// endpoints resolves several "host:port", and leaves out those that cannot be resolved. If local is true, they are of
// this server: if one of them is a loopback address, the result has all addresses of this host, too.
func (p *Probes) endpoints(ctx context.Context, hosts []string, local bool) endpoints {
	var all endpoints
	ports := map[uint16]bool{}
	for _, h := range hosts {
		list, _ := p.resolve(ctx, h)
		for _, a := range list {
			ports[a.Port()] = true
		}
		all = append(all, list...)
	}
	if !local || !slices.ContainsFunc(all, func(a netip.AddrPort) bool { return a.Addr().IsLoopback() }) {
		return all // the server listens at the given addresses only
	}
	addrs, err := p.localAddrs()
	if err != nil {
		return all
	}
	for _, a := range addrs {
		for port := range ports {
			all = append(all, netip.AddrPortFrom(a.Unmap(), port))
		}
	}
	return all
}

// resolve returns the addresses of "host:port".
func (p *Probes) resolve(ctx context.Context, hostPort string) (endpoints, error) {
	host, text, err := net.SplitHostPort(hostPort)
	if err != nil {
		return nil, err
	}
	port, err := strconv.ParseUint(text, 10, 16)
	if err != nil {
		return nil, err
	}
	if a, err := netip.ParseAddr(host); err == nil {
		return endpoints{netip.AddrPortFrom(a.Unmap(), uint16(port))}, nil
	}
	lookup := p.Lookup
	if lookup == nil {
		lookup = func(ctx context.Context, host string) ([]netip.Addr, error) {
			return net.DefaultResolver.LookupNetIP(ctx, "ip", host)
		}
	}
	ctx, cancel := context.WithTimeout(ctx, lookupTime)
	defer cancel()
	addrs, err := lookup(ctx, host)
	var all endpoints
	for _, a := range addrs {
		all = append(all, netip.AddrPortFrom(a.Unmap(), uint16(port)))
	}
	return all, err
}

// sourceEndpoints returns the addresses of the source's hosts.
func sourceEndpoints(facts []HostFacts) endpoints {
	var all endpoints
	for _, f := range facts {
		u, err := url.Parse(f.Base)
		if err != nil {
			continue
		}
		_, text, _ := net.SplitHostPort(hostPort(f.Base))
		port, err := strconv.ParseUint(text, 10, 16)
		if err != nil || u.Host == "" {
			continue
		}
		for _, a := range f.Addrs {
			all = append(all, netip.AddrPortFrom(a.Unmap(), uint16(port)))
		}
	}
	return all
}

// kmsHosts returns the "host:port" of the KMSs in a list of provider URIs. It leaves out other and malformed
// URIs, which cannot be this server.
func kmsHosts(list string) []string {
	uris, err := provider.SplitURIs(list)
	if err != nil {
		return nil
	}
	var hosts []string
	for _, uri := range uris {
		k, err := provider.ParseKMS(uri)
		if err != nil {
			continue
		}
		for _, h := range k.Hosts {
			hosts = append(hosts, net.JoinHostPort(h, strconv.Itoa(k.Port)))
		}
	}
	return hosts
}
