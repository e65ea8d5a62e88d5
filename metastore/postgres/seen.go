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

// seenInterval is the time between two writes of the file, if there is something new. A killed node forgets the changes
// after the last write.
const seenInterval = time.Second

// seenMaxSize limits the file, which has at most 16 changes with names of keys, and a few servers.
const seenMaxSize = 1 << 20

// seen is the content of the file Config.Seen.
type seen struct {
	Changes []changeRecord         `json:"changes"` // the newest changes; the database must have each of them
	Servers map[string]pgdb.Newest `json:"servers"` // by system identifier
}

// loadSeen reads the file that this node has written before its restart. Without a file the result is empty.
func (c *Config) loadSeen() (loaded seen, err error) {
	if c.Seen == "" {
		return loaded, nil
	}
	text, err := readSeen(c.Seen)
	if errors.Is(err, fs.ErrNotExist) {
		return loaded, nil
	}
	if err == nil {
		loaded, err = parseSeen(text)
	}
	if err == nil {
		return loaded, nil
	}
	cure := "it is damaged, or another file: check that the property names the right place, or move it away"
	if errors.Is(err, fs.ErrPermission) {
		cure = "give it to the user that the server runs as, or move it away"
	}
	return seen{}, claviger.Errorf("metastore/postgres.Open", claviger.Invalid, "",
		"the file %s (property %s), in which this node records the changes of the metastore that it has seen, cannot "+
			"be used: %w; %s; without the file, the node does not notice changes that were lost before its start",
		c.Seen, c.SeenProperty, err, cure)
}

// readSeen reads the file if it is a regular file of at most seenMaxSize bytes.
func readSeen(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }() // the file is only read
	st, err := f.Stat()
	if err == nil && (!st.Mode().IsRegular() || st.Size() > seenMaxSize) {
		err = fmt.Errorf("it must be a regular file of at most %d bytes", seenMaxSize)
	}
	if err != nil {
		return nil, err
	}
	return io.ReadAll(f)
}

// parseSeen accepts only what writeSeen writes. With an incomplete file the node would forget changes that it has seen.
func parseSeen(text []byte) (loaded seen, err error) {
	var both struct {
		Changes json.RawMessage `json:"changes"` // null if no change was seen
		Servers json.RawMessage `json:"servers"`
	}
	if err := decodeAll(text, &both); err != nil {
		return loaded, err
	}
	if string(both.Servers) == "null" {
		return loaded, errors.New("its servers are null")
	}
	err = errors.Join(decodeAll(both.Changes, &loaded.Changes), decodeAll(both.Servers, &loaded.Servers))
	if err != nil {
		return loaded, err
	}
	for _, m := range loaded.Changes {
		if m.Seq <= 0 || m.ID == "" {
			return loaded, errors.New("it has a change without a number or an id")
		}
	}
	for system, s := range loaded.Servers {
		if system == "" || s.Host == "" || s.Timeline == 0 {
			return loaded, errors.New("it has a server without a system, host or timeline")
		}
	}
	return loaded, nil
}

// decodeAll decodes text, which must be one JSON value without fields that v does not have.
func decodeAll(text []byte, v any) error {
	d := json.NewDecoder(bytes.NewReader(text))
	d.DisallowUnknownFields()
	if err := d.Decode(v); err != nil {
		return fmt.Errorf("it is not the JSON that a node writes: %w", err)
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return errors.New("it has text after the JSON value")
	}
	return nil
}

// forgetCure says how an operator can make the node forget what it has seen.
func (c *Config) forgetCure() string {
	if c.Seen == "" {
		return ""
	}
	return fmt.Sprintf("restart this node without the file %s (property %s)", c.Seen, c.SeenProperty)
}

// writeSeen writes the file regularly until the store is closed, and once more then.
func (s *Store) writeSeen() {
	var written []byte
	var warned time.Time
	for ended := false; !ended; {
		select {
		case <-s.alive.Done():
			ended = true
		case <-time.After(seenInterval):
		}
		s.history.mu.Lock()
		text, err := json.Marshal(seen{s.history.seen, s.db.Newest()})
		s.history.mu.Unlock()
		if err == nil && bytes.Equal(text, written) {
			continue
		}
		if err == nil {
			err = durable.Replace(s.cfg.Seen, text, 0o600)
		}
		if err == nil {
			written = text
		} else if time.Since(warned) > warnInterval {
			warned = time.Now()
			s.log.Warn("this node cannot write the file in which it records the changes of the metastore; without "+
				"this record it does not notice changes that are lost before its next start", "file", s.cfg.Seen,
				"property", s.cfg.SeenProperty, "err", err)
		}
	}
}
