package diagnosis

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"slices"
	"strconv"
	"strings"

	"claviger"
	"claviger/doctor"
	"claviger/hadoopconf"
	"claviger/kms"
	"claviger/migrate"
	"claviger/provider"
)

// The properties that name the KMS in HDFS' configuration.
const hdfsPath, hdfsOldPath = migrate.HDFSProvider, migrate.HDFSOldProvider

// The properties of what a NameNode requests at once: edekCache is the prefix of its cache of EDEKs.
const edekCache, reencryptBatch = "hadoop.security.kms.client.encrypted.key.cache.", "dfs.namenode.reencrypt.batch.size"

// hdfs returns the checks of HDFS' configuration, as far as the configuration is about the KMS.
func (s *site) hdfs() doctor.Group {
	return doctor.Group{Title: "HDFS", Checks: append([]doctor.Check{
		{ID: "D-hdfs-path", Title: "the KMS of HDFS", Needs: []string{"D-conf-read"},
			Measures: "host, port, scheme and path of hadoop.security.key.provider.path, in the folder of " +
				"--hdfs-conf, are compared with this server",
			Why:  "with another address, or http instead of https, HDFS cannot open files of encryption zones",
			Cure: "write kms://https@HOST:PORT/kms, with the hosts of this KMS, and restart HDFS",
			Run:  s.hdfsPath},
		{ID: "D-hdfs-spelling", Title: "one spelling of the KMS", Needs: []string{"D-hdfs-path"},
			Measures: "whether dfs.encryption.key.provider.uri, the older spelling, is set",
			Why: "HDFS reads both spellings, and other clients, such as hadoop key, only the newer one, so the two " +
				"can name different KMSs",
			Cure: "remove dfs.encryption.key.provider.uri, and set hadoop.security.key.provider.path in core-site.xml",
			Run:  s.hdfsSpelling},
		{ID: "D-hdfs-nodes", Title: "all nodes are in the URI", Needs: []string{"D-hdfs-path", "D-store-schema"},
			Measures: "the hosts of the servers that run on the metastore are compared with those of the URI",
			Why: "clients use only the hosts of the URI: a node that is not among them takes no load, and " +
				"replaces no node that fails",
			Cure: "name each node: kms://https@HOST1;HOST2:PORT/kms",
			Run:  s.inStore(s.hdfsNodes)},
		{ID: "D-hdfs-queue", Title: "the NameNode's requests", Needs: []string{"D-hdfs-path"},
			Measures: "the NameNode's cache of EDEKs and its batches of re-encryption are compared with the limits " +
				"of this server",
			Why: "a NameNode whose cache is too small does not start, and requests above a limit of this server are " +
				"refused",
			Cure: "correct the value in HDFS' configuration, or raise the limit here (docs/limits.md)",
			Run:  s.hdfsQueue},
	}, s.nameNodes()...)}
}

// hdfsConf returns the configuration of --hdfs-conf. If it is nil, the findings say why.
func (s *site) hdfsConf() (*hadoopconf.Conf, []doctor.Finding) {
	if s.options.HDFS == "" {
		return nil, doctor.Skip("--hdfs-conf names no folder with HDFS' configuration")
	}
	conf, err := hadoopconf.LoadHDFS(s.options.HDFS, os.LookupEnv)
	if err != nil {
		return nil, doctor.Error(fmt.Errorf("--hdfs-conf: %w", err), "name the folder of HDFS' configuration")
	}
	return conf, nil
}

func (s *site) hdfsPath(ctx context.Context) []doctor.Finding {
	conf, skipped := s.hdfsConf()
	if conf == nil {
		return skipped
	}
	kms, err := providerOf(conf.Get)
	switch {
	case err != nil:
		return doctor.Error(err, "")
	case kms.property == "":
		return doctor.Fail("HDFS has no key provider: "+hdfsPath+" is not set", "")
	}
	s.hdfsSite, s.hdfsKMS = conf, kms.uri
	return s.address(ctx, kms.uri, kms.property+" is "+kms.text)
}

// keyProvider is the KMS that HDFS uses.
type keyProvider struct {
	property string // that names the KMS; "" if none does
	text     string // the URI, printable
	uri      provider.KMSURI
}

