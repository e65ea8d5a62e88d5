package diagnosis

import (
	"context"
	"maps"
	"slices"

	"claviger"
	"claviger/doctor"
	"claviger/migrate"
	"claviger/secret"
)

// trustees returns the checks of the Key Trustee Servers that keep keys of this server, or of its source.
func (s *site) trustees() doctor.Group {
	return doctor.Group{Title: "Key Trustee Servers", Checks: []doctor.Check{
		{ID: "D-kts-reach", Title: "the Key Trustee Servers", Needs: []string{"D-conf-read"},
			Measures: "each Key Trustee Server of kts-site.xml is asked for its public key, over TLS, with the " +
				"truststore of this server",
			Why: "the deposits of the keys are there: without a Key Trustee Server no key that is not in memory can " +
				"be used, and without the active one none can be made",
			Cure: "check that the Key Trustee Server runs, and that this host reaches its port",
			Run:  s.ktsReach},
		{ID: "D-kts-clock", Title: "clocks of the Key Trustee Servers", Needs: []string{"D-kts-reach"},
			Measures: "the date in the answer of each Key Trustee Server is compared with this host's clock",
			Why:      "requests and answers are signed with their times, and old ones are refused",
			Cure:     "set both clocks by NTP",
			Run: func(context.Context) []doctor.Finding {
				return findingOf(migrate.CheckClocks(s.kts.Hosts, now))
			}},
		{ID: "D-kts-keys", Title: "keys at the Key Trustee Servers", Needs: []string{"D-kts-reach"},
			After: []string{"D-provider-open", "D-seed-source"},
			Measures: "the deposits of each keytrustee:// provider are listed, by a request that its folder's " +
				"identity signs, and whose answer the Key Trustee Server must sign",
			Why: "a trustee that does not know this identity, or that has another identity than before, gives out " +
				"no key",
			Cure: "compare the folder (.keytrustee) with that of the other hosts; on the trustee's host, run " +
				"claviger doctor --role trustee",
			Run: s.ktsKeys},
	}}
}

func (s *site) ktsReach(ctx context.Context) []doctor.Finding {
	found, err := s.service.Trustees(ctx)
	if err != nil {
		return doctor.Error(err, "copy kts-site.xml from a host of the Key Trustee KMS, and correct the truststore")
	}
	if found == nil {
		return doctor.Skip("no provider keeps its keys at a Key Trustee Server")
	}
	s.kts = found
	list := hostFindings(found.Hosts)
	for i := range list {
		if !found.Used && list[i].Status == doctor.Failure { // kts-site.xml names the server, but no provider uses it
			list[i].Status = doctor.Warning
		}
	}
	if found.Insecure {
		list = append(list, doctor.Warn("cloudera.trustee.keyprovider.insecure is true in kts-site.xml: no "+
			"certificate is verified", "put the certificates into the truststore, and remove the property")...)
	}
	return list
}

func (s *site) ktsKeys(ctx context.Context) (list []doctor.Finding) {
	answers := s.service.TrusteeKeys(ctx)
	for _, uri := range slices.Sorted(maps.Keys(answers)) {
		if err := answers[uri]; err != nil {
			list = append(list, doctor.Fail(secret.Value(uri)+": "+claviger.Reason(err), "")...)
			continue
		}
		list = append(list, doctor.Pass("the Key Trustee Server answers the identity of %s", secret.Value(uri))...)
	}
	if len(list) == 0 {
		return doctor.Skip("no provider that keeps its keys there is open")
	}
	return list
}
