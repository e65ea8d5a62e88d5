package migrate_test

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"testing"
	"time"

	"claviger"
	"claviger/internal/certtest"
	"claviger/internal/golden"
	"claviger/migrate"
)

// unauthenticated answers as a KMS at /kms does to a client without credentials.
func unauthenticated(w http.ResponseWriter, r *http.Request) {
	if !strings.HasPrefix(r.URL.Path, "/kms/v1/") {
		http.NotFound(w, r)
		return
	}
	w.Header().Set("Server", "Jetty(9.4)")
	w.WriteHeader(http.StatusUnauthorized)
}

func answer(status int, header ...string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		for i := 0; i+1 < len(header); i += 2 {
			w.Header().Set(header[i], header[i+1])
		}
		w.WriteHeader(status)
	}
}

func serve(t *testing.T, withTLS bool, h http.HandlerFunc) *httptest.Server {
	t.Helper()
	if withTLS {
		return serveWith(t, &tls.Config{}, h)
	}
	return serveWith(t, nil, h)
}

// serveWith starts a server, with TLS if conf is not nil.
func serveWith(t *testing.T, conf *tls.Config, h http.HandlerFunc) *httptest.Server {
	t.Helper()
	s := httptest.NewUnstartedServer(h)
	s.Config.ErrorLog = log.New(io.Discard, "", 0) // tests make handshakes fail
	if conf != nil {
		s.TLS = conf
		s.StartTLS()
	} else {
		s.Start()
	}
	t.Cleanup(s.Close)
	return s
}

// closedPort returns an address at which no process listens.
func closedPort(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	must(t, l.Close())
	return l.Addr().String()
}

// TestProbe: the probe of a source's host names the fault and the cure, or returns what the host answers.
func TestProbe(t *testing.T) {
	plain, secure := serve(t, false, unauthenticated), serve(t, true, unauthenticated)
	trust := x509.NewCertPool()
	trust.AddCert(secure.Certificate())
	authority := certtest.New(t, t.TempDir())
	authority.Begins, authority.Ends = time.Now().Add(-time.Hour), time.Now().Add(-time.Minute)
	file := authority.Issue("old-kms", "127.0.0.1")
	pair, err := tls.LoadX509KeyPair(file, file)
	must(t, err)
	expired := serveWith(t, &tls.Config{Certificates: []tls.Certificate{pair}}, unauthenticated)
	for _, tt := range []struct {
		name, base string
		trust      *x509.CertPool
		err, cure  string // parts of the error and of the cure; "": none
	}{
		{"http", plain.URL + "/kms", nil, "", ""},
		{"https", secure.URL + "/kms/", trust, "", ""},
		{"http where https answers", "http" + strings.TrimPrefix(secure.URL, "https") + "/kms", nil,
			"the port speaks https, but the URI has http",
			"write https in hadoop.kms.key.provider.reencryption.source.uri: " +
				"kms://https@127.0.0.1:"},
		{"https where http answers", "https" + strings.TrimPrefix(plain.URL, "http") + "/kms", nil,
			"the port speaks http, but the URI has https",
			"write http in hadoop.kms.key.provider.reencryption.source.uri: " +
				"kms://http@127.0.0.1:"},
		{"unknown authority", secure.URL + "/kms", x509.NewCertPool(), "certificate signed by unknown authority",
			"truststore"},
		{"expired certificate", expired.URL + "/kms", authority.Pool(), "certificate has expired",
			"the certificate CN=old-kms expired at "},
		{"wrong path", plain.URL, nil, "404", "a KMS is usually at /kms"},
		{"failing", serve(t, false, answer(503)).URL, nil, "503", "the log of the KMS"},
		{"redirect", serve(t, false, answer(302, "Location", "https://elsewhere/")).URL, nil,
			"a redirect to https://elsewhere/", "name the KMS itself"},
		{"bad request, no TLS", serve(t, false, answer(400)).URL, nil, "HTTP status 400", "check that the KMS runs"},
		{"closed port", "http://" + closedPort(t) + "/kms", nil, "connection refused", "can be reached from here"},
		{"unknown host", "http://kms.invalid:16000/kms", nil, "kms.invalid", `correct the host name "kms.invalid"`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			kms := &migrate.SourceKMS{Bases: []string{tt.base}, TLS: &tls.Config{RootCAs: tt.trust}}
			facts := kms.Probe(t.Context())
			if len(facts) != 1 {
				t.Fatalf("%d facts", len(facts))
			}
			f := facts[0]
			if tt.err == "" {
				if f.Err != nil || f.Cure != "" || f.Server != "Jetty(9.4)" || time.Since(f.Date).Abs() > time.Minute ||
					len(f.Addrs) == 0 {
					t.Errorf("%+v", f)
				}
				return
			}
			if f.Err == nil || !strings.Contains(f.Err.Error(), tt.err) || !strings.Contains(f.Cure, tt.cure) {
				t.Errorf("error %v, cure %q; want %q and %q", f.Err, f.Cure, tt.err, tt.cure)
			}
		})
	}
}

