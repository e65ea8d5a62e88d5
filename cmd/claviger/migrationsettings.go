package main

import (
	"claviger"
	"claviger/migrate"
)

// mostGap bounds claviger.migration.gap: numbers go to 2^31-2, and a key has room for
// two thousand such gaps.
const mostGap = 1_000_000

// migrationSettings are the properties of migrations that the server and the commands
// read alike.
type migrationSettings struct {
	versions migrate.Versions
	gap      int
	ours     map[string]bool
}

// migration reads them, also where no source is configured: a value that cannot be used
// must not wait for the day of the migration.
func (r *reader) migration() migrationSettings {
	s := migrationSettings{
		versions: migrate.Versions(r.conf.String(migrate.PropVersions)),
		gap:      int(r.int(migrate.PropGap, 0, mostGap)),
		ours:     map[string]bool{},
	}
	if !s.versions.Valid() {
		r.keep(refuse(r.conf, migrate.PropVersions, "it must be auto, all or current"))
	}
	for _, v := range r.conf.Strings(migrate.PropOurs) {
		if _, ok := claviger.VersionNumber(v); !ok {
			r.keep(refuse(r.conf, migrate.PropOurs, "it must be a comma list of key versions, as in finance@3; "+claviger.Printable(v)+" is none"))
		}
		s.ours[v] = true
	}
	return s
}
