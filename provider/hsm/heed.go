package hsm

import (
	"maps"

	"claviger"
	"claviger/metastore"
)

// Heed forgets what a change, of whichever node, has made untrue of what the store does
// not know; a notice without a key makes it forget everything. It asks nothing.
func (p *Provider) Heed(n metastore.Notice) {
	if n.Key == "" {
		// Notices may have been lost, or changes that were given up.
		p.names.forget(nil)
		p.absent.forget(nil)
		p.survey.stale.Store(true)
		return
	}
	p.names.forget(func(key string) bool { return key == n.Key })
	p.absent.forget(func(version string) bool {
		key, _ := claviger.KeyOfVersion(version)
		return key == n.Key
	})
	s := &p.survey
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.inUse != nil && (n.Change == metastore.Created || n.Change == metastore.Rolled) {
		s.inUse[n.Key] = true
	}
	for _, o := range s.unknown {
		if o.Key() == n.Key { // it may have been adopted, or set aside
			select {
			case s.wake <- struct{}{}:
			default:
			}
			return
		}
	}
}

// forget forgets the names that which says, all where it is nil.
func (l *lostNames) forget(which func(key string) bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	maps.DeleteFunc(l.asked, func(key string, _ lostName) bool { return which == nil || which(key) })
}

// forget is the same for versions.
func (a *absent) forget(which func(version string) bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for version := range a.until {
		if which == nil || which(version) {
			delete(a.until, version)
		}
	}
}
