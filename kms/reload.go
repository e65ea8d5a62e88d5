package kms

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"claviger/authn"
	"claviger/filestamp"
	"claviger/hadoopconf"
)

// siteCheckInterval is the time between two checks of the site files, the same as for
// ACLs.
const siteCheckInterval = time.Second

// siteSettleTime is how long a file must not have changed before it is read. It gives
// a program that does not use rename(2) time to finish writing.
const siteSettleTime = 100 * time.Millisecond

// siteWatcher follows core-site.xml and kms-site.xml while the server runs. Changed
// rules of proxy users take effect at once. For other properties it logs that the
// server must be restarted. A file that cannot be read changes nothing.
type siteWatcher struct {
	dir        string
	proxies    *authn.ProxyUsers
	groups     func(user string) []string
	log        *slog.Logger
	props      map[string]string  // in force
	overridden map[string]bool    // set by the command line or the environment, which override the files
	seen       [2]filestamp.Stamp // at the last attempt; zero before the first
	existed    [2]bool            // by file

	mu  sync.Mutex
	err error // why the files are not in force; nil if they are
}

func newSiteWatcher(conf *hadoopconf.Conf, proxies *authn.ProxyUsers, groups func(user string) []string,
	log *slog.Logger) *siteWatcher {
	w := &siteWatcher{dir: conf.Dir(), proxies: proxies, groups: groups, log: log, props: maps.Collect(conf.All()),
		overridden: map[string]bool{}}
	for name := range w.props {
		switch p, _ := conf.Lookup(name); {
		case p.File == "" && !slices.ContainsFunc(hadoopconf.KMS,
			func(k hadoopconf.Known) bool { return k.Name == name && k.Default != "" }):
			delete(w.props, name) // another part of the server has set its default
		case p.File != "" && p.Line == 0:
			w.overridden[name] = true
		}
	}
	// The process has read the files at its start, and may have waited for other machines
	// since. So the first check reads them again in any case.
	states, _ := w.states()
	for i, s := range states {
		w.existed[i] = s.Exists()
	}
	return w
}

var siteFiles = [2]string{"core-site.xml", "kms-site.xml"}

// states returns the stamps of the files, and when the latest was written. A file that
// does not exist, or whose state cannot be read, has the zero stamp.
func (w *siteWatcher) states() (states [2]filestamp.Stamp, latest time.Time) {
	for i, name := range siteFiles {
		states[i], _ = filestamp.Of(filepath.Join(w.dir, name)) // loading the file reports the error
		if states[i].ModTime.After(latest) {
			latest = states[i].ModTime
		}
	}
	return states, latest
}

// Err returns the reason why the files are not in force; nil if they are.
func (w *siteWatcher) Err() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.err
}

// setErr stores why the files cannot be used, and logs a new error.
func (w *siteWatcher) setErr(err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if err != nil && (w.err == nil || w.err.Error() != err.Error()) {
		w.log.Error("the changed configuration cannot be used; the configuration that was loaded before stays in force",
			"folder", w.dir, "err", err)
	}
	w.err = err
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

// check loads the files if they have changed since the last attempt, or if the last
// attempt failed.
func (w *siteWatcher) check(now time.Time) {
	states, latest := w.states()
	if states == w.seen && w.Err() == nil {
		return
	}
	if age := now.Sub(latest); age >= 0 && age < siteSettleTime {
		return // the next check loads it
	}
	// A missing file is being replaced, or was moved by mistake. Loading without it would
	// remove the rules of proxy users.
	for i, existed := range w.existed {
		if existed && !states[i].Exists() {
			w.seen = states
			w.setErr(fmt.Errorf("%s does not exist any more", filepath.Join(w.dir, siteFiles[i])))
			return
		}
		w.existed[i] = states[i].Exists()
	}
	w.seen = states
	conf, err := hadoopconf.LoadKMS(w.dir, os.LookupEnv)
	w.setErr(err)
	if err != nil {
		return
	}
	w.apply(conf)
}

// apply takes the rules of proxy users from a new configuration, and logs which other
// properties have changed.
func (w *siteWatcher) apply(conf *hadoopconf.Conf) {
	props := maps.Collect(conf.All())
	var needRestart []string
	proxiesChanged := false
	for _, name := range changed(w.props, props) {
		if strings.HasPrefix(name, authn.ProxyUserPrefix) {
			proxiesChanged = true
			continue
		}
		if w.overridden[name] {
			continue
		}
		needRestart = append(needRestart, name)
	}
	w.props = props
	if proxiesChanged {
		rules, warnings := authn.NewProxyUsers(conf.WithPrefix(authn.ProxyUserPrefix), w.groups, w.log)
		for _, warning := range warnings {
			w.log.Warn(warning)
		}
		w.proxies.Replace(rules)
		w.log.Info("the rules of proxy users were loaded again", "folder", w.dir)
	}
	if len(needRestart) > 0 {
		w.log.Warn("changed properties take effect when the server is restarted", "properties", needRestart)
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
