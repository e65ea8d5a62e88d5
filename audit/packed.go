package audit

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"os"
)

// otherFormats has the formats of compressed files that rotation may leave and Verify cannot read: how such a file
// begins, the name of the format, and the command that unpacks a file.
var otherFormats = []struct {
	magic, name, command string
}{
	{"\x28\xb5\x2f\xfd", "zstd", "zstd -d"},
	{"\xfd7zXZ\x00", "xz", "xz -dk"},
	{"BZh", "bzip2", "bzip2 -dk"},
	{"\x04\x22\x4d\x18", "lz4", "lz4 -d"},
}

// logFile is a file of the log. Reading unpacks it.
type logFile struct {
	io.Reader
	file *os.File
}

func (l *logFile) Close() error { return l.file.Close() }

// openLog opens a file of the log. Rotation may have compressed the file.
func openLog(path string) (*logFile, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	in := bufio.NewReader(f)
	head, err := in.Peek(6)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, errors.Join(fmt.Errorf("%s: %w", path, err), f.Close())
	}
	l := &logFile{in, f}
	if bytes.HasPrefix(head, []byte("\x1f\x8b")) {
		z, err := gzip.NewReader(in)
		if err != nil {
			return nil, errors.Join(unreadable(path, err), f.Close())
		}
		l.Reader = unpacker{z, path}
	}
	for _, p := range otherFormats {
		if bytes.HasPrefix(head, []byte(p.magic)) {
			return nil, errors.Join(fmt.Errorf("%s is compressed with %s, which cannot be read here: unpack it (%s "+
				"%[1]s), and name the unpacked file in its place", path, p.name, p.command), f.Close())
		}
	}
	return l, nil
}

// unpacker adds the file's name to errors. If the file ends too early, its error is not io.EOF, because that would
// look like the end of the log.
type unpacker struct {
	io.Reader
	path string
}

func (u unpacker) Read(p []byte) (int, error) {
	n, err := u.Reader.Read(p)
	if err != nil && !errors.Is(err, io.EOF) {
		err = unreadable(u.path, err)
	}
	return n, err
}

// unreadable does not wrap err, which may be io.EOF.
func unreadable(path string, err error) error {
	return fmt.Errorf("%s is a compressed file that is cut or damaged (%v): restore it from a backup, or verify the "+
		"other files, and the report names the missing records", path, err) //nolint:errorlint // hides io.EOF
}
