package web

import (
	"fmt"
	"io"
	"log/slog"

	"claviger"
	"claviger/secret"
)

// NewLogger makes the logger of a server or a command. level is debug, info, warn or error;
// format is text or json: the values of the flags --log-level and --log-format. The returned
// level can be changed while the logger is in use.
//
// The log shows no credentials. An error is logged with the operations of this program that it passed through.
func NewLogger(w io.Writer, level, format string) (*slog.Logger, *slog.LevelVar, error) {
	variable := new(slog.LevelVar)
	if err := variable.UnmarshalText([]byte(level)); err != nil {
		return nil, nil, fmt.Errorf("--log-level %q: it must be debug, info, warn or error", level)
	}
	opts := &slog.HandlerOptions{Level: variable}
	var h slog.Handler
	switch format {
	case "text":
		h = slog.NewTextHandler(w, opts)
	case "json":
		h = slog.NewJSONHandler(w, opts)
	default:
		return nil, nil, fmt.Errorf("--log-format %q: it must be text or json", format)
	}
	return slog.New(claviger.LogHandler(secret.LogHandler(h))), variable, nil
}
