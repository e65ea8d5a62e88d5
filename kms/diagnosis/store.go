package diagnosis

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"syscall"
	"time"

	"claviger"
	"claviger/doctor"
	"claviger/hadoopconf"
	"claviger/kms"
	"claviger/metastore/location"
	"claviger/metastore/sqlite"
	"claviger/migrate"
	"claviger/recovery"
	"claviger/secret"
)

// metastore returns the checks of the metastore.
func (s *site) metastore() doctor.Group {
	return doctor.Group{Title: "metastore", Checks: []doctor.Check{
		{ID: "D-store-place", Title: "the place of the metastore", Needs: []string{"D-conf-read"},
			Measures: "the place is read from the configuration, and whether there is a metastore",
			Why: "the metastore has the names, versions and attributes of the keys in the HSM: without it, no " +
				"key is known",
			Cure: "name the metastore by claviger.metastore.uri",
			Run:  s.storePlace},
		{ID: "D-store-integrity", Title: "the metastore is whole", Needs: []string{"D-store-place"},
			Measures: "every page, index and reference of an SQLite file is read, as `claviger metastore verify` " +
				"does; PostgreSQL is asked for the keys, and for the parts of the schema",
			Why:  "records in a damaged page are lost, and with them keys",
			Cure: "restore the newest backup: claviger metastore restore (docs/backup.md)",
			Run:  s.storeIntegrity},
		{ID: "D-store-schema", Title: "the schema of the metastore", Needs: []string{"D-store-integrity"},
			Measures: "the version of the schema is compared with that of this program",
			Why: "a start of this program upgrades an older schema, and an older program cannot read the result; a " +
				"newer schema cannot be read at all",
			Cure: "make a backup before the start that upgrades: claviger metastore backup",
			Run:  s.storeSchema},
		{ID: "D-store-size", Title: "room for the metastore", Needs: []string{"D-store-place"},
			Measures: "the size of an SQLite file and its log, and the free room of its file system",
			Why:      "no key can be made or rolled when the file system is full",
			Cure:     "make room, or move the metastore: claviger metastore copy",
			Run:      s.storeSize},
		{ID: "D-store-latency", Title: "round trips to the metastore", Needs: []string{"D-store-schema"},
			Measures: fmt.Sprintf("%d reads are timed; a 99th percentile above %v is a warning", storeReads,
				storeLatency),
			Why:  "a request for a key that is not in memory waits for the metastore",
			Cure: "bring the server nearer to the database, or find out what slows it down",
			Run:  s.inStore(s.storeLatency)},
		{ID: "D-store-clock", Title: "the clock of the metastore", Needs: []string{"D-store-schema"},
			Measures: "this host's clock is compared with that of PostgreSQL, or with the newest time in an SQLite " +
				"file",
			Why:  "times decide when a deleted key may be destroyed, and when tokens and cookies end",
			Cure: "set the clock that is wrong (chronyc tracking)",
			Run:  s.inStore(s.storeClock)},
		{ID: "D-store-nodes", Title: "servers on the metastore", Needs: []string{"D-store-schema"},
			Measures: "the running servers, their versions, and the settings that differ from the files of this host",
			Why: "nodes with different settings give different answers; a server that was not restarted does not " +
				"use the files as they are now",
			Cure: "give all nodes the same settings and the same version, and restart those that run with older files",
			Run:  s.inStore(s.storeNodes)},
		{ID: "D-store-backup", Title: "the age of the backup", Needs: []string{"D-store-place"},
			After: []string{"D-store-integrity"},
			Measures: "the file of --backup is read as `claviger metastore verify FILE` does; more than a week is a " +
				"warning",
			Why:  "keys that were made after the newest backup are unknown after a restore",
			Cure: "make a backup each day: claviger metastore backup (docs/backup.md)",
			Run:  s.storeBackup},
	}}
}

const (
	storeReads = 20
	backupAge  = 7 * 24 * time.Hour
)

