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
	props   map[string]string  // in force
	fixed   map[string]bool    // properties of the command line or the environment, whatever the files say
	seen    [2]filestamp.Stamp // of the last attempt; zero before the first
	there   [2]bool            // which files there were

	mu  sync.Mutex
	err error // why what is in force is not what the files say
}

func newSiteWatcher(conf *hadoopconf.Conf, proxies *authn.ProxyUsers, groups func(user string) []string,
	log *slog.Logger) *siteWatcher {
	w := &siteWatcher{dir: conf.Dir(), proxies: proxies, groups: groups, log: log, props: maps.Collect(conf.All()),
		fixed: map[string]bool{}}
	for name := range w.props {
		switch p, _ := conf.Lookup(name); {
		case p.File == "" && !slices.ContainsFunc(hadoopconf.KMS,
			func(k hadoopconf.Known) bool { return k.Name == name && k.Default != "" }):
			delete(w.props, name) // another part of the server gave it a default of its own
		case p.File != "" && p.Line == 0:
			w.fixed[name] = true
		}
	}
	// The files were read when the process began, which may have waited for other machines
	// since: the first check reads them again, changed or not.
	states, _ := w.states()
	for i, s := range states {
		w.there[i] = s.Exists()
	}
	return w
}

var siteFiles = [2]string{"core-site.xml", "kms-site.xml"}

// states looks at the files, and returns when the latest was written. A file that
// is not there, or cannot be looked at, has the zero state.
func (w *siteWatcher) states() (states [2]filestamp.Stamp, latest time.Time) {
	for i, name := range siteFiles {
		states[i], _ = filestamp.Of(filepath.Join(w.dir, name)) // the load says why
		if states[i].ModTime.After(latest) {
			latest = states[i].ModTime
		}
	}
	return states, latest
}

// Err says why what is in force is not what the files say; nil where it is.
func (w *siteWatcher) Err() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.err
}

// failed notes why the files cannot be taken over, and logs what is new.
func (w *siteWatcher) failed(err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if err != nil && (w.err == nil || w.err.Error() != err.Error()) {
		w.log.Error("the changed configuration is not usable; what was loaded before stays in force", "folder", w.dir,
			"err", err)
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

// check takes over what has changed since the last attempt, or makes that again if it
// failed.
func (w *siteWatcher) check(now time.Time) {
	states, latest := w.states()
	if states == w.seen && w.Err() == nil {
		return
	}
	if age := now.Sub(latest); age >= 0 && age < siteSettleTime {
		return // the next check sees it
	}
	// A file that was there is being replaced, or was moved by mistake: the rules of proxy
	// users would go with it.
	for i, was := range w.there {
		if was && !states[i].Exists() {
			w.seen = states
			w.failed(fmt.Errorf("%s is gone", filepath.Join(w.dir, siteFiles[i])))
			return
		}
		w.there[i] = states[i].Exists()
	}
	w.seen = states
	conf, err := hadoopconf.LoadKMS(w.dir, os.LookupEnv)
	w.failed(err)
	if err != nil {
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
		if w.fixed[name] {
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
