package kms

import (
	"strings"
	"testing"

	"claviger/hadoopconf"
	"claviger/keyring"
	"claviger/migrate"
	"claviger/provider"
)

// asksForTickets is a source that wants Kerberos, or does not.
type asksForTickets struct {
	provider.Provider
	kerberos bool
}

func (asksForTickets) URI() string           { return "kms://https@old.example.com:16000/kms" }
func (s asksForTickets) WantsKerberos() bool { return s.kerberos }

// TestSimpleBeforeKerberos: a plan fails where this server would open for any name what
// its source opens for tickets alone.
func TestSimpleBeforeKerberos(t *testing.T) {
	for _, c := range []struct {
		here     string
		kerberos bool
		fails    bool
	}{{"simple", true, true}, {"simple", false, false}, {"kerberos", true, false}, {"", true, true}} {
		conf := hadoopconf.New(t.TempDir(), nil)
		conf.SetDefault(authType, "simple")
		if c.here != "" {
			conf.Override(authType, c.here, "--flag")
		}
		s := &Service{Conf: conf, Sources: []keyring.Source{{Provider: asksForTickets{kerberos: c.kerberos}}}}
		checks := s.simpleBeforeKerberos()
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
