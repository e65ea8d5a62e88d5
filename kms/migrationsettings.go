package kms

import (
	"claviger"
	"claviger/migrate"
)

// maxGap is the largest claviger.migration.gap. Version numbers go up to 2^31-2, so a
// key has room for two thousand such gaps.
const maxGap = 1_000_000

// migrationSettings are the properties of migrations. The server and the commands
// read the same properties.
type migrationSettings struct {
	versions migrate.Versions
	gap      int
	// Version names that exist both here and at the source. By the operator's decision, all EDEKs of a name in ours
	// belong to the version here, and all EDEKs of a name in theirs belong to the version at the source.
	ours, theirs map[string]bool
}

// migration reads the properties even if no source is configured, so that a wrong value
// is found before the day of the migration.
func (r *reader) migration() migrationSettings {
	s := migrationSettings{
		versions: migrate.Versions(r.conf.String(migrate.PropVersions)),
		gap:      int(r.int(migrate.PropGap, 0, maxGap)),
		ours:     r.versionNames(migrate.PropOurs),
		theirs:   r.versionNames(migrate.PropTheirs),
	}
	if !s.versions.Valid() {
		r.keep(r.conf.Refuse(migrate.PropVersions, "it must be auto, all or current"))
	}
	for v := range s.theirs {
		if s.ours[v] {
			r.keep(r.conf.Refuse(migrate.PropTheirs, migrate.PropOurs+" names "+claviger.Printable(v)+
				" too, and an EDEK can belong to only one of the two"))
		}
	}
	return s
}

// versionNames reads a list of full version names.
func (r *reader) versionNames(property string) map[string]bool {
	names := map[string]bool{}
	for _, v := range r.conf.Strings(property) {
		if _, ok := claviger.VersionNumber(v); !ok {
			r.keep(r.conf.Refuse(property, "it must be a list of key versions, separated by commas, as in "+
				"finance@3; "+claviger.Printable(v)+" is not a key version"))
		}
		names[v] = true
	}
	return names
}
