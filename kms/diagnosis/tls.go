package diagnosis

import (
	"context"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"os"
	"slices"
	"strings"
	"time"

	"claviger/doctor"
	"claviger/kms"
	"claviger/web"
)

// transport returns the checks of the server's TLS.
func (s *site) transport() doctor.Group {
	return doctor.Group{Title: "TLS", Checks: []doctor.Check{
		{ID: "D-tls-chain", Title: "the server's certificate", Needs: []string{"D-conf-read"},
			Measures: "the keystore of ssl-server.xml, or the file of claviger.ssl.certificate with its key in the " +
				"HSM, is read as a start does; each certificate of a chain must be signed by the next one, the first " +
				"must be one of a server, and Java must know its kind of key; if the server has only RSA keys, the " +
				"result says what an ECDSA key saves",
			Why: "clients refuse a server whose certificate they cannot verify",
			Cure: "put the certificate, and after it those of the authorities between it and the root, into the " +
				"keystore",
			Run: s.tlsChain},
		{ID: "D-tls-key", Title: "the private key of TLS in the HSM", Needs: []string{"D-tls-chain"},
			Measures: fmt.Sprintf("with claviger.ssl.key, the HSM signs %d times, as it does once for each new "+
				"connection; more than %v for one is a warning", tlsSignatures, slowSignature),
			Why: "while the HSM does not sign, no client can connect; a slow signature makes each new connection slow",
			Cure: "look at the HSM with its own tool; an ECDSA key (P-256) needs a small part of the time of an RSA " +
				"key (docs/tls.md)",
			Run: s.tlsKey},
		{ID: "D-tls-names", Title: "names in the certificate", Needs: []string{"D-tls-chain"},
			Measures: "the configured host, or the names of this host, are compared with the names (SAN) of the " +
				"certificate",
			Why:  "a client that finds another name in the certificate than in its URI ends the connection",
			Cure: "request a certificate with the full name of this host as a DNS name (SAN)",
			Run:  s.tlsNames},
		{ID: "D-tls-expiry", Title: "the end of certificates", Needs: []string{"D-tls-chain"},
			Measures: fmt.Sprintf("the days left of the certificate that ends first, in each keystore and truststore; "+
				"fewer than %d are a warning", days(web.ExpiryNotice)),
			Why:  "clients refuse a server whose certificate has ended, and HDFS then opens no encrypted file",
			Cure: "renew the certificate; a running server reads the new file by itself (docs/tls.md)",
			Run:  s.tlsExpiry},
		{ID: "D-tls-protocols", Title: "protocols and cipher suites", Needs: []string{"D-tls-chain"},
			Measures: "the protocols that the server offers, by hadoop.ssl.enabled.protocols; and a handshake in " +
				"memory with clients that offer what stock Java 8 and stock Java 11 offer",
			Why: "a NameNode or a client whose Java has no protocol or no cipher suite in common with the server " +
				"cannot connect; Java before 8u261 does not speak TLS 1.3",
			Cure: "add TLSv1.2 to hadoop.ssl.enabled.protocols, and remove its cipher suites from " +
				"ssl.server.exclude.cipher.list",
			Run: s.tlsProtocols},
		{ID: "D-tls-java", Title: "the truststore of HDFS", Needs: []string{"D-tls-chain"},
			Measures: "the truststore that ssl-client.xml in the folder of --hdfs-conf names is read, or else the " +
				"cacerts of the Java in JAVA_HOME; the server's certificate is verified by it",
			Why:  "the NameNode and HDFS clients trust only the certificates that lead to their truststore",
			Cure: "import the root of the server's certificate into the truststore, on each host of the cluster",
			Run:  s.tlsJava},
	}}
}

// days returns whole days.
func days(d time.Duration) int { return int(d.Hours() / 24) }

