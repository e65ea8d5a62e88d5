package postgres

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"time"

	"claviger"
	"claviger/durable"
	"claviger/pgdb"
)

// keepEvery is how often what was seen is written down, where it is new. A node that is
// killed forgets what it saw since.
const keepEvery = time.Second

// seenMost bounds the file: 16 changes with names of keys, and a few servers.
const seenMost = 1 << 20

// seen is what a node keeps on its disk of the database.
type seen struct {
	Changes []mark                 `json:"changes"` // the newest, each of which must be there
	Servers map[string]pgdb.Newest `json:"servers"` // by system
}

// recall reads what this node has seen before it was started.
func (c *Config) recall() (was seen, err error) {
	if c.Seen == "" {
		return was, nil
	}
	text, err := readSeen(c.Seen)
	if errors.Is(err, fs.ErrNotExist) {
		return was, nil
	}
	if err == nil {
		was, err = parseSeen(text)
	}
	if err == nil {
		return was, nil
	}
	cure := "it is damaged, or another file: see that the property names the right place, or move it away"
	if errors.Is(err, fs.ErrPermission) {
		cure = "give it to the user that the server runs as, or move it away"
	}
	return seen{}, claviger.Errorf("metastore/postgres.Open", claviger.Invalid, "",
		"the file %s (property %s) keeps what this node has seen of the metastore, and cannot be used: %w; %s; "+
			"without it the node does not notice what was lost before its start", c.Seen, c.SeenProperty, err, cure)
}

// readSeen reads the file, which has a bound.
func readSeen(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }() // it is read alone
	st, err := f.Stat()
	if err == nil && (!st.Mode().IsRegular() || st.Size() > seenMost) {
		err = fmt.Errorf("a node writes a regular file of %d bytes at most", seenMost)
	}
	if err != nil {
		return nil, err
	}
	return io.ReadAll(f)
}

// parseSeen takes what keepSeen writes, and nothing else: a file that says less would
// have the node forget what it has seen.
func parseSeen(text []byte) (was seen, err error) {
	var both struct {
		Changes json.RawMessage `json:"changes"` // null where none was seen
		Servers json.RawMessage `json:"servers"`
	}
	if err := decodeAll(text, &both); err != nil {
		return was, err
	}
	if both.Changes == nil || both.Servers == nil || string(both.Servers) == "null" {
		return was, errors.New("a node writes an object with changes and servers")
	}
	if err := errors.Join(decodeAll(both.Changes, &was.Changes), decodeAll(both.Servers, &was.Servers)); err != nil {
		return was, err
	}
	for _, m := range was.Changes {
		if m.Seq <= 0 || m.ID == "" {
			return was, errors.New("a change in it has no number, or no id")
		}
	}
	for system, s := range was.Servers {
		if system == "" || s.Host == "" || s.Timeline == 0 {
			return was, errors.New("a server in it has no system, host or timeline")
		}
	}
	return was, nil
}

// decodeAll decodes one JSON value that has no fields but those of v, and nothing after it.
func decodeAll(text []byte, v any) error {
	d := json.NewDecoder(bytes.NewReader(text))
	d.DisallowUnknownFields()
	if err := d.Decode(v); err != nil {
		return fmt.Errorf("it is no JSON as a node writes it: %w", err)
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return errors.New("something stands behind its JSON")
	}
	return nil
}

// forget says how the node is made to forget what it has seen.
func (c *Config) forget() string {
	if c.Seen == "" {
		return ""
	}
	return fmt.Sprintf("restart this node without the file %s (property %s)", c.Seen, c.SeenProperty)
}

// keepSeen writes down what is seen, until the store is closed.
func (s *Store) keepSeen() {
	var kept []byte
	var warned time.Time
	for ended := false; !ended; {
		select {
		case <-s.alive.Done():
			ended = true
		case <-time.After(keepEvery):
		}
		s.history.mu.Lock()
		text, err := json.Marshal(seen{s.history.seen, s.db.Newest()})
		s.history.mu.Unlock()
		if err == nil && bytes.Equal(text, kept) {
			continue
		}
		if err == nil {
			err = durable.Replace(s.cfg.Seen, text, 0o600)
		}
		if err == nil {
			kept = text
		} else if time.Since(warned) > warnEvery {
			warned = time.Now()
			s.log.Warn("what this node has seen of the metastore is not kept, so it would not notice after a "+
				"restart what was lost before", "file", s.cfg.Seen, "property", s.cfg.SeenProperty, "err", err)
		}
	}
}
