package diagnosis

import (
	"context"

	"claviger/doctor"
	"claviger/migrate"
)

// procedure returns the checks of the requirements of Cloudera's procedure "Migrating from a Key Trustee KMS to an HSM
// KMS".
func (s *site) procedure() doctor.Group {
	needs := []string{"D-seed-source"}
	return doctor.Group{Title: "requirements of Cloudera's procedure", Checks: []doctor.Check{
		{ID: "D-seed-source", Title: "a migration is configured", Needs: []string{"D-conf-read"},
			After:    []string{"D-hsm-mechanism", "D-provider-open"},
			Measures: "the sources of the configuration are opened",
			Why:      "the other requirements are about the source of a migration",
			Cure:     "correct the URI of the source (hadoop.kms.key.provider.reencryption.source.uri)",
			Run:      s.seedSource},
		{ID: "D-seed-isolation", Title: "keys originate in the HSM",
			Needs:    []string{"D-seed-source", "D-hsm-attributes"},
			Measures: "the attributes of each key on the token, as D-hsm-attributes does",
			Why: "the page: \"The key isolation standards of the HSM KMS require that keys originate on and never " +
				"leave the HSM.\"",
			Cure: "roll the EZ keys of these versions, and find out who changed the keys",
			Run: func(context.Context) []doctor.Finding {
				return doctor.Pass("the HSM made each key, and none can leave it; a migration copies metadata only")
			}},
		{ID: "D-seed-hosts", Title: "separate hosts", Needs: needs,
			Measures: "the addresses of the source are compared with those of this host",
			Why:      "the page: \"The KT KMS and HSM KMS must be on separate hosts.\"",
			Cure:     "run the two on different hosts, so that they share no ports, no memory and no failures",
			Run:      s.requirement(func() *migrate.Check { return s.requirements.OtherHost })},
		{ID: "D-seed-keyhsm", Title: "Key HSM behind the trustee", Needs: needs,
			Measures: "whether this can be known from here: a Key Trustee Server does not tell its clients",
			Why: "the page: \"Key Trustee Server must be configured with Key HSM using either the SafeNet Luna or " +
				"Thales HSM.\"",
			Cure: "on the trustee's host, run claviger doctor --role trustee, or the status command of " +
				"keytrustee-keyhsm",
			Run: s.requirement(func() *migrate.Check { return s.requirements.KeyHSM })},
		{ID: "D-seed-active", Title: "the source is active", Needs: needs,
			Measures: "each host of the source is asked for a page that needs no right, then for the names of its keys",
			Why: "the page: \"The KT KMS must remain active until all encrypted data encryption keys (EDEKs) are " +
				"re-encrypted using an EZ key version from the destination KMS.\"",
			Cure: "start the source, and check that this host reaches it",
			Run:  s.requirement(func() *migrate.Check { return s.requirements.Alive })},
		{ID: "D-seed-default", Title: "not yet the default KMS of HDFS", Needs: needs,
			Measures: "the KMS that the files of --hdfs-conf name is compared with the source and with this server",
			Why: "the page: \"It is recommended that the HSM KMS is installed, but not running as the default KMS " +
				"for HDFS during the actual migration.\"",
			Cure: "migrate before HDFS is restarted with this KMS",
			Run:  s.requirement(func() *migrate.Check { return s.requirements.HDFS })},
		{ID: "D-seed-latency", Title: "latency of at most 30 ms", Needs: needs,
			Measures: "round trips to the HSM, as D-hsm-latency does",
			Why: "the page: \"The latency between the physical HSM and HSM KMS must be low. It is recommended that " +
				"the measurable latency be no higher than 30 milliseconds.\"",
			Cure: "bring the server nearer to the HSM",
			Run:  s.requirement(func() *migrate.Check { return s.requirements.Latency })},
	}}
}

// seedSource opens the sources, and makes the checks that the others show.
func (s *site) seedSource(ctx context.Context) []doctor.Finding {
	if s.storeClosed() {
		return doctor.Skip("the metastore, which has the journal of migrations, cannot be read")
	}
	if s.service.Primary == nil {
		return doctor.Skip("the first provider cannot be used")
	}
	if err := s.service.OpenSources(ctx); err != nil {
		return doctor.Error(err, "")
	}
	source, ok := s.service.ReencryptionSource()
	if !ok {
		return doctor.Skip("no source is configured")
	}
	cfg := migrate.Config{Probes: migrate.Probes{AsUser: s.options.AsUser}}
	if s.options.HDFS != "" {
		hdfs, failure := s.hdfsConf()
		if hdfs == nil {
			return failure
		}
		cfg.Probes.HDFS = hdfs.Get
	}
	engine, err := s.service.Engine(ctx, cfg)
	if err != nil {
		return doctor.Error(err, "")
	}
	if s.requirements, err = engine.Requirements(ctx); err != nil {
		return doctor.Error(err, "")
	}
	s.engine = engine
	return doctor.Pass("keys are migrated from %s", source.URI())
}

// requirement returns the check of one requirement.
func (s *site) requirement(of func() *migrate.Check) func(context.Context) []doctor.Finding {
	return func(context.Context) []doctor.Finding {
		c := of()
		if c == nil {
			return doctor.Skip("it does not apply to this source")
		}
		return findingOf(*c)
	}
}
