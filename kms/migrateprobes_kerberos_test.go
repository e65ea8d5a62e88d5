package kms

import (
	"strings"
	"testing"

	"claviger/hadoopconf"
	"claviger/keyring"
	"claviger/migrate"
	"claviger/provider"
)

// ticketSource is a source that may require Kerberos.
type ticketSource struct {
	provider.Provider
	kerberos bool
}

func (ticketSource) URI() string           { return "kms://https@old.example.com:16000/kms" }
func (s ticketSource) WantsKerberos() bool { return s.kerberos }

// TestUnsafeSimple: a plan fails if a source requires Kerberos, and this server uses simple
// authentication.
func TestUnsafeSimple(t *testing.T) {
	for _, c := range []struct {
		here     string // the authentication type of this server
		kerberos bool   // whether the source requires Kerberos
		fails    bool
	}{{"simple", true, true}, {"simple", false, false}, {"kerberos", true, false}, {"", true, true}} {
		conf := hadoopconf.New(t.TempDir(), nil)
		conf.SetDefault(authType, "simple")
		if c.here != "" {
			conf.Override(authType, c.here, "--flag")
		}
		s := &Service{Conf: conf, Sources: []keyring.Source{{Provider: ticketSource{kerberos: c.kerberos}}}}
		checks := s.unsafeSimple()
		if got := len(checks) > 0; got != c.fails {
			t.Errorf("%+v: %+v", c, checks)
		}
		for _, check := range checks {
			if check.Status != migrate.Failure || !check.Needed || !strings.Contains(check.Measured,
				"old.example.com") || !strings.Contains(check.Cure, "proxyuser") {
				t.Errorf("%+v", check)
			}
		}
	}
}
