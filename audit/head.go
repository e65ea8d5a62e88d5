package audit

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"

	"claviger/durable"
)

// Head is the end of a chain: its last record that is known to be on the disk.
// Kept where whoever can write to the log can't, it proves that nothing was cut
// off before it.
type Head struct {
	Node string `json:"node"`
	Seq  uint64 `json:"seq"`
	Hash string `json:"hash"`
	Time string `json:"time"` // when it was noted, as in records
}

const maxHead = 8 << 10

// ParseHead reads what Head's JSON was written as.
func ParseHead(text []byte) (Head, error) {
	var h Head
	if len(text) > maxHead {
		return h, errors.New("it is too long for the head of an audit log")
	}
	if err := json.Unmarshal(text, &h); err != nil {
		return h, fmt.Errorf("it is not the head of an audit log: %w", err)
	}
	if _, err := parseDigest(h.Hash); err != nil {
		return h, err
	}
	if h.Seq == 0 || h.Node == "" {
		return h, errors.New("it is not the head of an audit log: node or seq is missing")
	}
	return h, nil
}

// Heads keeps the head of one chain outside of it.
type Heads interface {
	// Load returns the head that was kept last; ok is false where none was.
	Load(ctx context.Context) (h Head, ok bool, err error)
	Save(ctx context.Context, h Head) error
	// Name says in messages where heads are kept.
	Name() string
}

// HeadFile keeps a head in a file.
type HeadFile string

var _ Heads = HeadFile("")

// HeadFileOf is the file beside a log in which its head is kept.
func HeadFileOf(log string) HeadFile { return HeadFile(log + ".head") }

// Name is the file's path.
func (f HeadFile) Name() string { return string(f) }

// Load reads the file.
func (f HeadFile) Load(context.Context) (Head, bool, error) {
	text, err := os.ReadFile(string(f))
	if errors.Is(err, fs.ErrNotExist) {
		return Head{}, false, nil
	}
	if err != nil {
		return Head{}, false, err
	}
	h, err := ParseHead(text)
	if err != nil {
		return h, false, fmt.Errorf("%s: %w", f, err)
	}
	return h, true, nil
}

// Save replaces the file.
func (f HeadFile) Save(_ context.Context, h Head) error {
	text, err := json.Marshal(h)
	if err != nil {
		return err
	}
	return durable.Replace(string(f), append(text, '\n'), 0o640)
}
