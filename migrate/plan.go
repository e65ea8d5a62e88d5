package migrate

import (
	"context"
	"fmt"
	"time"

	"claviger"
)

// Plan is the work that a run would do, and the results of the checks.
type Plan struct {
	Format   string    `json:"format"` // "claviger migrate plan 1"
	At       time.Time `json:"at"`
	Source   string    `json:"source"`
	Target   string    `json:"target"`
	Versions Versions  `json:"versionsMode"`
	Checks   []Check   `json:"checks"`
	// Read: the source's list of keys was read. Without it, an empty list of keys means unknown, not none.
	Read   bool      `json:"read"`
	Keys   []KeyLine `json:"keys"`
	Counts Counts    `json:"counts"`
	// Complete: a run has taken over every key that the source lists, and another run would do nothing.
	Complete bool `json:"complete"`
	// OnlyTarget are keys that the source does not have. A run leaves them alone.
	OnlyTarget []string `json:"onlyTarget,omitempty"`
}

// Ready reports whether a run would take over every key and no check failed.
func (p *Plan) Ready() bool {
	if p.Counts.Blocked > 0 {
		return false
	}
	for _, c := range p.Checks {
		if c.stops() {
			return false
		}
	}
	return true
}

// Plan changes nothing. If the source cannot be read, it returns the checks together with the error, because they give
// the reason.
func (e *Engine) Plan(ctx context.Context) (*Plan, error) {
	const op = "migrate.Plan"
	if e.cfg.Source == nil {
		return nil, e.noSource(ctx, op)
	}
	p := &Plan{Format: "claviger migrate plan 1", At: e.now(), Source: e.cfg.Source.URI(), Target: e.cfg.Target.URI(),
		Versions: e.cfg.Versions, Keys: []KeyLine{}}
	var facts []HostFacts
	p.Checks, facts = e.cfg.Probes.run(ctx, e.now)
	sv, err := e.survey(ctx, op)
	if ctx.Err() != nil { // the results of the checks now come from the interruption, not from the source
		return nil, stopped(ctx, op, "")
	}
	if c, isSelf := e.cfg.Probes.checkSelf(ctx, facts, err); isSelf {
		p.Checks = append(p.Checks, c)
	}
	if err != nil {
		p.Checks = append(p.Checks, e.cfg.Probes.hdfs(ctx, facts, false), Check{Name: "keys of the source",
			Status: Failure, Measured: "not readable", Cure: claviger.Reason(err)})
		return p, err
	}
	p.Read = true
	if err := e.planKeys(ctx, p, sv); err != nil {
		return nil, err
	}
	return p, e.planChecks(ctx, p, sv, facts)
}

// planKeys adds the keys of the survey to the plan.
func (e *Engine) planKeys(ctx context.Context, p *Plan, sv *survey) error {
	conflicts, err := e.conflictsOf(ctx)
	if err != nil {
		return err
	}
	for _, c := range sv.duplicates { // no run has recorded them yet
		if key, _ := claviger.KeyOfVersion(c.Version); conflicts[key].Version == "" {
			conflicts[key] = c
		}
	}
	for _, it := range sv.items {
		if c, ok := conflicts[it.Key]; ok && it.State == Planned {
			it.Why = c.Why
		}
		if c, ok := conflicts[it.Key]; ok && it.State == Done {
			it.State, it.Why = Conflict, c.Why
		}
		p.Keys = append(p.Keys, lineOf(it))
		p.Counts.add(it)
	}
	p.OnlyTarget = sv.onlyTarget
	last := sv.history.last()
	p.Complete = last != nil && (last.State == Complete || last.State == Finished) &&
		p.Counts.Blocked+p.Counts.Planned == 0
	return nil
}

// planChecks adds the checks that need the survey.
func (e *Engine) planChecks(ctx context.Context, p *Plan, sv *survey, facts []HostFacts) error {
	p.Checks = append(p.Checks, e.cfg.Probes.hdfs(ctx, facts, p.Complete), e.readable(ctx, sv),
		e.room(ctx, p.Counts.NewVersions))
	p.Checks = append(p.Checks, e.checkOtherSources(ctx, sv)...)
	trials := e.tryRights(ctx, sv)
	p.Checks = append(p.Checks, e.rights(ctx, trials)...)
	p.Checks = append(p.Checks, e.rules(ctx, trials)...)
	if c, found := sv.spelling.check(sv.items); found {
		p.Checks = append(p.Checks, c)
	}
	if sv.material {
		p.Checks = append(p.Checks, Check{Name: "material at the source", Status: Warning,
			Measured: "the source shows us key material",
			Cure: fmt.Sprintf("not needed here: at the source, in kms-acls.xml, set hadoop.kms.acl.GET so that it "+
				"does not admit %s (if it is not set, it is *), or name %s in hadoop.kms.blacklist.GET",
				e.admitted(nil), e.admitted(nil))})
	}
	busy, err := e.busy(ctx)
	if busy {
		p.Checks = append(p.Checks, Check{Name: "no other run", Status: Warning, Measured: migratingNow,
			Cure: "wait for it: claviger migrate status"})
	}
	return err
}

// seeBelow is the advice of a plan if keys cannot be read.
const seeBelow = "see the reason below each key"

// readable checks that the source lets us read every key that it lists.
func (e *Engine) readable(ctx context.Context, sv *survey) Check {
	c := Check{Name: "rights at the source", Measured: fmt.Sprintf("all %d keys are readable", len(sv.items))}
	if len(sv.items) == 0 {
		// A keystore file whose path was mistyped does not exist, and so has no keys.
		c.Status, c.Needed, c.Measured = NotTried, true, "the source lists no key"
		c.Cure = "check that " + propSource + " names the KMS whose keys HDFS uses, and the right path or port of it"
		return c
	}
	refusals, unread := 0, 0
	for i, err := range sv.unread {
		switch {
		case err == nil:
			continue
		case refused(err):
			refusals++
		default:
			unread++
		}
		// The report has the reason below each key.
		if refused(err) {
			c.Cure = e.rightsCure(ctx, sv.items[i].Key, err)
		} else if refusals == 0 {
			c.Cure = seeBelow
		}
	}
	if refusals+unread > 0 {
		c.Status, c.Measured = Failure, fmt.Sprintf("of %d keys, %d are refused to us and %d cannot be read there",
			len(sv.items), refusals, unread)
	}
	return c
}

// room compares the number of keys that a run would make with the free room on the token.
func (e *Engine) room(ctx context.Context, need int) Check {
	c := Check{Name: "room in the HSM"}
	if e.cfg.Probes.Room == nil {
		c.Status, c.Measured = NotTried, fmt.Sprintf("%d new keys; the target does not report how much room it has",
			need)
		return c
	}
	free, known, err := e.cfg.Probes.Room(ctx)
	switch {
	case err != nil:
		c.Status, c.Measured, c.Cure = Failure, claviger.Reason(err), "check that the HSM can be reached"
	case !known:
		c.Status, c.Measured = NotTried, fmt.Sprintf("%d new keys; the token does not report how much room it has",
			need)
	case free < need:
		c.Status, c.Measured = Failure, fmt.Sprintf("%d new keys, room for %d", need, free)
		c.Cure = "run with --versions current (one new version a key), or make room in the token"
	default:
		c.Measured = fmt.Sprintf("%d new keys, room for %d", need, free)
	}
	return c
}

// busy reports whether another process migrates now.
func (e *Engine) busy(ctx context.Context) (bool, error) {
	unlock, ok, err := e.cfg.Store.TryLock(ctx, LockName)
	if ok {
		unlock()
	}
	return err == nil && !ok, err
}
