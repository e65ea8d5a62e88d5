package kms

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"claviger"
	"claviger/hadoopconf"
	"claviger/migrate"
	"claviger/migrate/shred"
	"claviger/typo"
)

const (
	leftTrust = "the truststore, perhaps with the source's certificates: remove them (keytool -delete) unless " +
		"another program needs them; nothing in it is secret"
	leftGuess = "looks like the folder of a Key Trustee KMS, or a copy of it; if it is a copy, name it by --leftover"
)

// settingLeftovers is the metastore's setting with the paths that the configuration
// has named at any time: a JSON list. When the source may be removed, no
// configuration file names them any more.
const settingLeftovers = "migration.leftovers"

// usualFolder is the path of the folder in Cloudera's packages.
const usualFolder = "/var/lib/kms-keytrustee/keytrustee/.keytrustee"

// keytrusteeURI is the beginning of the URI of a .keytrustee folder.
const keytrusteeURI = "keytrustee://file@"

// ConfiguredLeftovers returns the paths that the configuration names now.
func ConfiguredLeftovers(conf *hadoopconf.Conf) []string {
	var paths []string
	for _, property := range []string{hadoopconf.ProviderURI, hadoopconf.SourceURI} {
		for _, uri := range strings.Split(conf.String(property), ",") {
			if p, ok := strings.CutPrefix(strings.TrimSpace(uri), keytrusteeURI); ok {
				paths = append(paths, filepath.Clean(p))
			}
		}
	}
	if p, ok := conf.Path(hadoopconf.TrusteeConf); ok && p != "" {
		paths = append(paths, filepath.Clean(p)) // a file, although its property's name ends in "dir"
	}
	return paths
}

// RecordLeftovers adds to the setting the paths that the configuration names, and the
// given paths of an operator, and returns all. A given path that does not exist, and
// did not exist on another host of this metastore, is an error: it is probably
// misspelled, and the file that the operator meant would remain.
func (s *Service) RecordLeftovers(ctx context.Context, given []string) ([]string, error) {
	store, err := s.store(ctx)
	if err != nil {
		return nil, err
	}
	text, ok, err := store.Setting(ctx, settingLeftovers)
	if err != nil {
		return nil, err
	}
	var recorded []string
	if ok {
		if err := json.Unmarshal([]byte(text), &recorded); err != nil {
			return nil, fmt.Errorf("metastore %s: setting %s: %w", store.URI(), settingLeftovers, err)
		}
	}
	for _, p := range given {
		if !slices.Contains(recorded, p) && len(shred.Known([]string{p})) == 0 && !exists(p) {
			return nil, claviger.Refuse("--leftover %s: there is no such file%s; nothing was done",
				claviger.Printable(p), typo.DidYouMean(p, siblings(p), claviger.Printable))
		}
	}
	all := slices.Clone(recorded)
	for _, p := range slices.Concat(ConfiguredLeftovers(s.Conf), given) {
		if !slices.Contains(all, p) {
			all = append(all, p)
		}
	}
	if len(all) == len(recorded) {
		return all, nil
	}
	b, err := json.Marshal(all)
	if err != nil {
		return nil, err
	}
	return all, store.SetSetting(ctx, settingLeftovers, string(b))
}

func exists(p string) bool {
	_, err := os.Lstat(p)
	return err == nil
}

// siblings returns the paths of all files in the folder of p.
func siblings(p string) (paths []string) {
	entries, _ := os.ReadDir(filepath.Dir(p)) // a folder that cannot be read has no suggestions
	for _, e := range entries {
		paths = append(paths, filepath.Join(filepath.Dir(p), e.Name()))
	}
	return paths
}

// Leftovers returns the files of shred.Known, and other files that may be leftovers.
func (s *Service) Leftovers(paths []string) []migrate.Leftover {
	list := shred.Known(paths)
	guess := func(p, what string) {
		if _, err := os.Lstat(p); err == nil && !slices.ContainsFunc(list,
			func(l migrate.Leftover) bool { return l.Path == p }) {
			list = append(list, migrate.Leftover{Path: p, What: what})
		}
	}
	guess(usualFolder, leftGuess)
	// If the target folder exists, scp -r copies the folder into it.
	guess("/var/lib/kms-keytrustee/kms-keytrustee/keytrustee/.keytrustee", leftGuess)
	// An error means that there is no truststore.
	if st, err := sslStores(s.Conf, s.Log, "hadoop.ssl.client.conf", "ssl-client.xml"); err == nil {
		if trust, setting, err := st.clientTrust(); err == nil && setting != "" {
			guess(trust.Path, leftTrust)
		}
	}
	return list
}