// TestDateOfAJavaKMS: a recorded answer of Hadoop's KMS to an unauthenticated request has no Date header. The clock of
// that KMS is read from its refusal of a delegation token.
func TestDateOfAJavaKMS(t *testing.T) {
	kms := serve(t, false, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.RawQuery != "op=GETDELEGATIONTOKEN" {
			w.Header()["Date"] = nil
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		w.Header().Set("Date", time.Now().Add(10*time.Minute).UTC().Format(http.TimeFormat))
		w.WriteHeader(http.StatusForbidden)
	})
	b := newTestMigration(t)
	b.cfg.Probes.Source = (&migrate.SourceKMS{Bases: []string{kms.URL + "/kms"}}).Probe
	p, err := b.engine(t).Plan(t.Context())
	must(t, err)
	c := checkOf(t, p, "clocks")
	if c.Status != migrate.Failure || !strings.Contains(c.Measured, " ahead of this host's") {
		t.Errorf("%+v", c)
	}
}

// TestProbeEnds: the probe of a source that accepts connections and never answers ends after the timeout.
func TestProbeEnds(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	defer func() { must(t, l.Close()) }()
	kms := &migrate.SourceKMS{Bases: []string{"http://" + l.Addr().String() + "/kms"}, Timeout: 100 * time.Millisecond}
	began := time.Now()
	facts := kms.Probe(t.Context())
	if facts[0].Err == nil || time.Since(began) > 10*time.Second {
		t.Errorf("%+v after %v", facts[0], time.Since(began))
	}
}

// TestStartWithWrongScheme compares the error of a start if the configuration has http and the source speaks https, and
// the other way round.
func TestStartWithWrongScheme(t *testing.T) {
	secure, plain := serve(t, true, unauthenticated), serve(t, false, unauthenticated)
	for name, source := range map[string]string{
		"wrong-scheme":       "http://" + secure.Listener.Addr().String(),
		"wrong-scheme-https": "https://" + plain.Listener.Addr().String(),
	} {
		b := newTestMigration(t)
		b.cfg.Source = &stub{Source: b.source, keysErr: claviger.Errorf("kmsclient.Keys", claviger.Unavailable, "",
			"malformed HTTP response")}
		b.cfg.Probes.Source = (&migrate.SourceKMS{Bases: []string{source + "/kms"}}).Probe
		_, err := b.engine(t).AtStart(t.Context())
		if !claviger.Is(err, claviger.SourceUnreachable) {
			t.Errorf("kind of %v", err)
		}
		_, addr, _ := strings.Cut(source, "://")
		golden.Compare(t, "testdata/"+name+".golden",
			strings.ReplaceAll(err.Error()+"\n", addr, "old.example.com:16000"))
	}
}

func localAddr() ([]netip.Addr, error) { return []netip.Addr{netip.MustParseAddr("192.0.2.1")}, nil }

// hostFacts returns the facts of a host that answered. Its clock is ahead of this host's.
func hostFacts(name, ip string, ahead time.Duration) migrate.HostFacts {
	return migrate.HostFacts{Base: "https://" + name + ":16000/kms", Host: name,
		Addrs: []netip.Addr{netip.MustParseAddr(ip)}, Began: noon, Took: 4 * time.Millisecond, Date: noon.Add(ahead),
		DateBegan: noon, DateTook: 4 * time.Millisecond, Server: "Jetty(9.4)"}
}

var hostDown = migrate.HostFacts{Base: "https://kms-2:16000/kms", Host: "kms-2",
	Addrs: []netip.Addr{netip.MustParseAddr("192.0.2.8")}, Err: io.ErrUnexpectedEOF, Cure: "check that the KMS runs"}

func sourceFacts(facts ...migrate.HostFacts) func(context.Context) []migrate.HostFacts {
	return func(context.Context) []migrate.HostFacts { return facts }
}

func latencies(times ...time.Duration) func(context.Context) ([]time.Duration, error) {
	return func(context.Context) ([]time.Duration, error) { return times, nil }
}

