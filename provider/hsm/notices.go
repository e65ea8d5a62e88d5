package hsm

import (
	"maps"

	"claviger"
	"claviger/metastore"
)

// HandleNotice drops cached results that a change on any node has made invalid: those about keys that the store
// does not have. A notice without a key makes it forget everything. It makes no call to the token or the store.
func (p *Provider) HandleNotice(n metastore.Notice) {
	p.failed.forget(n.Key) // another node may have gone on with a step of this process
	if n.Key == "" {
		// Notices may have been lost, or an operator gave up changes.
		p.missingNames.forget(nil)
		p.missingVersions.forget(nil)
		p.survey.stale.Store(true)
		return
	}
	p.missingNames.forget(func(key string) bool { return key == n.Key })
	p.missingVersions.forget(func(version string) bool {
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
		if o.Key() == n.Key { // the version may have been adopted or set aside
			select {
			case s.wake <- struct{}{}:
			default:
			}
			return
		}
	}
}

// forget forgets the names for which match returns true, or all names if match is nil.
func (l *missingNames) forget(match func(key string) bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	maps.DeleteFunc(l.byKey, func(key string, _ missingName) bool { return match == nil || match(key) })
}

// forget forgets the versions for which match returns true, or all versions if match is nil.
func (a *missingVersions) forget(match func(version string) bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for version := range a.until {
		if match == nil || match(version) {
			delete(a.until, version)
		}
	}
}