func (s *site) tlsChain(ctx context.Context) []doctor.Finding {
	facts, err := s.service.ServerTLS(ctx)
	if err != nil {
		return doctor.Error(err, "")
	}
	if facts == nil {
		return doctor.Skip("hadoop.kms.ssl.enabled is not true: the server speaks http, and everybody on the network " +
			"may read DEKs")
	}
	s.tls = facts
	s.closers = append(s.closers, func() error { facts.Close(); return nil })
	var list []doctor.Finding
	onlyRSA := true
	for _, chain := range facts.Chains {
		found, ok := judge(chain)
		if !ok {
			return found
		}
		list = append(list, found...)
		onlyRSA = onlyRSA && chain[0].PublicKeyAlgorithm == x509.RSA
	}
	if onlyRSA {
		list = append(list, doctor.Pass("RSA only: with an ECDSA certificate (P-256) beside it, a new connection of a "+
			"client that knows ECDSA costs the server about a third (docs/tls.md)")...)
	}
	return list
}

const (
	tlsSignatures = 5 // that D-tls-key measures
	// slowSignature is a time that a user notices at each new connection.
	slowSignature = 100 * time.Millisecond
)

func (s *site) tlsKey(ctx context.Context) []doctor.Finding {
	keys := s.tls.Keys
	if keys == nil {
		return doctor.Skip("claviger.ssl.key is not set: the private key is in a file")
	}
	var times []time.Duration
	for range tlsSignatures {
		began := time.Now()
		if err := keys.Check(ctx); err != nil {
			return doctor.Error(err, "")
		}
		times = append(times, time.Since(began)/time.Duration(len(s.tls.Chains)))
	}
	slices.Sort(times)
	median := times[len(times)/2]
	if median > slowSignature {
		return doctor.Warn(fmt.Sprintf("a signature takes %.2f ms", 1000*median.Seconds()), "")
	}
	return doctor.Pass("the HSM signs; a signature takes less than %v", slowSignature)
}

// judge returns the findings about one chain; ok is false if clients refuse it.
func judge(chain []*x509.Certificate) (list []doctor.Finding, ok bool) {
	for i, c := range chain[1:] {
		if err := chain[i].CheckSignatureFrom(c); err != nil {
			return doctor.Fail(fmt.Sprintf("certificate %d of the chain, %s, is not signed by certificate %d, %s: %v",
				i+1, chain[i].Subject, i+2, c.Subject, err), ""), false
		}
	}
	leaf := chain[0]
	if !servesTLS(leaf) {
		return doctor.Fail(fmt.Sprintf("the certificate of %s is not for servers: its extended key usage lacks "+
			"serverAuth", leaf.Subject), "request a certificate for a server, with the usage serverAuth"), false
	}
	list = doctor.Pass("%s, of %s; %s; certificates in the chain: %d", leaf.Subject, leaf.Issuer,
		leaf.PublicKeyAlgorithm, len(chain))
	for _, c := range chain {
		if doubt := weak(c); doubt != "" {
			list = append(list, doctor.Finding{Status: doctor.Warning, Measured: c.Subject.String() + ": " + doubt,
				Cure: "request a certificate with an RSA key of 2048 bits or more, or one of P-256"})
		}
	}
	return list, true
}

// servesTLS reports whether the extended key usage admits servers.
func servesTLS(c *x509.Certificate) bool {
	return len(c.ExtKeyUsage)+len(c.UnknownExtKeyUsage) == 0 ||
		slices.ContainsFunc(c.ExtKeyUsage, func(usage x509.ExtKeyUsage) bool {
			return usage == x509.ExtKeyUsageServerAuth || usage == x509.ExtKeyUsageAny
		})
}

// weak returns why some clients refuse the key of a certificate, or "".
func weak(c *x509.Certificate) string {
	switch key, isRSA := c.PublicKey.(*rsa.PublicKey); {
	case isRSA && key.N.BitLen() < 2048:
		return fmt.Sprintf("an RSA key of %d bits, which some versions of Java refuse", key.N.BitLen())
	case c.PublicKeyAlgorithm == x509.Ed25519:
		return "an Ed25519 key, which Java before 15 does not know"
	}
	return ""
}

func (s *site) tlsNames(context.Context) (list []doctor.Finding) {
	for _, chain := range s.tls.Chains {
		list = append(list, s.namesOf(chain[0])...)
	}
	return list
}

