// Package diagnosis has the checks of `claviger doctor --role keyhsm` for a Key HSM. They are those of
// `claviger keyhsm validate`, and one of the rights to files with secrets. They change nothing.
package diagnosis

import (
	"context"
	"slices"

	"claviger/doctor"
	"claviger/keyhsm"
	"claviger/keyhsm/host"
	trusteehost "claviger/trustee/host"
)

// Role is the Key HSM as a role of claviger doctor.
func Role() doctor.Role { return doctor.Role{Name: "keyhsm", Groups: groups} }

// service is the Key HSM that is checked.
type service struct {
	options  *doctor.Options
	settings keyhsm.Settings
	checks   []host.Check // set by D-keyhsm-token
}

// The checks of host.Validate that each check of the doctor shows.
var (
	ofToken        = []string{"settings", "PIN file", "module loads", "token is found", "login", "token works"}
	ofPair         = []string{"key is on the token", "wraps and unwraps", "token is closed"}
	ofCertificates = []string{"certificates", "server certificate", "trusted certificates"}
	ofDeposits     = []string{"deposits"}
)

// groups returns the checks of a Key HSM.
func groups(o *doctor.Options) ([]doctor.Group, func() error, error) {
	s := &service{options: o}
	return []doctor.Group{{Title: "Key HSM", Checks: []doctor.Check{
		{ID: "D-keyhsm-settings", Title: "the settings are read",
			Measures: keyhsm.SettingsFile + " of the folder is read as the server reads it",
			Why:      "a Key HSM with settings that it cannot read does not start",
			Cure:     "correct the line that the message names, or make the file: claviger keyhsm setup",
			Run:      s.read},
		{ID: "D-keyhsm-secrets", Title: "files with secrets", Needs: []string{"D-keyhsm-settings"},
			Measures: "owner and mode of the files with the PIN and the private key, and of the folders above them",
			Why:      "another user of this host who reads or replaces such a file can unwrap deposits",
			Cure:     "correct owner and mode",
			Run:      s.secrets},
		{ID: "D-keyhsm-token", Title: "the token", Needs: []string{"D-keyhsm-settings"},
			Measures: "the library is loaded, the token is found, and there is one login, unless the token says " +
				"that a wrong PIN was tried before",
			Why:  "without its token a Key HSM neither wraps nor unwraps",
			Cure: "correct the setting, or the PIN, that the message names",
			Run:  s.token},
		{ID: "D-keyhsm-pair", Title: "the key pair", Needs: []string{"D-keyhsm-token"},
			Measures: "the RSA pair is looked up on the token, must be sensitive and not extractable, and wraps and " +
				"unwraps",
			Why:  "without the pair that wrapped them, deposits of the trustee are lost",
			Cure: "name the right token, or restore the token from its backup",
			Run:  s.result(ofPair)},
		{ID: "D-keyhsm-certificates", Title: "certificates", Needs: []string{"D-keyhsm-settings"},
			After:    []string{"D-keyhsm-token"},
			Measures: "the server's certificate and the trusted certificates are read, and must be valid now",
			Why:      "a trustee whose certificate is not trusted is refused",
			Cure:     "trust the trustee's certificate: claviger keyhsm trust",
			Run:      s.result(ofCertificates)},
		{ID: "D-keyhsm-deposits", Title: "deposits of the trustee", Needs: []string{"D-keyhsm-pair"},
			Measures: "the deposits in the trustee's folder of --trustee are counted, and one of each pair of keys " +
				"is opened",
			Why: "a pair that works is not always the pair that wraps a trustee's deposits",
			Cure: "name the token that has the pair of these deposits; without the trustee's folder on this host, " +
				"run claviger doctor --role trustee --keyhsm URL on the trustee's host",
			Run: s.result(ofDeposits)},
	}}}, func() error { return nil }, nil
}

func (s *service) read(context.Context) []doctor.Finding {
	set, warnings, err := keyhsm.ReadSettings(s.options.Conf)
	if err != nil {
		return doctor.Error(err, "")
	}
	s.settings = set
	list := doctor.Pass("%s is read", keyhsm.SettingsFile)
	for _, w := range warnings {
		list = append(list, doctor.WithCure(doctor.Warning, w))
	}
	return list
}

func (s *service) secrets(context.Context) []doctor.Finding {
	return s.options.Secrets(s.settings.SecretFiles(s.options.Conf))
}

func (s *service) token(ctx context.Context) []doctor.Finding {
	s.checks = host.Validate(ctx, &s.settings, host.Validation{Careful: true,
		Deposits: trusteehost.Deposits(s.options.Trustee)})
	return s.result(ofToken)(ctx)
}

// result returns the findings of these checks of host.Validate.
func (s *service) result(names []string) func(context.Context) []doctor.Finding {
	return func(context.Context) []doctor.Finding {
		var list []doctor.Finding
		for _, c := range s.checks {
			status := doctor.Failure
			switch {
			case !slices.Contains(names, c.Name):
				continue
			case c.NotTried:
				status = doctor.Skipped
			case c.OK:
				status = doctor.OK
			}
			list = append(list, doctor.Finding{Status: status, Measured: c.Name + ": " + c.Detail})
		}
		if len(list) == 0 {
			return doctor.Skip("it was not reached")
		}
		return list
	}
}
