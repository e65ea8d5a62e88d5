package main

import (
	"cmp"
	"fmt"
	"io"
	"log/slog"
	"runtime"
	"runtime/debug"

	"github.com/spf13/cobra"

	"claviger/console"
)

// release is set by the linker where a release is built (-X main.release=1.2.3).
var release string

// buildInfo says which program this is. What the build did not record is "unknown".
type buildInfo struct {
	Version  string `json:"version"`
	Commit   string `json:"commit"`
	Date     string `json:"date"` // of the commit, RFC 3339
	Modified bool   `json:"modified"`
	Go       string `json:"go"`
	Platform string `json:"platform"`
}

func readBuildInfo() buildInfo {
	b := buildInfo{Version: release, Go: runtime.Version(), Platform: runtime.GOOS + "/" + runtime.GOARCH}
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

func (b buildInfo) String() string {
	modified := ""
	if b.Modified {
		modified = ", changed since"
	}
	return fmt.Sprintf("claviger %s (commit %s of %s%s; %s, %s)", b.Version, b.Commit, b.Date, modified, b.Go, b.Platform)
}

// log is the first line of a server's log.
func (b buildInfo) log(log *slog.Logger) {
	log.Info("claviger", "version", b.Version, "commit", b.Commit, "date", b.Date, "modified", b.Modified, "go", b.Go, "platform", b.Platform)
}

// metric shows it beside a server's figures.
func (b buildInfo) metric(m *console.Metrics) {
	m.Info("claviger_build_info", "Which program this is.", map[string]string{"version": b.Version, "commit": b.Commit, "date": b.Date, "go": b.Go})
}

func newVersionCommand() *cobra.Command {
	var format string
	cmd := &cobra.Command{
		Use:   "version",
		Short: "Say which claviger this is: version, commit, date",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			out, err := newOutput(cmd.OutOrStdout(), format)
			if err != nil {
				return err
			}
			b := readBuildInfo()
			return out.write(b, func(w io.Writer) { fmt.Fprintln(w, b) })
		},
	}
	cmd.Flags().StringVarP(&format, "output", "o", "text", "text or json")
	return cmd
}
