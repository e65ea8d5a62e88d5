package hadoop

import (
	"fmt"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"claviger"
)

// orc writes and reads keys of ORC's column encryption, with ORC's own classes. The footer of a file holds the
// name of a key, the NUMBER of its version, and an encrypted local key. ORC computes the name of the version from
// the key and the number.
type orc struct {
	t     *testing.T
	jvm   *Program
	files []orcFile
}

// orcFile is the footer of a file, and the local key of the columns.
type orcFile struct {
	key       string
	version   int
	algorithm string
	encrypted string
	local     string
}

func startORC(t *testing.T, user string) *orc {
	return &orc{t: t, jvm: StartProgram(t, ProgramOptions{Sources: filepath.Join(Root(), "test", "hadoop", "java"),
		Main: "Orc", User: user})}
}

// write makes a file with the current version of the key, which must have this number.
func (o *orc) write(provider, key string, version int) orcFile {
	o.t.Helper()
	words := strings.Fields(o.jvm.Send("write", provider, key))
	if len(words) != 5 || words[0] != "ok" || words[1] != strconv.Itoa(version) {
		o.t.Fatalf("ORC writes under %s: %q, want version %d", key, words, version)
	}
	f := orcFile{key: key, version: version, algorithm: words[2], encrypted: words[3], local: words[4]}
	o.files = append(o.files, f)
	return f
}

// read reads a file again, and returns the error. The local key must be the same.
func (o *orc) read(provider string, f orcFile) string {
	o.t.Helper()
	answer := o.jvm.Send("read", provider, f.key, strconv.Itoa(f.version), f.algorithm, f.encrypted)
	local, ok := strings.CutPrefix(answer, "ok ")
	switch {
	case !ok:
		return answer
	case local != f.local:
		o.t.Errorf("ORC reads a file under %s with another local key", f.name())
	}
	return ""
}

// readAll reads all files. Files with versions below first[key] belong to the source, and can be read only while
// the source runs.
func (o *orc) readAll(provider string, first map[string]int, source bool) {
	o.t.Helper()
	for _, f := range o.files {
		err := o.read(provider, f)
		if old := f.version < first[f.key]; old && !source {
			// Hadoop makes this text if the server says that it has no such version.
			if !strings.Contains(err, f.name()) {
				o.t.Errorf("ORC reads a file under %s of the source, which has gone: %q", f.name(), err)
			}
		} else if err != "" {
			o.t.Errorf("ORC reads a file under %s: %s", f.name(), err)
		}
	}
}

func (f orcFile) name() string { return claviger.VersionName(f.key, fmt.Sprint(f.version)) }
