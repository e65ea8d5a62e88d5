// Package doctortest runs the doctor in tests of its checks.
package doctortest

import (
	"bytes"
	"io"
	"strings"
	"testing"

	"claviger/doctor"
	"claviger/terminal"
)

// Run runs the doctor with one role, and returns its output.
func Run(t testing.TB, o doctor.Options, role doctor.Role) (text string, err error) {
	t.Helper()
	var b bytes.Buffer
	o.Out = *terminal.To(&b)
	err = doctor.Run(t.Context(), &o, []doctor.Role{role}, io.Discard)
	return b.String(), err
}

// Lines returns the lines of one check in the output of the doctor.
func Lines(text, id string) string {
	var kept strings.Builder
	keep := false
	for line := range strings.Lines(text) {
		fields := strings.Fields(line)
		if len(fields) > 1 && strings.HasPrefix(fields[1], "D-") || !strings.HasPrefix(line, "   ") {
			keep = len(fields) > 1 && fields[1] == id
		}
		if keep {
			kept.WriteString(line)
		}
	}
	return kept.String()
}