func roomFor(n int, known bool, err error) func(context.Context) (int, bool, error) {
	return func(context.Context) (int, bool, error) { return n, known, err }
}

func hdfsProperty(name, value string) func(string) (string, bool) {
	return func(n string) (string, bool) { return value, n == name }
}

func lookupNames(_ context.Context, host string) ([]netip.Addr, error) {
	a, ok := map[string]string{"new": "192.0.2.1", "service.example.com": "192.0.2.1", "kms-1": "192.0.2.7",
		"alias-1": "192.0.2.7", "kms-2": "192.0.2.8", "localhost": "127.0.0.1", "debian": "127.0.1.1"}[host]
	if !ok {
		return nil, errors.New("no such host")
	}
	return []netip.Addr{netip.MustParseAddr(a)}, nil
}

// checkTest has the probes of a plan, the name of one of its checks, and the result that the check must have.
type checkTest struct {
	name     string
	probes   migrate.Probes
	check    string
	status   migrate.Status
	measured string // a part of it
	cure     string // a part of it
}

func (tt checkTest) run(t *testing.T) {
	b := newTestMigration(t)
	b.add(t, "k", 2)
	b.cfg.Probes = tt.probes
	p, err := b.engine(t).Plan(t.Context())
	must(t, err)
	found, failures := 0, 0
	for _, c := range p.Checks {
		if c.Status == migrate.Failure {
			failures++
		}
		if c.Name != tt.check {
			continue
		}
		found++
		if c.Status != tt.status || !strings.Contains(c.Measured, tt.measured) || !strings.Contains(c.Cure, tt.cure) {
			t.Errorf("%+v, want %v, %q, %q", c, tt.status, tt.measured, tt.cure)
		}
		if tt.status == migrate.OK && c.Cure != "" {
			t.Errorf("a cure although the check passed: %q", c.Cure)
		}
	}
	if found != 1 {
		t.Errorf("%d checks of that name in %+v", found, p.Checks)
	}
	if p.Ready() != (failures == 0) {
		t.Errorf("ready is %v with %d failures", p.Ready(), failures)
	}
}

// TestChecksOfHSM: each result of the checks of the HSM's latency and room.
func TestChecksOfHSM(t *testing.T) {
	errUnreachable := claviger.Errorf("pkcs11.Ping", claviger.Unavailable, "", "CKR_DEVICE_REMOVED")
	for _, tt := range []checkTest{
		{"fast", migrate.Probes{Latency: latencies(3*time.Millisecond, time.Millisecond, 2*time.Millisecond)},
			"latency of the HSM", migrate.OK, "p50 2.00 ms, p99 3.00 ms of 3 round trips", ""},
		{"slow", migrate.Probes{Latency: latencies(time.Millisecond, 31*time.Millisecond)}, "latency of the HSM",
			migrate.Warning, "p99 31.00 ms", "encrypted.key.cache.size"},
		{"HSM unreachable",
			migrate.Probes{Latency: func(context.Context) ([]time.Duration, error) { return nil, errUnreachable }},
			"latency of the HSM", migrate.Failure, "CKR_DEVICE_REMOVED", "hsm inspect"},
		{"no round trip", migrate.Probes{Latency: latencies()}, "latency of the HSM", migrate.Failure, "no round trip",
			""},
		{"room", migrate.Probes{Room: roomFor(1, true, nil)}, "room in the HSM", migrate.OK, "1 new keys, room for 1",
			""},
		{"no room", migrate.Probes{Room: roomFor(0, true, nil)}, "room in the HSM", migrate.Failure,
			"1 new keys, room for 0", "--versions current"},
		{"room unknown", migrate.Probes{Room: roomFor(0, false, nil)}, "room in the HSM", migrate.NotTried,
			"does not report", ""},
		{"room, HSM unreachable", migrate.Probes{Room: roomFor(0, false, errUnreachable)}, "room in the HSM",
			migrate.Failure,
			"CKR_DEVICE_REMOVED", "reached"},
	} {
		t.Run(tt.name, tt.run)
	}
}

