package location

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"claviger/durable"
	"claviger/hadoopconf"
	"claviger/metastore"
	"claviger/provider"
)

const (
	// SeenName is the name of the file that no property names.
	SeenName = "claviger.seen.json"
	// seenNone is the value of the property that turns the recording off.
	seenNone = "none"
)

// SeenFile returns the file in which this node records what it has seen of a metastore of several nodes; "" where
// it records nothing. Where a property names the file, its folder must exist and be writable. Where none does, a
// folder that is not writable means "": a keystore file may be in a folder to which the server does not write.
func SeenFile(conf *hadoopconf.Conf, log *slog.Logger) (string, error) {
	if !IsPostgres(conf.String(hadoopconf.MetastoreURI)) {
		return "", nil
	}
	path, set := conf.Get(hadoopconf.MetastoreSeen)
	switch {
	case path == seenNone:
		return "", nil
	case !set:
		if path = besideKeystore(conf, SeenName); path == "" {
			return "", nil
		}
	case !filepath.IsAbs(path):
		return "", conf.Refuse(hadoopconf.MetastoreSeen, "it must be an absolute path, or none")
	}
	if err := writableFolder(filepath.Dir(path)); err != nil {
		if set {
			return "", conf.Refuse(hadoopconf.MetastoreSeen, err.Error()+"; name a file in a folder that the server "+
				"may write to, as in /var/lib/claviger/"+SeenName+", or none")
		}
		log.Warn("this node does not keep what it sees of the metastore, so it would not notice after a restart "+
			"what was lost before: name a file in a folder that the server may write to",
			"property", hadoopconf.MetastoreSeen, "file", path, "err", err)
		return "", nil
	}
	return filepath.Clean(path), nil
}

// UsesName is the name of the file of Uses, which is in the folder of SeenFile.
const UsesName = "claviger.uses.json"

// usesMost bounds the file of Uses, in bytes: it has room for all counters with long names.
const usesMost = 64 << 20

// Uses is the file in which a node keeps the uses of sources that the metastore did not take.
type Uses struct{ path string }

// OpenUses returns the node's file of uses; false where SeenFile is "".
func OpenUses(conf *hadoopconf.Conf) (Uses, bool, error) {
	seen, err := SeenFile(conf, slog.New(slog.DiscardHandler)) // opening the store has logged its warnings
	if err != nil || seen == "" {
		return Uses{}, false, err
	}
	return Uses{filepath.Join(filepath.Dir(seen), UsesName)}, true, nil
}

// Load reads the file.
func (u Uses) Load() (list []metastore.Use, err error) {
	f, err := os.Open(u.path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }() // the file is only read
	text, err := io.ReadAll(io.LimitReader(f, usesMost))
	if err == nil {
		err = json.Unmarshal(text, &list)
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w; restore the file, or move it away and look in the audit log for uses of the "+
			"source", u.path, err)
	}
	return list, nil
}

// Keep replaces the file, or removes it.
func (u Uses) Keep(list []metastore.Use) error {
	if len(list) == 0 {
		return durable.Remove(u.path)
	}
	text, err := json.Marshal(list)
	if err != nil {
		return err
	}
	return durable.Replace(u.path, text, 0o600)
}

// besideKeystore returns the path of a file beside the keystore file of the first provider; "" where the
// provider's URI names no file. Opening the provider reports a URI that is wrong.
func besideKeystore(conf *hadoopconf.Conf, name string) string {
	list, err := provider.SplitURIs(conf.String(hadoopconf.ProviderURI))
	if err != nil || len(list) == 0 {
		return ""
	}
	scheme, _, _ := strings.Cut(list[0], ":")
	keystore, err := provider.UnnestPath(list[0])
	if err != nil || !slices.Contains([]string{"cloudera.hsmkp", "jceks", "localjceks"}, strings.ToLower(scheme)) {
		return ""
	}
	return filepath.Join(filepath.Dir(keystore), name)
}

// writableFolder returns an error where this process cannot make a file in a folder.
func writableFolder(path string) error {
	st, err := os.Stat(path)
	if err != nil {
		return err
	}
	if !st.IsDir() {
		return errors.New(path + " is no folder")
	}
	const write, search = 2, 1 // access(2)
	if err := syscall.Access(path, write|search); err != nil {
		return &os.PathError{Op: "write to", Path: path, Err: err}
	}
	return nil
}
