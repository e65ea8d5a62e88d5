package kms

import (
	"context"
	"crypto/tls"
	"errors"
	"log/slog"
	"strings"
	"time"

	"claviger/console"
	"claviger/hadoopconf"
	"claviger/keystore"
	"claviger/pkcs11"
	"claviger/tlskey"
	"claviger/web"
)

// The properties of a private key of TLS in an HSM.
const (
	tlsKeyProperty         = "claviger.ssl.key"
	tlsCertificateProperty = "claviger.ssl.certificate"
	tlsTimeoutProperty     = "claviger.ssl.key.timeout"
	tlsAtOnceProperty      = "claviger.ssl.key.max.handshakes"
)

// keyUse says what a caller of serverTLS does with private keys in an HSM.
type keyUse int

const (
	signWithKeys keyUse = iota // of a server
	tryKeys                    // of a check, which is careful with the PIN
	leaveKeys                  // the token is not opened
)

// servedTLS is the TLS of a server.
type servedTLS struct {
	*web.TLS
	keys *tlskey.Keys // nil if the private key is in a file
}

// Close stops following the files, and closes the tokens.
func (t *servedTLS) Close() {
	t.TLS.Close()
	if t.keys != nil {
		_ = t.keys.Close() // the handshakes are over
	}
}

// connectTLS lets readiness, metrics and tickets use the TLS of the server; nil is plain http.
func (s *server) connectTLS(t *servedTLS) {
	if t == nil {
		return
	}
	s.svc.certificateCheck.served, s.svc.certificateCheck.keys = t.Certificates, t.keys
	t.ShareTickets(s.auth.secrets.Secrets)
}

// tlsKeyConfig reads the properties of a private key in an HSM. ok is false if the private key is in a keystore.
func tlsKeyConfig(site *hadoopconf.Conf) (cfg tlskey.Config, ok bool, err error) {
	value, set := site.Get(tlsKeyProperty)
	if !set || strings.TrimSpace(value) == "" {
		return cfg, false, nil
	}
	cfg.URIs = strings.Fields(value) // a URI has no blanks
	for _, uri := range cfg.URIs {
		if _, _, _, err := pkcs11.ParseKeyURI(uri); err != nil {
			return cfg, true, site.RefuseFor(tlsKeyProperty, err, "%v", err)
		}
	}
	if cfg.Certificates, ok = site.Path(tlsCertificateProperty); !ok {
		return cfg, true, site.Refuse(tlsCertificateProperty, "with "+tlsKeyProperty+" it must name a PEM file with "+
			"the certificate of the key, and with those of its authorities")
	}
	if cfg.Timeout, err = site.Duration(tlsTimeoutProperty, time.Second); err != nil {
		return cfg, true, err
	}
	if cfg.Timeout < minTLSTimeout || cfg.Timeout > maxTLSTimeout {
		return cfg, true, site.Refuse(tlsTimeoutProperty, "it must be a time from 100ms to 1m")
	}
	n, err := site.Int(tlsAtOnceProperty, 1, 256)
	cfg.AtOnce = int(n)
	return cfg, true, err
}

// The bounds of the time that a handshake waits for its signature.
const (
	minTLSTimeout = 100 * time.Millisecond
	maxTLSTimeout = time.Minute
)

// fromHSM makes the TLS settings of a server whose private keys are in an HSM.
func fromHSM(site *hadoopconf.Conf, cfg tlskey.Config, use keyUse, log *slog.Logger) (*servedTLS, error) {
	cfg.Log, cfg.Careful = log, use == tryKeys
	if use == leaveKeys {
		t, err := web.FollowCertificate([]string{cfg.Certificates}, func() ([]tls.Certificate, error) {
			return withoutKeys(cfg.Certificates)
		}, log)
		if err != nil {
			return nil, site.BadFile(tlsCertificateProperty, err, "")
		}
		return &servedTLS{TLS: t}, nil
	}
	keys, err := tlskey.Open(context.Background(), cfg)
	if err != nil {
		return nil, site.RefuseFor(tlsKeyProperty, err, "%v", err)
	}
	load := func() ([]tls.Certificate, error) {
		list, doubts, err := keys.Certificates()
		for _, d := range doubts {
			log.Warn("a certificate of the server is not used", "file", cfg.Certificates, "reason", d)
		}
		logTimes(cfg.Certificates, list, log)
		return list, err
	}
	t, err := web.FollowCertificate(keys.Files(), load, log)
	if err != nil {
		return nil, errors.Join(site.BadFile(tlsCertificateProperty, err, ""), keys.Close())
	}
	return &servedTLS{t, keys}, nil
}

// withoutKeys reads the certificates without their private keys, for a caller that makes no handshake.
func withoutKeys(path string) (list []tls.Certificate, err error) {
	chains, err := keystore.Chains(path)
	for _, chain := range chains {
		list = append(list, tls.Certificate{Certificate: [][]byte{chain[0].Raw}, Leaf: chain[0]})
	}
	return list, err
}

// logTimes logs which certificates clients refuse now because of their validity.
func logTimes(file string, list []tls.Certificate, log *slog.Logger) {
	for _, c := range list {
		if err := checkTime(c); err != nil {
			log.Error("clients refuse the server's certificate", "file", file, "reason", err)
		}
	}
}

// tlsKeyHolds is how long readiness reuses a successful test signature.
const tlsKeyHolds = 10 * time.Second

// tlsKeyChecks returns the check that the private keys of TLS in an HSM can sign; none if there are no such keys.
func (s *server) tlsKeyChecks() []console.Check {
	keys := s.svc.certificateCheck.keys
	if keys == nil {
		return nil
	}
	return []console.Check{{Name: "TLS key in the HSM", Run: keys.Check, Holds: tlsKeyHolds,
		Last: func() (console.Observation, bool) {
			last, ok := keys.Last()
			return console.Observation(last), ok
		}}}
}

// tlsKeyMetrics adds the metrics of signatures by an HSM.
func (s *server) tlsKeyMetrics(m *console.Metrics) {
	keys := s.svc.certificateCheck.keys
	if keys == nil {
		return
	}
	observe := m.Timed("claviger_tls_signature_seconds", "Signatures of TLS handshakes by the HSM, with the time that "+
		"they waited for others, by result; op is sign.")
	keys.OnSign(func(signature tlskey.Signature) {
		result := "ok"
		if signature.Err != nil {
			result = "error"
		}
		observe("sign", result, signature.Took)
	})
	m.Gauge("claviger_tls_signatures", "Signatures of TLS handshakes that the HSM is making.",
		func() float64 { used, _ := keys.Sessions(); return float64(used) })
	m.Gauge("claviger_tls_signatures_max", "Signatures of TLS handshakes that may be made at the same time "+
		"(claviger.ssl.key.max.handshakes).", func() float64 { _, limit := keys.Sessions(); return float64(limit) })
}
