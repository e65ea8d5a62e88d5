package postgres

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
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
	f, err := os.Open(c.Seen)
	if errors.Is(err, fs.ErrNotExist) {
		return was, nil
	}
	if err == nil {
		defer func() { _ = f.Close() }() // it is read alone
		var st fs.FileInfo
		if st, err = f.Stat(); err == nil && (!st.Mode().IsRegular() || st.Size() > seenMost) {
			err = errors.New("it is no file that a node has written")
		}
	}
	if err == nil {
		err = json.NewDecoder(f).Decode(&was)
	}
	if err != nil {
		return was, claviger.Errorf("postgres.Open", claviger.Invalid, "",
			"the file %s (property %s) keeps what this node has seen of the metastore, and cannot be read: %w; mend its permissions, or move it away: then the node does not notice what was lost before its start", c.Seen, c.SeenProperty, err)
	}
	return was, nil
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
			s.log.Warn("what this node has seen of the metastore is not kept, so it would not notice after a restart what was lost before", "file", s.cfg.Seen, "property", s.cfg.SeenProperty, "err", err)
		}
	}
}