// TestChecksOfSource: each result of the checks of the source's hosts and clocks.
func TestChecksOfSource(t *testing.T) {
	for _, tt := range []checkTest{
		{"alive", migrate.Probes{Source: sourceFacts(hostFacts("kms-1", "192.0.2.7", 0))}, "source alive", migrate.OK,
			"https://kms-1:16000/kms answers in 4.00 ms (Jetty(9.4))", ""},
		{"one of two", migrate.Probes{Source: sourceFacts(hostFacts("kms-1", "192.0.2.7", 0), hostDown)},
			"source alive",
			migrate.Warning, "unexpected EOF", "check that the KMS runs"},
		{"dead", migrate.Probes{Source: sourceFacts(hostDown, hostDown)}, "source alive", migrate.Failure,
			"unexpected EOF",
			"check that the KMS runs"},
		{"source is not a KMS, answers", migrate.Probes{Alive: func(context.Context) error { return nil }},
			"source alive", migrate.OK, "which answers", ""},
		{"source is not a KMS, no probe", migrate.Probes{}, "source alive", migrate.NotTried, "not a KMS", ""},
		{"source is not a KMS, dead", migrate.Probes{Alive: func(context.Context) error {
			return claviger.Errorf("t", claviger.Unavailable, "", "no trustee answers")
		}}, "source alive", migrate.Failure, "no trustee answers", "can be reached"},
		{"other host", migrate.Probes{LocalAddrs: localAddr, Source: sourceFacts(hostFacts("kms-1", "192.0.2.7", 0))},
			"source on another host", migrate.OK, "kms-1 is 192.0.2.7", ""},
		{"this host", migrate.Probes{LocalAddrs: localAddr, Source: sourceFacts(hostFacts("kms-1", "192.0.2.1", 0))},
			"source on another host", migrate.Warning, "is this host", "on different hosts"},
		{"this server, not started", migrate.Probes{OwnAddresses: []string{"new:16000"}, Lookup: lookupNames,
			Source: sourceFacts(hostFacts("alias", "192.0.2.1",
				0))}, "source is another server", migrate.Failure, "https://alias:16000/kms is the address and port " +
			"of this server", "another port"},
		{"loopback", migrate.Probes{Source: sourceFacts(hostFacts("localhost", "127.0.0.1", 0))},
			"source on another host",
			migrate.Warning, "is this host", ""},
		{"clocks agree", migrate.Probes{Source: sourceFacts(hostFacts("kms-1", "192.0.2.7", time.Second))}, "clocks",
			migrate.OK,
			"clock agrees with this host's", ""},
		{"clock behind", migrate.Probes{Source: sourceFacts(hostFacts("kms-1", "192.0.2.7", -45*time.Second))},
			"clocks",
			migrate.Warning, "45s behind this host's", "NTP"},
		{"clock ahead", migrate.Probes{Source: sourceFacts(hostFacts("kms-1", "192.0.2.7", 10*time.Minute))}, "clocks",
			migrate.Failure, "10m0s ahead of this host's", "NTP"},
		{"no clock", migrate.Probes{Source: sourceFacts(hostDown)}, "clocks", migrate.NotTried, "no answer with a date",
			""},
	} {
		t.Run(tt.name, tt.run)
	}
}

