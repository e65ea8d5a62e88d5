package diagnosis

import (
	"context"
	"fmt"
	"net/url"
	"strings"
	"time"

	"claviger"
	"claviger/doctor"
	"claviger/kms"
	"claviger/migrate"
	"claviger/namenode"
)

// edekLatency is the mean time for an EDEK above which there is a warning. Tests change it.
var edekLatency = 100 * time.Millisecond

// nameNodes returns the checks of running NameNodes, by their pages /jmx and /conf.
func (s *site) nameNodes() []doctor.Check {
	needs := []string{"D-hdfs-namenode"}
	return []doctor.Check{
		{ID: "D-hdfs-namenode", Title: "the NameNodes", Needs: []string{"D-conf-read"},
			Measures: "each NameNode of --namenode is asked for its state, its version, its configuration and its " +
				"counters, over HTTP, with this server's login; its clock is compared with this host's",
			Why: "without an active NameNode nobody reads a file; Kerberos and tokens compare clocks",
			Cure: "name the NameNodes as in dfs.namenode.https-address, and check that they run and that this host " +
				"reaches them",
			Run: s.readNameNodes},
		{ID: "D-hdfs-running", Title: "the configuration of the running NameNodes", Needs: needs,
			After: []string{"D-hdfs-path"},
			Measures: "the KMS and the cache of EDEKs that each NameNode runs with, by its page /conf, are compared " +
				"with this server, with the files of --hdfs-conf, and with the limits of this server",
			Why: "a NameNode reads its files at its start only: until it is restarted, it uses the KMS that they " +
				"named then",
			Cure: "correct HDFS' configuration, and restart the NameNode",
			Run:  s.runningConf},
		{ID: "D-hdfs-edeks", Title: "EDEKs in the NameNodes", Needs: needs,
			Measures: "how often each NameNode needed an EDEK for a new file, and filled its cache, since its start, " +
				"and how long that took lately (GenerateEDEKTime and WarmUpEDEKTime); a mean above " +
				edekLatency.String() + " is a warning",
			Why: "a new file in an encryption zone waits for its EDEK, while the NameNode's cache is empty",
			Cure: "find out what delays the KMS (D-hsm-latency, D-store-latency), or raise " +
				"hadoop.security.kms.client.encrypted.key.cache.size in HDFS' configuration",
			Run: s.edekTimes},
	}
}

func (s *site) readNameNodes(ctx context.Context) (list []doctor.Finding) {
	if len(s.options.NameNodes) == 0 {
		return doctor.Skip("--namenode names no NameNode")
	}
	client, err := kms.NameNodes(s.conf, s.options.NameNodes)
	if err != nil {
		return doctor.Error(err, "")
	}
	active := false
	for _, n := range client.States(ctx) {
		if n.Err != nil {
			list = append(list, doctor.Warn(n.URL+": "+n.Err.Error(), "")...)
			continue
		}
		s.states, active = append(s.states, n), active || n.Role == "active"
		list = append(list, doctor.Pass("%s is %s, Hadoop %s", n.URL, claviger.Printable(n.Role),
			claviger.Printable(n.Version))...)
		list = append(list, clockOf(n)...)
	}
	switch {
	case len(s.states) == 0:
		for i := range list {
			list[i].Status = doctor.Failure
		}
	case !active:
		list = append(list, doctor.Warn("no NameNode that answers is active", "name the active NameNode, too, or make "+
			"one active: hdfs haadmin -failover")...)
	}
	return list
}

// clockOf compares the clock of a NameNode with this host's.
func clockOf(n namenode.State) []doctor.Finding {
	host := n.URL
	if u, err := url.Parse(n.URL); err == nil {
		host = u.Hostname()
	}
	return clocks([]migrate.HostFacts{{Host: host, Date: n.Date, DateBegan: n.DateSent, DateTook: n.DateTook}})
}

func (s *site) runningConf(ctx context.Context) (list []doctor.Finding) {
	for _, n := range s.states {
		get := func(name string) (string, bool) { value, ok := n.Conf[name]; return value, ok }
		p, err := providerOf(get)
		switch {
		case err != nil:
			list = append(list, doctor.Error(fmt.Errorf("%s runs with %w", n.URL, err), "")...)
			continue
		case p.property == "":
			list = append(list, doctor.Fail(n.URL+" runs without a key provider: it has no encryption zones", "")...)
			continue
		}
		list = append(list, s.address(ctx, p.uri, fmt.Sprintf("%s runs with %s %s", n.URL, p.property, p.text))...)
		list = append(list, s.notRestarted(n)...)
		for _, f := range s.requests(get) {
			f.Measured = n.URL + ": " + f.Measured
			list = append(list, f)
		}
	}
	return list
}

// comparedProperties are the properties of the files of --hdfs-conf that a NameNode must run with.
var comparedProperties = []string{hdfsPath, edekCache + "size", edekCache + "low-watermark", edekCache + "expiry",
	reencryptBatch}

// notRestarted has a finding for each property whose value in the files of --hdfs-conf is not that of the NameNode.
func (s *site) notRestarted(n namenode.State) (list []doctor.Finding) {
	if s.hdfsSite == nil {
		return nil
	}
	for _, name := range comparedProperties {
		value, where, set := s.hdfsSite.SetValue(name)
		if is := n.Conf[name]; set && strings.TrimSpace(is) != strings.TrimSpace(value) {
			list = append(list, doctor.Warn(fmt.Sprintf("%s runs with %s %q, and %s has %q", n.URL, name, is, where,
				claviger.Printable(value)), "restart the NameNode, if the file is right")...)
		}
	}
	return list
}

func (s *site) edekTimes(context.Context) (list []doctor.Finding) {
	for _, n := range s.states {
		if !n.Generate.Known {
			list = append(list, doctor.Skip("%s, of Hadoop %s, does not count EDEKs", n.URL,
				claviger.Printable(n.Version))...)
			continue
		}
		f := doctor.Finding{Status: doctor.OK, Measured: fmt.Sprintf("%s: EDEKs for new files: %d, %.2f ms each; its "+
			"cache was filled %d times, in %.2f ms each", n.URL, n.Generate.Count, milliseconds(n.Generate.Mean),
			n.WarmUp.Count, milliseconds(n.WarmUp.Mean))}
		if n.Generate.Mean > edekLatency {
			f.Status = doctor.Warning
		}
		list = append(list, f)
	}
	return list
}

func milliseconds(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }
