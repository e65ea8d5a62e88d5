package kms

import (
	"context"
	"fmt"
	"strings"
	"time"

	"claviger"
	"claviger/buildinfo"
	"claviger/console/pages"
	"claviger/keyring"
	"claviger/migrate"
	"claviger/provider/hsm"
)

// facts returns what the console shows about this node. details permits names of hosts and files.
func (s *server) facts(ctx context.Context, e *endpoint, details bool) []pages.Group {
	groups := []pages.Group{s.serverFacts(e, details)}
	if p, ok := s.svc.Primary.(*hsm.Provider); ok {
		groups = append(groups, hsmFacts(p, details))
	}
	if certificates := s.certificateFacts(details); len(certificates.Facts) > 0 {
		groups = append(groups, certificates)
	}
	if details {
		groups = append(groups, s.nodeFacts(ctx))
	}
	return groups
}

func (s *server) serverFacts(e *endpoint, details bool) pages.Group {
	build := buildinfo.Read()
	g := pages.Group{Title: "Server", Facts: []pages.Fact{
		{Name: "Build", Value: build.String()},
		{Name: "Started", Value: stamp(s.svc.self.Since)},
		{Name: "Ready-made EDEKs", Value: fmt.Sprint(s.ring.Queued())},
	}}
	rules := s.policy.Status()
	acls := pages.Fact{Name: "Rules of kms-acls.xml", Value: "loaded at " + stamp(rules.Loaded)}
	if rules.Err != nil {
		acls.Bad = true
		acls.Value += "; the file has changed since, and cannot be used"
	}
	g.Facts = append(g.Facts, acls)
	if details {
		g.Facts = append(g.Facts, pages.Fact{Name: "KMS", Value: e.URL()},
			pages.Fact{Name: "Keys are in", Value: s.svc.Primary.URI()},
			pages.Fact{Name: "Configuration", Value: s.conf.Dir()})
		if s.svc.Store != nil {
			g.Facts = append(g.Facts, pages.Fact{Name: "Metastore", Value: s.svc.Store.URI()})
		}
	}
	return g
}

func hsmFacts(p *hsm.Provider, details bool) pages.Group {
	used, limit := p.Sessions()
	g := pages.Group{Title: "HSM", Facts: []pages.Fact{
		{Name: "Sessions in use", Value: fmt.Sprintf("%d of %d", used, limit), Bad: used >= limit}}}
	if last, ok := p.Last(); ok {
		f := pages.Fact{Name: "Last encryption", Value: fmt.Sprintf("%s, in %s", stamp(last.At),
			last.Took.Round(time.Microsecond))}
		if last.Err != nil {
			f.Bad = true
			f.Value += ", failed"
		}
		g.Facts = append(g.Facts, f)
	}
	held := p.LastHoldings()
	g.Facts = append(g.Facts, pages.Fact{Name: "Key versions missing on the token", Value: fmt.Sprint(len(held.Lost)),
		Bad: len(held.Lost) > 0})
	if err := p.Missing(); err != nil {
		return g
	}
	info := p.Info()
	g.Facts = append(g.Facts, pages.Fact{Name: "Model", Value: strings.TrimSpace(info.Manufacturer + " " + info.Model)},
		pages.Fact{Name: "Firmware", Value: info.Firmware},
		pages.Fact{Name: "Profile", Value: fmt.Sprintf("%s, with %s", info.Profile, info.Mechanism)})
	if details {
		g.Facts = append(g.Facts, pages.Fact{Name: "Token", Value: fmt.Sprintf("%s (serial %s, slot %d)", info.Label,
			info.Serial, info.Slot)})
	}
	return g
}

func (s *server) certificateFacts(details bool) pages.Group {
	g := pages.Group{Title: "Certificates"}
	list, unreadable, err := s.svc.certificates()
	if err != nil {
		g.Facts = append(g.Facts, pages.Fact{Name: "All", Value: "cannot be read; the check certificates says why",
			Bad: true})
	}
	for range unreadable {
		g.Facts = append(g.Facts, pages.Fact{Name: "A store", Value: "cannot be read; the check certificates says why",
			Bad: true})
	}
	const day = 24 * time.Hour
	for _, c := range list {
		f := pages.Fact{Name: c.Store, Value: fmt.Sprintf("%d days left, until %s", int(time.Until(c.NotAfter)/day),
			stamp(c.NotAfter)), Bad: c.fault() != nil}
		if details {
			f.Value += " (" + c.Subject + ")"
		}
		g.Facts = append(g.Facts, f)
	}
	return g
}

