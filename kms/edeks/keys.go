package edeks

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"slices"
	"strings"

	"claviger"
	"claviger/census"
	"claviger/hadoopconf"
	"claviger/kms"
	"claviger/migrate"
	"claviger/migrate/verdict"
	"claviger/provider/hsm"
)

// result is the output of the command: the census, and the keys of a KMS beside it.
type result struct {
	*census.Report
	Keys keyCheck `json:"keys"`
}

// keyCheck compares the keys that an image names with those of a KMS.
type keyCheck struct {
	// Unchecked says why the keys of the KMS are not known; "" if they were compared.
	Unchecked string `json:"unchecked"`
	// LostZones and LostVersions have keys that are neither in the KMS nor, by its journal, at a source.
	LostZones    []lostZone    `json:"zonesWithoutKey"`
	LostVersions []lostVersion `json:"versionsWithoutKey"`
	// Unused are keys of the KMS that no zone and no EDEK of the image has.
	Unused []string `json:"unusedKeys"`
}

// lostZone is a zone whose key is nowhere.
type lostZone struct {
	Path   string         `json:"path"`
	Key    string         `json:"key"`
	Holder migrate.Holder `json:"holder"` // nobody or destroyed
}

// lostVersion is a version of EDEKs that is nowhere.
type lostVersion struct {
	Version string         `json:"version"`
	EDEKs   uint64         `json:"edeks"`
	Holder  migrate.Holder `json:"holder"` // nobody or destroyed
}

// noConf is the reason why keys are not compared if no KMS is named.
const noConf = "name the configuration folder of the KMS by --conf"

// compareKeys compares the keys of a report with those of the KMS that --conf configures. If the KMS cannot be read,
// keyCheck says why, and the census stays valid.
func (o *Options) compareKeys(ctx context.Context, r *census.Report) keyCheck {
	if o.Conf == "" {
		return keyCheck{Unchecked: noConf}
	}
	check, err := readKeys(ctx, o.Conf, r)
	if err != nil {
		return keyCheck{Unchecked: err.Error()}
	}
	return *check
}

// readKeys opens a KMS, and compares its keys with those of a report.
func readKeys(ctx context.Context, dir string, r *census.Report) (check *keyCheck, err error) {
	conf, err := hadoopconf.LoadKMS(dir, os.LookupEnv)
	if err != nil {
		return nil, err
	}
	if _, _, set := conf.SetValue(hadoopconf.ProviderURI); !set {
		return nil, fmt.Errorf("%s configures no KMS: %s is not set there", conf.Dir(), hadoopconf.ProviderURI)
	}
	log := slog.New(slog.DiscardHandler)
	svc, err := kms.OpenCarefully(ctx, conf, "claviger edek census", hsm.Read, log)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, svc.Close()) }()
	engine, err := svc.Engine(ctx, migrate.Config{Log: log})
	if err != nil {
		return nil, err
	}
	keys, versions := verdict.Names([]verdict.Image{{Report: r}})
	facts, err := engine.EDEKFacts(ctx, keys, versions)
	if err != nil {
		return nil, err
	}
	return comparedWith(facts, r, keys, versions), nil
}

// comparedWith compares the keys of a report with facts about a KMS. keys and versions are the names in the report.
func comparedWith(facts *migrate.EDEKFacts, r *census.Report, keys, versions []string) *keyCheck {
	lost := func(h migrate.Holder) bool { return h == migrate.Nobody || h == migrate.Destroyed }
	check := new(keyCheck)
	for i := range r.Zones {
		if z := &r.Zones[i]; lost(facts.Keys[z.Key]) {
			check.LostZones = append(check.LostZones, lostZone{z.Path, z.Key, facts.Keys[z.Key]})
		}
	}
	for i := range r.Versions {
		v := &r.Versions[i]
		if h, n := facts.EDEKs[v.Version], v.Sum(); n > 0 && lost(h) {
			check.LostVersions = append(check.LostVersions, lostVersion{v.Version, n, h})
		}
	}
	used := slices.Clone(keys)
	for _, v := range versions {
		used = append(used, claviger.ParseVersion(v).Key)
	}
	for _, name := range facts.Names {
		if !slices.Contains(used, name) {
			check.Unused = append(check.Unused, name)
		}
	}
	return check
}

// keysText prints a comparison for people.
func keysText(w io.Writer, c *keyCheck) {
	if c.Unchecked != "" {
		fmt.Fprintf(w, "Whether the keys exist was not checked: %s.\n", claviger.Printable(c.Unchecked))
		return
	}
	for _, z := range c.LostZones {
		fmt.Fprintf(w, "Warning: zone %s has key %s, which %s.\n", claviger.Printable(z.Path),
			claviger.Printable(z.Key), whereabouts(z.Holder))
	}
	for _, v := range c.LostVersions {
		fmt.Fprintf(w, "Warning: %d EDEKs have version %s, which %s.\n", v.EDEKs, claviger.Printable(v.Version),
			whereabouts(v.Holder))
	}
	if len(c.LostZones)+len(c.LostVersions) > 0 {
		fmt.Fprintln(w, "Nobody can read these files by this KMS. If the image is of another cluster, name that "+
			"cluster's KMS by --conf. If another KMS has the key, make it a source of this one (docs/sources.md).")
	} else {
		fmt.Fprintln(w, "The KMS or a source of it has the keys of all zones and the versions of all EDEKs.")
	}
	if len(c.Unused) > 0 {
		fmt.Fprintf(w, "Keys of the KMS that no zone and no EDEK has: %s\n",
			claviger.Printable(strings.Join(c.Unused, ", ")))
	}
}

// whereabouts describes the holder of a lost key or version.
func whereabouts(h migrate.Holder) string {
	if h == migrate.Destroyed {
		return "was in the KMS and has been destroyed"
	}
	return "is neither in the KMS nor in the journal of its migration"
}
