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
	// SeenName is the default name of the file.
	SeenName = "claviger.seen.json"
	// seenNone is the value of the property that turns recording off.
	seenNone = "none"
)

// SeenFile returns the file in which this node records what it has seen of a metastore of several nodes; "" if it
// records nothing. If a property names the file, its folder must exist and be writable. By default the file is beside
// the keystore file, and a folder that is not writable means "", because a server need not write to the keystore's
// folder.
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
		log.Warn("this node cannot record the changes of the metastore that it sees, so it does not notice changes "+
			"that are lost before its next start: name a file in a folder that the server may write to",
			"property", hadoopconf.MetastoreSeen, "file", path, "err", err)
		return "", nil
	}
	return filepath.Clean(path), nil
}

// UsesName is the name of the file of Uses, which is in the folder of SeenFile.
const UsesName = "claviger.uses.json"

// usesMaxSize is the maximal size of the file of Uses, in bytes. It is enough for all counters with long names.
const usesMaxSize = 64 << 20

// Uses is the file in which a node keeps the uses of sources that it could not write into the metastore.
type Uses struct{ path string }

// OpenUses returns the node's file of uses; false if SeenFile is "".
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
	text, err := io.ReadAll(io.LimitReader(f, usesMaxSize))
	if err == nil {
		err = json.Unmarshal(text, &list)
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w; restore the file, or move it away and search the audit log for uses of the "+
			"source", u.path, err)
	}
	return list, nil
}

// Keep writes the list into the file, or removes the file if the list is empty.
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

// besideKeystore returns the path of a file beside the keystore file of the first provider; "" if the provider's URI
// names no file. It reports no wrong URI, because the opening of the provider does.
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

// writableFolder returns an error if this process cannot make a file in the folder path.
func writableFolder(path string) error {
	st, err := os.Stat(path)
	if err != nil {
		return err
	}
	if !st.IsDir() {
		return errors.New(path + " is not a folder")
	}
	const write, search = 2, 1 // access(2)
	if err := syscall.Access(path, write|search); err != nil {
		return &os.PathError{Op: "write to", Path: path, Err: err}
	}
	return nil
}