// providerOf returns the KMS that a configuration of HDFS names.
func providerOf(get func(name string) (string, bool)) (p keyProvider, err error) {
	value := ""
	for _, p.property = range []string{hdfsPath, hdfsOldPath} {
		if value, _ = get(p.property); value != "" {
			break
		}
	}
	if value == "" {
		return keyProvider{}, nil
	}
	uris, err := provider.SplitURIs(value)
	if err == nil && len(uris) != 1 {
		err = fmt.Errorf("%d providers are named, and HDFS accepts one: the hosts of a KMS are separated by ';'",
			len(uris))
	}
	if err == nil {
		p.text = claviger.Printable(uris[0])
		p.uri, err = provider.ParseKMS(uris[0])
	}
	if err != nil {
		return p, fmt.Errorf("%s: %w", p.property, err)
	}
	return p, nil
}

// address compares the URI of HDFS with the address of this server.
func (s *site) address(ctx context.Context, uri provider.KMSURI, measured string) []doctor.Finding {
	own := migrate.Probes{OwnAddresses: s.service.Addresses(ctx)}
	if len(own.OwnAddresses) == 0 {
		return doctor.Skip("%s; the system chooses the port of this server", measured)
	}
	_, port, err := net.SplitHostPort(own.OwnAddresses[0])
	if err != nil {
		return doctor.Error(err, "")
	}
	found, unknown := false, []string(nil)
	for _, host := range uri.Hosts {
		is, err := own.IsOwnAddress(ctx, net.JoinHostPort(host, port))
		if found = found || is; err != nil {
			unknown = append(unknown, host+" has no address, as far as the name service knows")
		}
	}
	scheme := "http"
	if on, err := s.conf.Bool("hadoop.kms.ssl.enabled"); err == nil && on {
		scheme = "https"
	}
	switch text := strconv.Itoa(uri.Port); {
	case (!found || text != port) && s.pointsToSource(ctx, uri):
		return doctor.Skip("%s, which is the source; HDFS does not use this server yet", measured)
	case !found && len(unknown) > 0:
		return doctor.Fail(measured+"; "+strings.Join(unknown, "; "), "correct the name, or the name service")
	case !found:
		return doctor.Warn(measured+": none of its hosts is this one", "name this server there, unless a load "+
			"balancer in front of it has that name")
	case text != port:
		return doctor.Fail(fmt.Sprintf("%s: the port is %s, and this server has %s", measured, text, port), "")
	case uri.Scheme != scheme:
		return doctor.Fail(fmt.Sprintf("%s: the scheme is %s, and this server speaks %s", measured, uri.Scheme,
			scheme), "")
	case uri.Path != "/kms":
		return doctor.Fail(fmt.Sprintf("%s: the path is %q, and this server has /kms", measured, uri.Path), "")
	case len(unknown) > 0:
		return doctor.Warn(measured+"; "+strings.Join(unknown, "; "), "correct the name, or the name service")
	}
	return doctor.Pass("%s", measured)
}

// pointsToSource reports whether HDFS uses the source of the migration.
func (s *site) pointsToSource(ctx context.Context, uri provider.KMSURI) bool {
	value, _ := s.conf.Get(hadoopconf.SourceURI)
	source, err := provider.ParseKMS(value)
	if err != nil {
		return false
	}
	var p migrate.Probes
	for _, host := range source.Hosts {
		p.OwnAddresses = append(p.OwnAddresses, net.JoinHostPort(host, strconv.Itoa(source.Port)))
	}
	return slices.ContainsFunc(uri.Hosts, func(host string) bool {
		is, err := p.IsOwnAddress(ctx, net.JoinHostPort(host, strconv.Itoa(uri.Port)))
		return is && err == nil
	})
}