// Limits, which tests change.
var (
	storeLatency = 100 * time.Millisecond
	// storeRoom is the free room of a file system below which there is a warning, in bytes.
	storeRoom int64 = 256 << 20
	now             = time.Now
)

// storeClosed reports whether there is a metastore that cannot be read.
func (s *site) storeClosed() bool { return !s.storeOpen && !s.noStore }

// inStore returns a check that is skipped if the metastore is not open.
func (s *site) inStore(run func(context.Context) []doctor.Finding) func(context.Context) []doctor.Finding {
	return func(ctx context.Context) []doctor.Finding {
		if !s.storeOpen {
			return doctor.Skip("%s", s.storeFault)
		}
		return run(ctx)
	}
}

// usesStore reports whether a server with the configuration opens a metastore.
func (s *site) usesStore() bool {
	_, named := s.conf.Get(hadoopconf.MetastoreURI)
	_, source := s.conf.Get(hadoopconf.SourceURI)
	return named || source || s.isHSM() || strings.Contains(s.conf.String(hadoopconf.ProviderURI), ",")
}

func (s *site) storePlace(context.Context) []doctor.Finding {
	if !s.usesStore() {
		return doctor.Skip("no metastore is used: the first provider is not an HSM, and there is no source")
	}
	place, err := location.Of(s.conf)
	if err != nil {
		return doctor.Error(err, "")
	}
	s.place = place
	if place.Missing() {
		s.noStore = true
		return doctor.Skip("there is no metastore at %s yet; the first start of the server makes it", place.File)
	}
	return doctor.Pass("%s (%s)", secret.Value(place.URI), place.Where())
}

func (s *site) storeIntegrity(ctx context.Context) []doctor.Finding {
	log, warnings := collect()
	r, err := recovery.Verify(ctx, s.conf, "", false, log)
	if errors.Is(err, location.ErrNone) {
		s.noStore = true
		return doctor.Skip("there is no metastore in the database yet; the first start of the server makes it")
	}
	if r != nil {
		s.facts = r.Facts
	}
	older := s.facts.Schema > 0 && s.facts.Schema < sqlite.SchemaVersion && s.place.File != ""
	if err != nil && !older {
		return doctor.Error(fmt.Errorf("%s", claviger.Reason(err)), "")
	}
	list := doctor.Pass("keys: %d, versions: %d, deleted keys: %d, interrupted steps: %d", s.facts.Keys,
		s.facts.Versions, s.facts.Deleted, s.facts.Pending)
	for _, text := range *warnings {
		list = append(list, doctor.WithCure(doctor.Warning, text))
	}
	return list
}

func (s *site) storeSchema(ctx context.Context) []doctor.Finding {
	if f := s.facts; s.place.File != "" && f.Schema < sqlite.SchemaVersion {
		s.storeFault = "the schema is older than this program"
		return doctor.Warn(fmt.Sprintf("version %d; this program makes version %d of it when it starts, so the other "+
			"checks of the metastore come after a start", f.Schema, sqlite.SchemaVersion), "")
	}
	if err := s.service.OpenStore(ctx); err != nil {
		s.storeFault = claviger.Reason(err)
		return doctor.Error(err, "")
	}
	s.storeOpen = true
	if s.place.File == "" {
		return doctor.Pass("that of this program")
	}
	return doctor.Pass("version %d, that of this program", s.facts.Schema)
}

