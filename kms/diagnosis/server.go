package diagnosis

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"syscall"
	"time"

	"claviger"
	"claviger/doctor"
	"claviger/migrate"
)

// server returns the checks of the server that runs with the configuration, and of those of the other nodes.
func (s *site) server() doctor.Group {
	return doctor.Group{Title: "running server", Checks: []doctor.Check{
		{ID: "D-server-ready", Title: "the server that runs", Needs: []string{"D-conf-read"},
			Measures: "/readyz is requested at the configured address and port; if nothing answers, no server runs",
			Why: "a server that runs may have faults that its files do not show; another program on the port keeps " +
				"the server from starting",
			Cure: "docs/runbook.md says what to do first, and docs/monitoring/checks.md what each check measures",
			Run:  s.serverReady},
		{ID: "D-server-nodes", Title: "the servers of all nodes", Needs: []string{"D-conf-read"},
			After: []string{"D-store-schema"},
			Measures: "/readyz is requested at this server's port on each host of the KMS of --hdfs-conf, or without " +
				"--hdfs-conf on each host of a server that uses the metastore; the clock of each is compared with " +
				"this host's",
			Why: "a client that chooses a node that does not answer waits until its time limit, at each request; " +
				"cookies, tokens and Kerberos compare times",
			Cure: "start the server on that host, or remove the host from the URI; set both clocks by NTP",
			Run:  s.serverNodes},
	}}
}

// readyLimit bounds the request of /readyz, whose checks take at most 5 s.
const readyLimit = 10 * time.Second

// readiness is the answer of /readyz.
type readiness struct {
	Ready  bool `json:"ready"`
	Checks []struct {
		Name          string `json:"name"`
		OK            bool   `json:"ok"`
		Informational bool   `json:"informational"`
		Error         string `json:"error"`
	} `json:"checks"`

	date, began time.Time // the date of the answer, and when the request was sent
	took        time.Duration
}

func (s *site) serverReady(ctx context.Context) []doctor.Finding {
	host, port := s.conf.String("hadoop.kms.http.host"), s.conf.String("hadoop.kms.http.port")
	if port == "0" {
		return doctor.Skip("the system chooses the port of the server")
	}
	if ip := net.ParseIP(host); host == "" || ip != nil && ip.IsUnspecified() {
		host = "localhost"
	}
	address := net.JoinHostPort(host, port)
	r, err := s.readyz(ctx, address)
	switch {
	case errors.Is(err, syscall.ECONNREFUSED):
		return doctor.Pass("no server runs at %s", address)
	case err != nil:
		return doctor.Fail(fmt.Sprintf("%s is not the port of a claviger that answers: %v", address, err),
			"stop the program that uses the port (ss -ltnp), or set hadoop.kms.http.port to another one")
	}
	var list []doctor.Finding
	for _, c := range r.Checks {
		if c.OK {
			continue
		}
		status := doctor.Failure
		if c.Informational {
			status = doctor.Warning
		}
		list = append(list, doctor.Finding{Status: status, Measured: claviger.Printable(c.Name) + ": " + c.Error})
	}
	switch {
	case len(list) == 0 && (!r.Ready || len(r.Checks) == 0):
		return doctor.Fail(fmt.Sprintf("/readyz of %s has %d checks, none of which fails, and \"ready\": %t", address,
			len(r.Checks), r.Ready), "")
	case len(list) == 0:
		return doctor.Pass("the server at %s is ready; %d checks of /readyz pass", address, len(r.Checks))
	}
	return list
}

// nodeHosts returns the hosts at which clients find the nodes; reason says why they are not known.
func (s *site) nodeHosts(ctx context.Context) (hosts []string, reason string) {
	if hdfs, _ := s.hdfsConf(); hdfs != nil { // D-hdfs-path shows the error
		if p, err := providerOf(hdfs.Get); err == nil && p.property != "" {
			if s.pointsToSource(ctx, p.uri) {
				return nil, "HDFS uses the source"
			}
			return p.uri.Hosts, ""
		}
	}
	if !s.storeOpen || s.place.File != "" {
		return nil, "without --hdfs-conf, and without a metastore in PostgreSQL, no other node is known"
	}
	nodes, err := s.service.Nodes(ctx)
	if err != nil {
		return nil, claviger.Reason(err)
	}
	for _, n := range nodes {
		hosts = append(hosts, n.Host)
	}
	slices.Sort(hosts)
	return slices.Compact(hosts), "no server runs"
}

func (s *site) serverNodes(ctx context.Context) (list []doctor.Finding) {
	port := s.conf.String("hadoop.kms.http.port")
	if port == "0" {
		return doctor.Skip("the system chooses the port of the server")
	}
	hosts, reason := s.nodeHosts(ctx)
	if len(hosts) == 0 {
		return doctor.Skip("%s", reason)
	}
	own := migrate.Probes{OwnAddresses: s.service.Addresses(ctx)}
	for _, host := range hosts {
		address := net.JoinHostPort(host, port)
		r, err := s.readyz(ctx, address)
		here, _ := own.IsOwnAddress(ctx, address) // D-hdfs-path shows a host that has no address
		switch {
		case errors.Is(err, syscall.ECONNREFUSED) && here:
			list = append(list, doctor.Pass("no server runs at %s, which is this host", address)...)
			continue
		case errors.As(err, new(*net.DNSError)):
			list = append(list, doctor.Warn(host+" has no address, as far as the name service knows",
				"correct the name, or the name service")...)
			continue
		case err != nil:
			list = append(list, doctor.Warn(fmt.Sprintf("the server at %s does not answer: %v", address, err), "")...)
			continue
		case !r.Ready:
			list = append(list, doctor.Warn(fmt.Sprintf("the server at %s is not ready", address),
				"run the doctor on that host")...)
		default:
			list = append(list, doctor.Pass("the server at %s is ready", address)...)
		}
		list = append(list, clocks([]migrate.HostFacts{{Host: host, Date: r.date, DateBegan: r.began,
			DateTook: r.took}})...)
	}
	return list
}

// readyz requests the readiness of a server at an address. Nothing secret is sent and the answer is only shown, so the
// server's certificate is not verified.
func (s *site) readyz(ctx context.Context, address string) (r readiness, err error) {
	ctx, cancel := context.WithTimeout(ctx, readyLimit)
	defer cancel()
	scheme := "http"
	if s.conf.String("hadoop.kms.ssl.enabled") == "true" {
		scheme = "https"
	}
	r.began = time.Now()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, scheme+"://"+address+"/readyz", nil)
	if err != nil {
		return r, err
	}
	transport := &http.Transport{DisableKeepAlives: true,
		TLSClientConfig: &tls.Config{InsecureSkipVerify: true}} //nolint:gosec // see above
	client := &http.Client{Transport: transport,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	resp, err := client.Do(req)
	if err != nil {
		return r, err
	}
	r.took = time.Since(r.began)
	r.date, _ = http.ParseTime(resp.Header.Get("Date")) // without a date, the clock is not compared
	body, err := io.ReadAll(io.LimitReader(resp.Body, 1<<20))
	if err = errors.Join(err, resp.Body.Close()); err != nil {
		return r, err
	}
	if err := json.Unmarshal(body, &r); err != nil || r.Checks == nil {
		return r, fmt.Errorf("/readyz answers %s, and not with checks", resp.Status)
	}
	return r, nil
}
