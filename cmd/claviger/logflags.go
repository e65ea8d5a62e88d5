package main

import (
	"log/slog"
	"os"

	"github.com/spf13/cobra"

	"claviger/web"
)

// logFlags are the flags of a server's log.
type logFlags struct {
	level  string
	format string
}

func (f *logFlags) define(cmd *cobra.Command) {
	cmd.Flags().StringVar(&f.level, "log-level", "info", "debug, info, warn or error")
	cmd.Flags().StringVar(&f.format, "log-format", "text", "text or json")
}

// open returns a logger that writes to standard error, and its level.
func (f *logFlags) open() (*slog.Logger, *slog.LevelVar, error) {
	log, level, err := web.NewLogger(os.Stderr, f.level, f.format)
	if err != nil {
		return nil, nil, &exitError{exitUsage, err}
	}
	return log, level, nil
}

// newLogger returns a logger for a command that is not a server.
func newLogger(level string) (*slog.Logger, error) {
	log, _, err := web.NewLogger(os.Stderr, level, "text")
	return log, err
}
