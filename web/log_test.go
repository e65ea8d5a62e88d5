package web

import (
	"bytes"
	"encoding/json"
	"log/slog"
	"strings"
	"testing"

	"claviger"
)

// TestNewLogger: a logger in JSON shows the operation of an error, hides secrets, and follows a change of its level.
func TestNewLogger(t *testing.T) {
	var b bytes.Buffer
	log, level, err := NewLogger(&b, "info", "json")
	if err != nil {
		t.Fatal(err)
	}
	log.Debug("hidden")
	level.Set(slog.LevelDebug)
	log.Debug("shown", "err", claviger.Errorf("keyring.Decrypt", claviger.Denied, "k", "no"), "header",
		"Authorization: Bearer hunter2hunter2hunter2hunter2")
	var line map[string]any
	if err := json.Unmarshal(b.Bytes(), &line); err != nil { // one line alone
		t.Fatal(err, b.String())
	}
	if line["msg"] != "shown" || line["op"] != "keyring.Decrypt" || strings.Contains(b.String(), "hunter2") {
		t.Error(b.String())
	}
}

// TestNewLoggerRefusesValues: an unknown level or format is refused, and the error names the flag.
func TestNewLoggerRefusesValues(t *testing.T) {
	for _, f := range []struct{ level, format, flag string }{{"loud", "text", "--log-level"},
		{"info", "xml", "--log-format"}, {"", "text", "--log-level"}} {
		_, _, err := NewLogger(nil, f.level, f.format)
		if err == nil || !strings.Contains(err.Error(), f.flag) || !strings.Contains(err.Error(), "it must be") {
			t.Errorf("%+v: %v", f, err)
		}
	}
}
