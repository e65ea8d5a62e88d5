// Package buildinfo describes the build of the running program: version, commit, date and platform.
package buildinfo

import (
	"cmp"
	"fmt"
	"log/slog"
	"runtime"
	"runtime/debug"

	"claviger/console"
)

// release is the version of a release. The linker sets it: -X claviger/buildinfo.release=1.2.3.
var release string

// Info describes the running program. A version, commit or date that the build did not record is "unknown".
type Info struct {
	Version  string `json:"version"`
	Commit   string `json:"commit"`
	Date     string `json:"date"`     // of the commit, RFC 3339
	Modified bool   `json:"modified"` // the sources differ from the commit
	Go       string `json:"go"`
	Platform string `json:"platform"`
}

// Read returns the description of the running program.
func Read() Info {
	b := Info{Version: release, Go: runtime.Version(), Platform: runtime.GOOS + "/" + runtime.GOARCH}
	if info, ok := debug.ReadBuildInfo(); ok {
		if b.Version == "" && info.Main.Version != "(devel)" {
			b.Version = info.Main.Version
		}
		for _, s := range info.Settings {
			switch s.Key {
			case "vcs.revision":
				b.Commit = s.Value
			case "vcs.time":
				b.Date = s.Value
			case "vcs.modified":
				b.Modified = s.Value == "true"
			}
		}
	}
	b.Version, b.Commit, b.Date = cmp.Or(b.Version, "unknown"), cmp.Or(b.Commit, "unknown"), cmp.Or(b.Date, "unknown")
	return b
}

// String describes the build in one line of text.
func (b Info) String() string {
	modified := ""
	if b.Modified {
		modified = ", changed since"
	}
	return fmt.Sprintf("claviger %s (commit %s of %s%s; %s, %s)", b.Version, b.Commit, b.Date, modified, b.Go,
		b.Platform)
}

// Log writes the first line of a server's log.
func (b Info) Log(log *slog.Logger) {
	log.Info("claviger", "version", b.Version, "commit", b.Commit, "date", b.Date, "modified", b.Modified,
		"go", b.Go, "platform", b.Platform)
}

// Metric adds the gauge claviger_build_info to m.
func (b Info) Metric(m *console.Metrics) {
	m.Info("claviger_build_info", "The build of the running program.",
		map[string]string{"version": b.Version, "commit": b.Commit, "date": b.Date, "go": b.Go})
}
