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
	torn int // bytes of an unfinished line behind the last record
}

// tail finds the last record of the file, or where it holds none that of the
// files put aside. It looks at the last lines only: whether all is right is for
// Verify to say.
func (l *File) tail() (tail, error) {
	names, err := l.aside()
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
		l.torn = true // what comes next begins on a line of its own
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
	// The longest line may have an unfinished one behind it.
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
			_, t.hash, err = split(line)
			return t, err
		}
		if b = b[:at]; len(b) == 0 {
			return t, fmt.Errorf("the audit log %s does not end with a record that could be gone on from: %w; put "+
				"the file aside and start anew", path, err)
		}
	}
	return t, nil
}
