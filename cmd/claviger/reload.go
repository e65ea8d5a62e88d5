package main

import (
	"context"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"claviger/authn"
	"claviger/hadoopconf"
)

// siteCheckInterval is how often the site files are looked at; as the ACLs are.
const siteCheckInterval = time.Second

// siteSettleTime is how long a file must have been left alone before it is read,
// so that a writer without rename(2) is not caught half way.
const siteSettleTime = 100 * time.Millisecond

// siteWatcher follows core-site.xml and kms-site.xml while the server runs. The
// rules of proxy users take effect at once; of anything else it says that it
// needs a start anew. What can't be read changes nothing.
type siteWatcher struct {
	dir     string
	proxies *authn.ProxyUsers
	groups  func(user string) []string
	log     *slog.Logger
	props   map[string]string // in force
	seen    [2]siteState      // of the last attempt
}

// siteState tells whether a file is another one than before.
type siteState struct {
	modTime time.Time
	size    int64
}

func newSiteWatcher(conf *hadoopconf.Conf, proxies *authn.ProxyUsers, groups func(user string) []string, log *slog.Logger) *siteWatcher {
	w := &siteWatcher{dir: conf.Dir(), proxies: proxies, groups: groups, log: log, props: maps.Collect(conf.All())}
	w.seen, _ = w.states()
	// Without what flags have set, which is in force whatever the files say.
	if files, err := hadoopconf.LoadKMS(w.dir, os.LookupEnv); err == nil {
		w.props = maps.Collect(files.All())
	}
	return w
}

// states looks at the files, and returns when the latest was written. A file that
// is not there has the zero state.
func (w *siteWatcher) states() (states [2]siteState, latest time.Time) {
	for i, name := range []string{"core-site.xml", "kms-site.xml"} {
		info, err := os.Stat(filepath.Join(w.dir, name))
		if err != nil {
			continue
		}
		states[i] = siteState{info.ModTime(), info.Size()}
		if info.ModTime().After(latest) {
			latest = info.ModTime()
		}
	}
	return states, latest
}

// Run follows the files until ctx ends.
func (w *siteWatcher) Run(ctx context.Context) {
	tick := time.NewTicker(siteCheckInterval)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case now := <-tick.C:
			w.check(now)
		}
	}
}

// check takes over what has changed since the last attempt.
func (w *siteWatcher) check(now time.Time) {
	states, latest := w.states()
	if states == w.seen {
		return
	}
	if age := now.Sub(latest); age >= 0 && age < siteSettleTime {
		return // the next check sees it
	}
	w.seen = states // before the load, so that a broken file is complained of once
	conf, err := hadoopconf.LoadKMS(w.dir, os.LookupEnv)
	if err != nil {
		w.log.Error("the changed configuration is not usable; what was loaded before stays in force", "folder", w.dir, "err", err)
		return
	}
	props := maps.Collect(conf.All())
	var later []string
	proxiesChanged := false
	for _, name := range changed(w.props, props) {
		if strings.HasPrefix(name, authn.ProxyUserPrefix) {
			proxiesChanged = true
			continue
		}
		later = append(later, name)
	}
	w.props = props
	if proxiesChanged {
		rules, warnings := authn.NewProxyUsers(conf.Under(authn.ProxyUserPrefix), w.groups, w.log)
		for _, warning := range warnings {
			w.log.Warn(warning)
		}
		w.proxies.Replace(rules)
		w.log.Info("rules of proxy users loaded anew", "folder", w.dir)
	}
	if len(later) > 0 {
		w.log.Warn("changed properties take effect when the server is started anew", "properties", later)
	}
}

// changed returns the names whose values differ, sorted.
func changed(a, b map[string]string) []string {
	var names []string
	for name, v := range a {
		if other, ok := b[name]; !ok || other != v {
			names = append(names, name)
		}
	}
	for name := range b {
		if _, ok := a[name]; !ok {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names
}
