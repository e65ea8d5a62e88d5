package kms

import (
	"context"
	"crypto/tls"
	"slices"
	"strings"

	"claviger/hadoopconf"
	"claviger/migrate"
	"claviger/provider"
	"claviger/provider/keytrustee"
)

// sourceKMS describes the hosts of a source; nil if the source is not a KMS.
func (s *Service) sourceKMS(src provider.Provider) (*migrate.SourceKMS, error) {
	uri, err := provider.ParseKMS(src.URI())
	if err != nil { // the URI was opened, so it is correct, and the source is not a KMS
		return nil, nil //nolint:nilerr,nilnil // a source need not be a KMS
	}
	conf, err := s.ClientTLS(provider.Env{})
	if err != nil {
		return nil, err
	}
	kms := &migrate.SourceKMS{TLS: conf, Bases: uri.BaseURLs()}
	if c, ok := src.(interface {
		CheckHost(ctx context.Context, base string) error
	}); ok {
		kms.RequestNames = c.CheckHost
	}
	return kms, nil
}

// SourceState is the state of a source other than that of a migration.
type SourceState struct {
	URI   string
	Hosts []migrate.HostFacts // of a source that is a KMS
	Err   error               // of a source that is not a KMS, or why its hosts were not probed
}

// OtherSources probes each open source except that of a migration, ReencryptionSource.
func (s *Service) OtherSources(ctx context.Context) (list []SourceState) {
	first, _ := s.ReencryptionSource()
	for _, src := range s.Sources {
		if src.Provider == first {
			continue
		}
		state := SourceState{URI: src.URI()}
		kms, err := s.sourceKMS(src.Provider)
		switch h, ok := src.Provider.(provider.Health); {
		case err != nil:
			state.Err = err
		case kms != nil:
			if kms.Property = hadoopconf.ProviderURI; src.Reencryption {
				kms.Property = hadoopconf.SourceURI
			}
			state.Hosts = kms.Probe(ctx)
		case ok:
			state.Err = h.Check(ctx)
		}
		list = append(list, state)
	}
	return list
}

// Trustees are the Key Trustee Servers of a kts-site.xml.
type Trustees struct {
	Hosts    []migrate.HostFacts
	Insecure bool // their certificates are not verified
	Used     bool // a provider of this server keeps its keys there
}

// Trustees requests the public key of each Key Trustee Server, which needs no right. The result is nil if this server
// uses no Key Trustee Server.
func (s *Service) Trustees(ctx context.Context) (*Trustees, error) {
	place, named := s.Conf.Get(hadoopconf.TrusteeConf)
	used := usesTrustee(s.Conf)
	if !named && !used {
		return nil, nil //nolint:nilnil // none is used
	}
	hosts, insecure, err := keytrustee.Hosts(place, s.Conf.Dir())
	if err != nil {
		return nil, err
	}
	conf, err := s.ClientTLS(provider.Env{})
	if err != nil {
		return nil, err
	}
	if insecure {
		if conf = conf.Clone(); conf == nil {
			conf = &tls.Config{MinVersion: tls.VersionTLS12}
		}
		conf.InsecureSkipVerify = true //nolint:gosec // as the operator set it for the server itself
	}
	servers := &migrate.SourceKMS{TLS: conf, Property: "kts-site.xml", TrusteePath: "/?a=publickey",
		IsTrustee: isPublicKey}
	for _, host := range hosts {
		servers.Bases = append(servers.Bases, "https://"+host)
	}
	return &Trustees{servers.Probe(ctx), insecure, used}, nil
}

// isPublicKey reports whether a text begins as a public key of OpenPGP (RFC 9580 4.2: packet type 6, in either form of
// the header), or its armor.
func isPublicKey(text string) bool {
	const armor = "-----BEGIN PGP PUBLIC KEY BLOCK-----"
	return strings.HasPrefix(text, armor) || text != "" && (text[0] == 0xc6 || text[0]&0xfc == 0x98)
}

// usesTrustee reports whether a provider, or the source of a migration, keeps its keys at a Key Trustee Server.
func usesTrustee(conf *hadoopconf.Conf) bool {
	for _, property := range []string{hadoopconf.ProviderURI, hadoopconf.SourceURI} {
		uris, _ := provider.SplitURIs(conf.String(property)) // Faults reports the error
		if slices.ContainsFunc(uris, func(uri string) bool { return strings.HasPrefix(uri, "keytrustee:") }) {
			return true
		}
	}
	return false
}

// TrusteeKeys reads the keys of each open keytrustee:// provider, with signed requests to its Key Trustee Server. The
// result has an entry for each such provider: nil if the trustee answers.
func (s *Service) TrusteeKeys(ctx context.Context) map[string]error {
	answers := map[string]error{}
	check := func(p provider.Provider) {
		if h, ok := p.(provider.Health); ok && strings.HasPrefix(p.URI(), "keytrustee:") {
			answers[p.URI()] = h.Check(ctx)
		}
	}
	if s.Primary != nil {
		check(s.Primary)
	}
	for _, src := range s.Sources {
		check(src.Provider)
	}
	return answers
}
