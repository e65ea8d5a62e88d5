// Package kms makes a KMS from a configuration folder, and serves it.
//
// Open opens what the files of a folder name: the provider of the keys, the sources of a migration, and the
// metastore. Commands work with the resulting Service. Serve adds what clients need: authentication, rules,
// audit, the REST face, readiness and metrics. It follows changes of files until its context ends.
//
// The package wires; the work is done by the packages that it imports. Settings are read and checked before
// anything is opened (settings.go); an error about a setting names file, line, property, value and cure.
package kms
