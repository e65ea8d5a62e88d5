package faults

import (
	"fmt"
	"os"
	"strings"
	"testing"

	"claviger/test/hadoop"
)

// ktKMS makes the site a KT KMS with an organization's secret. trustee is HOST:PORT.
func (s *site) ktKMS(trustee, secret string) []string {
	s.t.Helper()
	s.set("hadoop.kms.key.provider.uri", "keytrustee://file@"+s.path("kms-keytrustee"))
	const prefix = "cloudera.trustee.keyprovider."
	hadoop.Conf{prefix + "hostname-ACTIVE": trustee, prefix + "org": "prod", prefix + "auth": secret,
		prefix + "keylength": "2048"}.Write(s.t, s.path("conf/kts-site.xml"))
	return s.start()
}

// served runs a trustee with the organization prod, and returns its HOST:PORT. If secret is "", clients of the
// organization wait for an operator.
func (s *site) served(secret string) string {
	s.t.Helper()
	s.trustee()
	for _, args := range [][]string{{"add", "-n", "prod"}, {"set-auth", "-n", "prod", "-s", secret}} {
		if out, status := s.run(append([]string{"orgtool", args[0], "--confdir", s.path("trustee")},
			args[1:]...)...); status != 0 {
			s.t.Fatalf("%d: %s", status, out)
		}
	}
	s.remove("conf/kms-site.xml") // the next command writes it again
	return strings.TrimPrefix(
		s.background("ready-trustee", s.startTrustee("--ready-file", s.path("ready-trustee"))...), "https://")
}

func (s *site) trusts() {
	s.set("claviger.ssl.truststore", s.path("trustee/.ssl/ssl-cert-keytrustee.pem"))
}

// database makes the folder of the trustee name a database.
func (s *site) database(uri string) {
	s.t.Helper()
	s.trustee()
	text := s.read("trustee/keytrustee.conf")
	with := strings.Replace(text, "{", fmt.Sprintf("{\n  \"DB_CONNECT\": %q,", uri), 1)
	s.write("trustee/keytrustee.conf", with)
}

// clients are the faults of a KT KMS, and those of a trustee with a database.
var clients = map[string]trusteeFault{
	"kts-site-missing": {1, func(s *site) []string {
		args := s.ktKMS("kt1.example.com", "walrus")
		s.remove("conf/kts-site.xml")
		return args
	}},
	"kts-site-open": {1, func(s *site) []string {
		args := s.ktKMS("kt1.example.com", "walrus")
		if err := os.Chmod(s.path("conf/kts-site.xml"), 0o644); err != nil {
			s.t.Fatal(err)
		}
		return args
	}},
	"kts-trustee-away": {1, func(s *site) []string { return s.ktKMS("127.0.0.1:1", "walrus") }},
	"kts-untrusted":    {1, func(s *site) []string { return s.ktKMS(s.served("walrus"), "walrus") }},
	"kts-wrong-secret": {1, func(s *site) []string {
		args := s.ktKMS(s.served("walrus"), "sealion")
		s.trusts()
		return args
	}},
	"kts-waits": {1, func(s *site) []string {
		args := s.ktKMS(s.served(""), "walrus")
		s.trusts()
		return args
	}},
	"trustee-database-away": {1, func(s *site) []string {
		s.database("postgresql://keytrustee@127.0.0.1:1/keytrustee")
		return s.startTrustee()
	}},
	"trustee-database-password": {1, func(s *site) []string {
		s.database("postgresql://keytrustee:walrus@db1.example.com/keytrustee")
		return s.startTrustee()
	}},
	"trustee-database-too-late": {1, func(s *site) []string {
		s.trustee()
		return []string{"trustee", "init", "--confdir", s.path("trustee"), "--store",
			"postgresql://keytrustee@db1.example.com/keytrustee"}
	}},
}

// TestTrusteeClients provokes the faults in clients.
func TestTrusteeClients(t *testing.T) {
	makeTrusteeTemplate(t)
	for name, fault := range clients {
		t.Run(name, func(t *testing.T) { checkFault(t, name, fault) })
	}
}
