//go:build !linux

package main

const envSayDumpable = "CLAVIGER_TEST_SAY_DUMPABLE"

func sayDumpable() int { return exitUsage }
