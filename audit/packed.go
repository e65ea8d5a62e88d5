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

// packed are the beginnings of compressed files that rotation may leave and Verify does not
// read, and what unpacks them.
var packed = []struct {
	magic, name, command string
}{
	{"\x28\xb5\x2f\xfd", "zstd", "zstd -d"},
	{"\xfd7zXZ\x00", "xz", "xz -dk"},
	{"BZh", "bzip2", "bzip2 -dk"},
	{"\x04\x22\x4d\x18", "lz4", "lz4 -d"},
}

// logFile is a file of the log, unpacked as it is read.
type logFile struct {
	io.Reader
	file *os.File
}

func (l *logFile) Close() error { return l.file.Close() }

// openLog opens a file of the log, which rotation may have compressed.
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
	for _, p := range packed {
		if bytes.HasPrefix(head, []byte(p.magic)) {
			return nil, errors.Join(fmt.Errorf("%s is compressed with %s, which is not read here: unpack it (%s "+
				"%[1]s), and name the unpacked file in its place", path, p.name, p.command), f.Close())
		}
	}
	return l, nil
}

// unpacker names the file in errors. A file that ends early must not look like the end of
// the log.
type unpacker struct {
	io.Reader
	path string
}

func (u unpacker) Read(p []byte) (int, error) {
	n, err := u.Reader.Read(p)
	if err != nil && !errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		err = unreadable(u.path, err)
	}
	return n, err
}

// unreadable hides that err may be an io.EOF.
func unreadable(path string, err error) error {
	return fmt.Errorf("%s is a compressed file that is cut or damaged (%v): take it from a backup, or verify the "+
		"files after it, whose report tells which records are missing", path, err) //nolint:errorlint // no end of the log
}
