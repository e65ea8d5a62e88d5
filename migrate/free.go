package migrate

import (
	"context"
	"encoding/json"
	"time"

	"claviger"
	"claviger/metastore"
	"claviger/typo"
)

// freedRun is the name under which the journal keeps freed names. It is not a run.
const freedRun = "names-freed"

// Freed is the record of a name that an administrator has freed.
type Freed struct {
	Key  string    `json:"key"`
	At   time.Time `json:"at"`
	User string    `json:"user"` // of the operating system
	Host string    `json:"host"`
}

// FreedNames is the result of FreeNames.
type FreedNames struct {
	Format string  `json:"format"` // "claviger migrate free 1"
	Freed  []Freed `json:"freed"`
	// Deleted are the newest versions of deleted keys of these names that can still be undeleted.
	Deleted []string `json:"deleted,omitempty"`
}

// FreeNames frees names that the journal keeps for keys of sources whose migration was finished. It frees all names or
// none. The error is of kind Invalid if the journal does not keep a name, if the migration of its key is not finished,
// or if a key here has the name.
func (e *Engine) FreeNames(ctx context.Context, user string, keys ...string) (*FreedNames, error) {
	const op = "migrate.FreeNames"
	unlock, ok, err := e.cfg.Store.TryLock(ctx, LockName)
	if err != nil {
		return nil, err
	}
	if !ok {
		return nil, claviger.Errorf(op, claviger.Unavailable, "", "%s; try again when it has ended", migratingNow)
	}
	defer unlock()
	origins, err := Origins(ctx, e.cfg.Store, e.cfg.Target.URI())
	if err != nil {
		return nil, err
	}
	report := &FreedNames{Format: "claviger migrate free 1", Freed: []Freed{}}
	for _, key := range keys {
		if err := e.mayFree(ctx, origins, key); err != nil {
			return nil, err
		}
		report.Freed = append(report.Freed, Freed{Key: key, At: e.now(), User: user, Host: e.cfg.Host})
		deleted, err := e.cfg.Store.DeletedKeys(ctx, key)
		if err != nil {
			return nil, err
		}
		for _, k := range deleted {
			if n := len(k.List); n > 0 {
				report.Deleted = append(report.Deleted, claviger.VersionName(key, k.List[n-1].ID))
			}
		}
	}
	for _, f := range report.Freed {
		if err := e.put(ctx, freedRun, f.Key, f); err != nil {
			return nil, err
		}
	}
	return report, nil
}

// mayFree returns an error of kind Invalid if the name must not be freed.
func (e *Engine) mayFree(ctx context.Context, origins []Origin, key string) error {
	const op = "migrate.FreeNames"
	known := false
	for _, o := range origins {
		if o.Key != key {
			continue
		}
		known = true
		if o.Finished == nil {
			return claviger.Errorf(op, claviger.Invalid, key,
				"key %s is at %s, whose migration was not finished: claviger migrate finish ends it",
				claviger.Printable(key), o.Source)
		}
	}
	if !known {
		names := make([]string, len(origins))
		for i, o := range origins {
			names[i] = o.Key
		}
		return claviger.Errorf(op, claviger.Invalid, key,
			"the journal has no key %s%s; claviger migrate status lists the names that it keeps",
			claviger.Printable(key), typo.DidYouMean(key, names, claviger.Printable))
	}
	here, err := e.cfg.Target.Metadata(ctx, key)
	if err != nil {
		return err
	}
	if len(here) == 1 && here[0] != nil {
		return claviger.Errorf(op, claviger.Invalid, key,
			"key %s is here, so its name cannot be freed; delete the key first", claviger.Printable(key))
	}
	return nil
}

// freedNames returns the freed names.
func freedNames(ctx context.Context, store metastore.Journal) (map[string]Freed, error) {
	records, err := store.Records(ctx, freedRun)
	if err != nil {
		return nil, err
	}
	freed := make(map[string]Freed, len(records))
	for _, r := range records {
		var f Freed
		if err := json.Unmarshal(r.Data, &f); err != nil {
			return nil, claviger.Errorf("migrate.Journal", claviger.Internal, r.Item,
				"the journal's record of a freed name is damaged: %w; restore the metastore from a backup", err)
		}
		freed[f.Key] = f
	}
	return freed, nil
}
