package audit

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
)

// tail is the end of a chain's file.
type tail struct {
	seq  uint64 // 0: there is no record
	hash digest
	torn int // bytes of an unfinished line after the last record
}

// tail finds the last record of the file or, if the file has none, of the rotated files. It reads only the last lines;
// Verify checks the rest.
func (l *File) tail() (tail, error) {
	names, err := l.rotated()
	if err != nil {
		return tail{}, err
	}
	t, err := tailOf(l.path)
	for i := len(names) - 1; i >= 0 && err == nil && t.seq == 0; i-- {
		var older tail
		older, err = tailOf(names[i])
		t.seq, t.hash = older.seq, older.hash
	}
	if t.torn > 0 && err == nil {
		l.torn = true // the next write begins a new line
	}
	return t, err
}

func tailOf(path string) (t tail, err error) {
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return t, nil
	}
	if err != nil {
		return t, err
	}
	defer func() { _ = f.Close() }()
	st, err := f.Stat()
	if err != nil {
		return t, err
	}
	// After the last record, which may have maxRecord bytes, there may be an unfinished one of the same length.
	begin := max(st.Size()-2*maxRecord, 0)
	b, err := io.ReadAll(io.LimitReader(io.NewSectionReader(f, begin, st.Size()-begin), 2*maxRecord))
	if err != nil {
		return t, err
	}
	end := bytes.LastIndexByte(b, '\n') + 1
	t.torn = len(b) - end
	for b = b[:end]; len(b) > 0; {
		b = b[:len(b)-1]
		at := bytes.LastIndexByte(b, '\n') + 1
		line := b[at:]
		r, err := ParseRecord(line)
		if err == nil {
			t.seq = r.Seq
			_, t.hash, _ = split(line) // ParseRecord has checked it
			return t, nil
		}
		if b = b[:at]; len(b) == 0 {
			return t, fmt.Errorf("the end of the audit log %s has no valid record, so the chain cannot be continued: "+
				"%w; move the file away and start again", path, err)
		}
	}
	return t, nil
}
