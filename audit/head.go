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

// Head is the end of a chain: the last record that is certainly on the disk. If an attacker can write to the log but
// not to the place of the head, the head proves that no record up to its own was cut off.
type Head struct {
	Node string `json:"node"`
	Seq  uint64 `json:"seq"`
	Hash string `json:"hash"`
	Time string `json:"time"` // when it was stored, in the format of records
}

const maxHead = 8 << 10 // bytes

// ParseHead reads the JSON of a Head.
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

// Heads stores the head of one chain, outside of the chain.
type Heads interface {
	// Load returns the head that was stored last. If none was stored, ok is false.
	Load(ctx context.Context) (h Head, ok bool, err error)
	Save(ctx context.Context, h Head) error
	// Name is the name of the place in messages.
	Name() string
}

// HeadFile stores a head in a file.
type HeadFile string

var _ Heads = HeadFile("")

// HeadFileOf returns the file for the head of a log, beside the log.
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