// namesOf compares the names of a certificate with those of this host.
func (s *site) namesOf(leaf *x509.Certificate) []doctor.Finding {
	has := slices.Clone(leaf.DNSNames)
	for _, ip := range leaf.IPAddresses {
		has = append(has, ip.String())
	}
	var valid, other []string
	full := false
	for _, name := range s.tls.Names {
		full = full || strings.Contains(name, ".") || net.ParseIP(name) != nil
		if leaf.VerifyHostname(name) == nil {
			valid = append(valid, name)
		} else {
			other = append(other, name)
		}
	}
	switch names := strings.Join(has, ", "); {
	case len(valid) > 0:
		return doctor.Pass("valid for %s", strings.Join(valid, ", "))
	case len(has) == 0:
		return doctor.Fail(fmt.Sprintf("the certificate of %s has no name (SAN): newer clients ignore the common name",
			leaf.Subject), "")
	case !full:
		return doctor.Warn(fmt.Sprintf("the certificate is valid for %s; the full name of this host, %s, is not known",
			names, strings.Join(other, ", ")), "check that clients use a name of the certificate, or let the name "+
			"service give this host its full name")
	default:
		return doctor.Fail(fmt.Sprintf("the certificate is valid for %s, and not for %s", names,
			strings.Join(other, ", ")), "")
	}
}

func (s *site) tlsExpiry(context.Context) []doctor.Finding {
	stored, unreadable, err := s.service.StoredCertificates()
	if err != nil {
		return doctor.Error(err, "")
	}
	var list []doctor.Finding
	for _, err := range unreadable {
		list = append(list, doctor.Error(err, "correct the file, or its password")...)
	}
	for _, v := range stored {
		left := v.NotAfter.Sub(now())
		f := doctor.Finding{Status: doctor.OK, Measured: fmt.Sprintf("%s: %s ends at %s, days left: %d", v.Store,
			v.Subject, v.NotAfter.UTC().Format(time.RFC3339), days(left))}
		switch {
		case left < 0:
			f.Status = doctor.Failure
			f.Measured = fmt.Sprintf("%s: %s ended at %s", v.Store, v.Subject, v.NotAfter.UTC().Format(time.RFC3339))
		case now().Before(v.NotBefore):
			f.Status = doctor.Failure
			f.Measured = fmt.Sprintf("%s: a certificate is not valid before %s", v.Store,
				v.NotBefore.UTC().Format(time.RFC3339))
			f.Cure = "wait, or set the clock of this host (chronyc tracking)"
		case left < web.ExpiryNotice:
			f.Status = doctor.Warning
		}
		if f.Status == doctor.Failure && !strings.Contains(v.Store, "keystore") {
			f.Status = doctor.Warning // another certificate of the truststore may be the valid one
			f.Cure = "remove the certificate from the truststore, or replace it"
		}
		list = append(list, f)
	}
	return list
}

func (s *site) tlsProtocols(ctx context.Context) []doctor.Finding {
	lowest, highest := tls.VersionName(s.tls.Lowest), tls.VersionName(s.tls.Highest)
	if s.tls.Lowest >= tls.VersionTLS13 {
		return doctor.Warn("only "+lowest, "")
	}
	offered := lowest + " to " + highest
	if lowest == highest {
		offered = "only " + lowest
	}
	list := doctor.Pass("%s", offered)
	for _, java := range stockJava {
		state, err := s.connect(ctx, java.offers)
		if err != nil {
			reason, _, _ := strings.Cut(err.Error(), ";") // the numbers of the suites follow
			list = append(list, doctor.Fail(java.name+" could not connect: "+reason, "")...)
			continue
		}
		list = append(list, doctor.Pass("%s would connect with %s, %s", java.name, tls.VersionName(state.Version),
			tls.CipherSuiteName(state.CipherSuite))...)
	}
	return list
}

// stockJava are clients with the defaults of a Java without changes of its java.security: protocols, cipher suites and
// curves (JDK Providers Documentation, "The SunJSSE Provider"), since 8u161.
var stockJava = []struct {
	name   string
	offers *tls.Config
}{
	{"Java 8", &tls.Config{ //nolint:gosec // a client for a test handshake; stock Java 8 offers no TLS 1.3
		MinVersion: tls.VersionTLS12, MaxVersion: tls.VersionTLS12, CipherSuites: javaSuites,
		CurvePreferences: []tls.CurveID{tls.CurveP256, tls.CurveP384, tls.CurveP521}}},
	{"Java 11", &tls.Config{MinVersion: tls.VersionTLS12, MaxVersion: tls.VersionTLS13, CipherSuites: javaSuites,
		CurvePreferences: []tls.CurveID{tls.CurveP256, tls.CurveP384, tls.CurveP521}}},
}

