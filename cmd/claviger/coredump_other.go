//go:build !linux

package main

// noCoreDumps knows how on Linux only.
func noCoreDumps() error { return nil }