func (s *site) storeSize(context.Context) []doctor.Finding {
	if s.place.File == "" {
		return doctor.Skip("PostgreSQL keeps it: its own monitoring shows the room")
	}
	var size int64
	for _, path := range []string{s.place.File, s.place.File + "-wal"} {
		if info, err := os.Stat(path); err == nil {
			size += info.Size()
		}
	}
	var fs syscall.Statfs_t
	if err := syscall.Statfs(s.place.File, &fs); err != nil {
		return doctor.Error(&os.PathError{Op: "statfs", Path: s.place.File, Err: err}, "")
	}
	// No file system has 2^63 bytes. The type of Bsize depends on the architecture.
	free := int64(fs.Bavail) * int64(fs.Bsize) //nolint:gosec,unconvert // see above
	text := fmt.Sprintf("%s; %s are free", megabytes(size), megabytes(free))
	if free < storeRoom {
		return doctor.Warn(text, "")
	}
	return doctor.Pass("%s", text)
}

func megabytes(n int64) string { return fmt.Sprintf("%.1f MB", float64(n)/(1<<20)) }

func (s *site) storeLatency(ctx context.Context) []doctor.Finding {
	var times []time.Duration
	for range storeReads {
		began := time.Now()
		if err := s.service.Store.Check(ctx); err != nil {
			return doctor.Error(err, "")
		}
		times = append(times, time.Since(began))
	}
	text, p99 := migrate.Percentiles(times)
	if p99 > storeLatency {
		return doctor.Warn(text, "")
	}
	return doctor.Pass("%s", text)
}

func (s *site) storeClock(ctx context.Context) []doctor.Finding {
	clocks, err := s.service.Store.Clocks(ctx)
	if err != nil {
		return doctor.Error(err, "")
	}
	if err := clocks.Check(); err != nil {
		return doctor.Error(err, "")
	}
	return doctor.Pass("this host's clock agrees with %s", clocks.ClockOwner)
}

func (s *site) storeNodes(ctx context.Context) []doctor.Finding {
	nodes, err := s.service.Nodes(ctx)
	if err != nil {
		return doctor.Error(err, "")
	}
	if len(nodes) == 0 {
		return doctor.Pass("no server runs")
	}
	return nodeFindings(nodes)
}

// nodeFindings has a finding for each node.
func nodeFindings(nodes []kms.Node) (list []doctor.Finding) {
	for _, n := range nodes {
		version := n.Version
		if version == "" || version == "unknown" {
			version = "of an unknown version"
		}
		f := doctor.Finding{Status: doctor.OK, Measured: n.Name + ", claviger " + version}
		switch {
		case len(n.Differs) > 0:
			f.Status = doctor.Warning
			f.Measured += ", runs with other values of " + strings.Join(n.Differs, ", ") + " than the files here"
		case n.Version != nodes[0].Version:
			f.Status = doctor.Warning
			f.Measured += ", and " + nodes[0].Name + " has another version"
		}
		list = append(list, f)
	}
	return list
}

func (s *site) storeBackup(ctx context.Context) []doctor.Finding {
	switch {
	case s.place.File == "":
		return doctor.Skip("PostgreSQL's own tools back it up")
	case s.options.Backup == "":
		return doctor.Skip("--backup names no file: name the newest backup, to check it and its age")
	}
	f, err := sqlite.Inspect(ctx, s.options.Backup)
	if err == nil && f.Made.IsZero() {
		err = fmt.Errorf("%s is a metastore, and not a backup: claviger metastore backup did not make it",
			s.options.Backup)
	}
	if err == nil && s.facts.TokenSerial != "" && f.TokenSerial != s.facts.TokenSerial {
		err = fmt.Errorf("%s belongs to the token with the serial number %q, and the metastore to that with %q",
			s.options.Backup, f.TokenSerial, s.facts.TokenSerial)
	}
	if err != nil {
		return doctor.Error(err, "")
	}
	age := now().Sub(f.Made)
	text := fmt.Sprintf("%s was made at %s (days ago: %d), with keys: %d, versions: %d; the metastore has %d and %d",
		s.options.Backup, f.Made.Format(time.RFC3339), int(age.Hours()/24), f.Keys, f.Versions, s.facts.Keys,
		s.facts.Versions)
	if age > backupAge {
		return doctor.Warn(text, "")
	}
	return doctor.Pass("%s", text)
}