// nodeFacts lists the servers of the metastore.
func (s *server) nodeFacts(ctx context.Context) pages.Group {
	g := pages.Group{Title: "Nodes of this metastore"}
	if s.agreement == nil {
		g.Facts = append(g.Facts, pages.Fact{Name: "This node", Value: s.svc.self.Host + ", alone"})
		return g
	}
	own, records, err := s.svc.nodeRecords(ctx)
	if err != nil {
		g.Facts = append(g.Facts, pages.Fact{Name: "Nodes", Value: "not known: " + err.Error(), Bad: true})
	}
	for _, n := range records {
		f := pages.Fact{Name: n.Host, Value: fmt.Sprintf("process %d, since %s, version %s", n.PID, stamp(n.Since),
			n.Version)}
		if n.ID == own.ID {
			f.Value += " (this node)"
		} else if differ := own.differing(n); len(differ) > 0 {
			f.Bad = true
			f.Value += "; has other values of " + strings.Join(differ, ", ")
		}
		g.Facts = append(g.Facts, f)
	}
	return g
}

// origin says where a key was born.
func (s *server) origin(ctx context.Context, key *claviger.Metadata, details bool) string {
	o, migrated, err := s.ring.OriginOf(ctx, key)
	switch {
	case err != nil:
		return "not known: the journal of migrations cannot be read"
	case !migrated:
		return "made here"
	}
	text := "taken over from a source by a migration"
	if details {
		text = "taken over from " + o.Source + " by a migration"
	}
	if len(o.Made) > 0 {
		text += fmt.Sprintf("; the versions %s replace those of the source", strings.Join(o.Made, ", "))
	}
	return text
}

// migrationPage reads what the page Migration shows. It calls no source.
func (s *server) migrationPage(ctx context.Context) (*pages.Migration, error) {
	target, ok := s.svc.Primary.(migrate.Target)
	if s.svc.Store == nil || !ok {
		return nil, nil //nolint:nilnil // there is no journal
	}
	// Not Service.Engine, which examines this host.
	engine, err := migrate.New(migrate.Config{Target: target, Store: s.svc.Store, Log: s.log,
		Ours: s.set.ring.OwnVersions, Theirs: s.set.ring.SourceVersions})
	if err != nil {
		return nil, err
	}
	m := &pages.Migration{}
	if m.Status, err = engine.Status(ctx); err != nil {
		return nil, err
	}
	restart, err := s.svc.NotRestarted(ctx)
	if err != nil {
		return nil, err
	}
	if m.Obstacles, err = engine.Obstacles(ctx, migrate.FinishOptions{Since: time.Now().Add(-migrate.DefaultUnused),
		NotRestarted: restart}); err != nil {
		return nil, err
	}
	if m.Verdict, err = engine.LastVerdict(ctx); err != nil {
		return nil, err
	}
	for _, src := range s.ring.Sources() {
		m.Sources = append(m.Sources, sourceFacts(src))
	}
	if unwritten := s.ring.CheckUses(ctx); unwritten != nil {
		m.Obstacles = append(m.Obstacles, unwritten.Error())
	}
	return m, nil
}

// sourceFacts describes a source.
func sourceFacts(src keyring.SourceState) pages.Source {
	p := pages.Source{URI: src.URI, State: "not called yet"}
	if src.LastCall != nil {
		p.State, p.Last = "answers", src.LastCall.At
	}
	if src.LastCall != nil && src.LastCall.Err != nil {
		p.State, p.Bad = "the last call failed: "+claviger.Reason(src.LastCall.Err), true
	}
	if src.State == "open" {
		p.State, p.Bad = "not called for a while after failures", true
		if src.LastFailure != nil {
			p.State += ": " + claviger.Reason(src.LastFailure.Err)
		}
	}
	return p
}

// stamp shows a time for an operator.
func stamp(t time.Time) string { return t.UTC().Format("2006-01-02 15:04:05 UTC") }