// TestChecksOfHDFS: each result of the check of the KMS that HDFS uses.
func TestChecksOfHDFS(t *testing.T) {
	const path, pointed = "hadoop.security.key.provider.path", "HDFS not yet pointed here"
	for _, tt := range []checkTest{
		{"HDFS at the source", migrate.Probes{OwnAddresses: []string{"new:9600"}, Lookup: lookupNames,
			HDFS: hdfsProperty(path, "kms://https@kms-1;kms-2:16000/kms")}, pointed, migrate.OK, path + " is kms://",
			""},
		{"HDFS at the source by another name", migrate.Probes{OwnAddresses: []string{"new:9600"}, Lookup: lookupNames,
			Source: sourceFacts(hostFacts("kms-1", "192.0.2.7", 0)), HDFS: hdfsProperty(path,
				"kms://https@alias-1:16000/kms")}, pointed, migrate.OK, "", ""},
		{"HDFS at a third server", migrate.Probes{OwnAddresses: []string{"new:9600"}, Lookup: lookupNames,
			Source: sourceFacts(hostFacts("kms-1", "192.0.2.7", 0)), HDFS: hdfsProperty(path,
				"kms://https@kms-2:16000/kms")}, pointed, migrate.Warning,
			"kms-2:16000 is neither", "is the KMS that HDFS uses"},
		{"HDFS at another port of the source", migrate.Probes{OwnAddresses: []string{"new:9600"}, Lookup: lookupNames,
			Source: sourceFacts(hostFacts("kms-1", "192.0.2.7", 0)), HDFS: hdfsProperty(path,
				"kms://https@kms-1:9292/kms")}, pointed, migrate.Warning, "neither", ""},
		{"HDFS here", migrate.Probes{OwnAddresses: []string{"new2:9600"}, Lookup: lookupNames,
			HDFS: hdfsProperty(path,
				"kms://https@new1;NEW2:9600/kms")}, pointed, migrate.Failure, "", "HDFS uses NEW2:9600 already"},
		{"HDFS here, old name", migrate.Probes{OwnAddresses: []string{"new:9600"}, Lookup: lookupNames,
			HDFS: hdfsProperty("dfs.encryption.key.provider.uri",
				"kms://http@new:9600/kms")}, pointed, migrate.Failure, "dfs.encryption", "already"},
		{"HDFS here by an alias", migrate.Probes{OwnAddresses: []string{"new:9600"}, Lookup: lookupNames,
			HDFS: hdfsProperty(path,
				"kms://https@kms-1;service.example.com:9600/kms")}, pointed, migrate.Failure,
			"service.example.com:9600 is this server", "already"},
		{"HDFS here by an address", migrate.Probes{OwnAddresses: []string{"new:9600"}, Lookup: lookupNames,
			HDFS: hdfsProperty(path, "kms://http@192.0.2.1:9600/kms")}, pointed, migrate.Failure, "", "already"},
		{"HDFS here by an address, and the server listens at all addresses",
			migrate.Probes{OwnAddresses: []string{"127.0.0.1:9600"},
				LocalAddrs: localAddr, Lookup: lookupNames, HDFS: hdfsProperty(path,
					"kms://http@service.example.com:9600/kms")}, pointed, migrate.Failure, "", "already"},
		{"HDFS here by Debian's own name", migrate.Probes{OwnAddresses: []string{"localhost:9600"},
			LocalAddrs: localAddr, Lookup: lookupNames, HDFS: hdfsProperty(path, "kms://http@debian:9600/kms")},
			pointed, migrate.Failure, "", "already"},
		{"HDFS at another port of this host", migrate.Probes{OwnAddresses: []string{"new:9600"}, Lookup: lookupNames,
			HDFS: hdfsProperty(path, "kms://http@new:9601/kms")}, pointed, migrate.OK, "", ""},
		{"HDFS at an unknown host name", migrate.Probes{OwnAddresses: []string{"new:9600"}, Lookup: lookupNames,
			HDFS: hdfsProperty(path,
				"kms://http@nowhere:9600/kms")}, pointed, migrate.NotTried,
			"nowhere:9600 cannot be resolved", "name service"},
		{"HDFS, and this server's port is not known", migrate.Probes{Lookup: lookupNames,
			HDFS: hdfsProperty(path,
				"kms://http@new:9600/kms")}, pointed, migrate.NotTried, "not known", "hadoop.kms.http.port"},
		{"HDFS without a key provider", migrate.Probes{HDFS: hdfsProperty("", "")}, pointed, migrate.NotTried,
			"no key provider",
			path},
	} {
		t.Run(tt.name, tt.run)
	}
}

// TestPlanWithoutSource: the plan has the checks even if the keys cannot be read.
func TestPlanWithoutSource(t *testing.T) {
	b := newTestMigration(t)
	b.cfg.Source = &stub{Source: b.source, keysErr: claviger.Errorf("kmsclient.Keys", claviger.Unavailable, "",
		"connection refused")}
	p, err := b.engine(t).Plan(t.Context())
	if !claviger.Is(err, claviger.SourceUnreachable) || p == nil || p.Ready() || len(p.Checks) < 3 {
		t.Errorf("%+v, %v", p, err)
	}
	b.cfg.Source = nil
	e := b.engine(t)
	_, errPlan := e.Plan(t.Context())
	_, errRun := e.Run(t.Context())
	_, errVerify := e.Verify(t.Context())
	for _, err := range []error{errPlan, errRun, errVerify} {
		if !claviger.Is(err, claviger.Invalid) || !strings.Contains(err.Error(),
			"hadoop.kms.key.provider.reencryption.source.uri") {
			t.Errorf("%v", err)
		}
	}
}

// TestBusy: a plan warns of a run that is in progress.
func TestBusy(t *testing.T) {
	b := newTestMigration(t)
	unlock, err := b.store.Lock(t.Context(), migrate.LockName)
	must(t, err)
	defer unlock()
	p, err := b.engine(t).Plan(t.Context())
	must(t, err)
	if last := p.Checks[len(p.Checks)-1]; last.Status != migrate.Warning || last.Name != "no other run" {
		t.Errorf("%+v", p.Checks)
	}
}
