package durable

import (
	"fmt"
	"io"
	"os"
	"syscall"
)

// OpenRegular opens a file for reading, and refuses what is no regular file. The open of a named pipe would wait for a
// writer, which no signal ends, and the open of a device may have effects.
func OpenRegular(path string) (*os.File, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	irregular := func() error {
		return fmt.Errorf("%s is not a regular file: a pipe, device or folder cannot be read here", path)
	}
	if !info.Mode().IsRegular() {
		return nil, irregular()
	}
	// O_NONBLOCK, because a pipe may have taken the file's place since.
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	if info, err = f.Stat(); err == nil && !info.Mode().IsRegular() {
		err = irregular()
	}
	if err != nil {
		_ = f.Close() // the first error counts
		return nil, err
	}
	return f, nil
}

// ReadRegular returns the content of a file of at most the size max, and refuses what OpenRegular refuses.
func ReadRegular(path string, max int64) ([]byte, error) {
	f, err := OpenRegular(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, max+1))
	if err == nil && int64(len(data)) > max {
		err = fmt.Errorf("%s has more than %d bytes, so it cannot be the right file", path, max)
	}
	return data, err
}
