//go:build !linux

package secret

// NoCoreDumps does nothing: it is implemented on Linux only.
func NoCoreDumps() error { return nil }
