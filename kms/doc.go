// Package kms makes a KMS from a configuration folder, and serves it.
//
// Open opens the parts that the files of a folder name: the provider of the keys, the
// sources of a migration, and the metastore. Commands work with the resulting
// Service. Serve adds authentication, rules, audit, the REST API, readiness and
// metrics. It follows changes of files until its context ends.
//
// The package only connects the parts; the packages that it imports do the work.
// Settings are read and checked before anything is opened (settings.go). The error
// for a setting names file, line, property, value and cure.
package kms
