//go:build !linux

package main

// noCoreDumps does nothing: it is implemented on Linux only.
func noCoreDumps() error { return nil }