// javaSuites are the cipher suites of Java for TLS 1.2, of those that this program knows.
var javaSuites = []uint16{
	tls.TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384, tls.TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256,
	tls.TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384, tls.TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256,
	tls.TLS_ECDHE_ECDSA_WITH_AES_128_CBC_SHA256, tls.TLS_ECDHE_RSA_WITH_AES_128_CBC_SHA256,
	tls.TLS_ECDHE_ECDSA_WITH_AES_256_CBC_SHA, tls.TLS_ECDHE_ECDSA_WITH_AES_128_CBC_SHA,
	tls.TLS_ECDHE_RSA_WITH_AES_256_CBC_SHA, tls.TLS_ECDHE_RSA_WITH_AES_128_CBC_SHA,
	tls.TLS_RSA_WITH_AES_256_GCM_SHA384, tls.TLS_RSA_WITH_AES_128_GCM_SHA256,
}

// connect makes a handshake between the server's TLS and a client, in memory.
func (s *site) connect(ctx context.Context, offers *tls.Config) (tls.ConnectionState, error) {
	near, far := net.Pipe()
	ended := make(chan error, 1)
	go func() { ended <- tls.Server(far, s.tls.Config).HandshakeContext(ctx) }()
	offers = offers.Clone()
	offers.InsecureSkipVerify = true // the other checks judge the certificate
	client := tls.Client(near, offers)
	err := client.HandshakeContext(ctx)
	state := client.ConnectionState()
	_, _ = near.Close(), far.Close() // to close a pipe in memory cannot fail
	if refused := <-ended; err != nil && refused != nil {
		err = refused // the server knows the reason, and a client gets an alert only
	}
	return state, err
}

func (s *site) tlsJava(context.Context) []doctor.Finding {
	hdfs, skipped := s.hdfsConf()
	if hdfs == nil {
		return skipped
	}
	ofJava := false // the Java of this host may not be that of HDFS
	roots, path, err := kms.HDFSTrust(hdfs, s.service.Log)
	switch {
	case err != nil:
		return doctor.Error(err, "correct ssl-client.xml of HDFS")
	case path == "":
		ofJava = true
		home := os.Getenv("JAVA_HOME")
		if roots, path, err = kms.JavaTrust(home); home == "" || path == "" {
			return doctor.Skip("ssl-client.xml names no truststore, so the cacerts of each Java counts, and " +
				"JAVA_HOME names no Java here: keytool -list -cacerts shows them")
		}
		if err != nil {
			return doctor.Error(fmt.Errorf("the cacerts of JAVA_HOME: %w", err), "")
		}
	}
	var list []doctor.Finding
	for _, chain := range s.tls.Chains {
		list = append(list, trusted(chain, roots, path, ofJava)...)
	}
	return list
}

// trusted verifies a chain by the roots of the truststore path. If ofJava is true, path is that of a Java on this host.
func trusted(chain []*x509.Certificate, roots *x509.CertPool, path string, ofJava bool) []doctor.Finding {
	between := x509.NewCertPool()
	for _, c := range chain[1:] {
		between.AddCert(c)
	}
	_, err := chain[0].Verify(x509.VerifyOptions{Roots: roots, Intermediates: between, CurrentTime: now()})
	var invalid x509.CertificateInvalidError
	switch {
	case errors.As(err, &invalid) && invalid.Reason == x509.Expired:
		return doctor.Fail(fmt.Sprintf("%s: %v", path, err), "renew the certificate")
	case err != nil:
		last := chain[len(chain)-1]
		say := doctor.Fail
		if ofJava {
			say = doctor.Warn
		}
		return say(fmt.Sprintf("%s does not lead to a trusted certificate for %s: %v", path,
			chain[0].Subject, err), fmt.Sprintf("import the certificate of %s into %[2]s, on each host of the "+
			"cluster: keytool -importcert -keystore %[2]s -alias claviger -file ROOT.pem", last.Issuer, path))
	}
	return doctor.Pass("%s trusts the server's certificate of %s (%s)", path, chain[0].Subject,
		chain[0].PublicKeyAlgorithm)
}