func (s *site) hdfsSpelling(context.Context) []doctor.Finding {
	old, where, ok := s.hdfsSite.SetValue(hdfsOldPath)
	if !ok {
		return doctor.Pass("%s is set, and nothing else", hdfsPath)
	}
	newer, _ := s.hdfsSite.Get(hdfsPath)
	switch {
	case newer == "":
		return doctor.Warn(fmt.Sprintf("%s: only %s is set", where, hdfsOldPath), "")
	case newer != old:
		return doctor.Fail(fmt.Sprintf("%s: %s is %s, and %s is %s", where, hdfsOldPath, claviger.Printable(old),
			hdfsPath, claviger.Printable(newer)), "")
	}
	return doctor.Warn(fmt.Sprintf("%s: %s is set too, with the same value", where, hdfsOldPath), "")
}

func (s *site) hdfsNodes(ctx context.Context) []doctor.Finding {
	nodes, err := s.service.Nodes(ctx)
	if err != nil {
		return doctor.Error(err, "")
	}
	if len(nodes) == 0 {
		return doctor.Skip("no server runs, so the nodes are not known")
	}
	return nodesInURI(s.hdfsKMS.Hosts, nodes, func(host string) []string {
		addrs, err := lookupHost(ctx, host)
		if err != nil {
			return nil // it is compared by its name
		}
		return addrs
	})
}

// nodesInURI has a finding for each host of a node: it must be in the URI, by its name or by an address.
func nodesInURI(hosts []string, nodes []kms.Node, lookup func(host string) []string) (list []doctor.Finding) {
	var seen []string
	for _, n := range nodes {
		if slices.Contains(seen, n.Host) {
			continue
		}
		seen = append(seen, n.Host)
		short, _, _ := strings.Cut(n.Host, ".")
		addrs := lookup(n.Host)
		f := doctor.Finding{Status: doctor.Warning, Measured: n.Host + " runs on the metastore, and the URI has only " +
			claviger.Printable(strings.Join(hosts, ", "))}
		for _, host := range hosts {
			first, _, _ := strings.Cut(host, ".")
			same := net.ParseIP(host) == nil && strings.EqualFold(first, short)
			if same || slices.ContainsFunc(lookup(host), func(a string) bool { return slices.Contains(addrs, a) }) {
				f = doctor.Finding{Status: doctor.OK, Measured: n.Host + " is in the URI"}
			}
		}
		list = append(list, f)
	}
	return list
}

func (s *site) hdfsQueue(context.Context) []doctor.Finding { return s.requests(s.hdfsSite.Get) }

// requests compares what a NameNode requests at once with the limits of this server. The defaults are those of Hadoop.
func (s *site) requests(get func(name string) (string, bool)) []doctor.Finding {
	var faults []error
	number := func(name, fallback string) float64 {
		text, _ := get(name)
		if text = strings.TrimSpace(text); text == "" {
			text = fallback
		}
		n, err := strconv.ParseFloat(strings.TrimRight(text, "fFdD"), 64) // Java reads a suffix, as in 0.3f
		if err != nil {
			faults = append(faults, fmt.Errorf("%s: %q is no number", name, text))
		}
		return n
	}
	size, mark := number(edekCache+"size", "500"), number(edekCache+"low-watermark", "0.3f")
	edeks := number(reencryptBatch, "1000")
	if len(faults) > 0 {
		return doctor.Error(errors.Join(faults...), "")
	}
	var list []doctor.Finding
	if int(size*mark) < 1 {
		list = doctor.Fail(fmt.Sprintf("%ssize is %v, and low-watermark %v: their product is below 1", edekCache, size,
			mark), fmt.Sprintf("raise %ssize", edekCache))
	}
	for _, l := range []struct {
		what, limit string
		requested   float64
	}{{edekCache + "size", "claviger.kms.max.num.keys", size}, {reencryptBatch, "claviger.kms.max.batch", edeks}} {
		most, err := s.conf.Int(l.limit, 1, 1<<31-1)
		switch {
		case err != nil:
			list = append(list, doctor.Error(err, "")...)
		case l.requested > float64(most):
			list = append(list, doctor.Finding{Status: doctor.Failure, Measured: fmt.Sprintf("%s is %v, and the limit "+
				"here, %s, is %d", l.what, l.requested, l.limit, most)})
		}
	}
	if len(list) > 0 {
		return list
	}
	return doctor.Pass("the NameNode keeps at most %v EDEKs for a key, and re-encrypts %v in a batch", size, edeks)
}
