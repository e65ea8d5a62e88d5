package migrate

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"claviger"
	"claviger/provider"
)

// metadataBatch is how many keys are asked for at once: it bounds a request's
// URL, which Hadoop's keys/metadata carries the names in.
const metadataBatch = 50

// survey is what the source has, what the target has, and what the journal
// knows, put together.
type survey struct {
	items   []Item // one per key of the source, sorted by name
	history *history
	// material: the source, a KMS, shows us key material, which we never ask for.
	material bool
	// onlyTarget are keys that the source does not have.
	onlyTarget []string
}

// look reads both sides. It changes nothing.
func (e *Engine) look(ctx context.Context, op string) (*survey, error) {
	if e.cfg.Source == nil {
		return nil, errNoSource(op)
	}
	names, err := e.cfg.Source.Keys(ctx)
	if err != nil {
		return nil, e.sourceError(ctx, op, "", err)
	}
	slices.Sort(names)
	names = slices.Compact(names)
	sv := &survey{}
	// Other sources' runs do not matter: what they brought is found at the target.
	if sv.history, err = e.read(ctx, e.cfg.Source.URI()); err != nil {
		return nil, err
	}
	here, err := e.cfg.Target.Keys(ctx)
	if err != nil {
		return nil, err
	}
	for _, k := range here {
		if _, found := slices.BinarySearch(names, k); !found {
			sv.onlyTarget = append(sv.onlyTarget, k)
		}
	}
	slices.Sort(sv.onlyTarget)
	askVersions := true
	for batch := range slices.Chunk(names, metadataBatch) {
		theirs, refusals, err := e.sourceMetadata(ctx, op, batch)
		if err != nil {
			return nil, err
		}
		ours, err := e.cfg.Target.Metadata(ctx, batch...)
		if err != nil {
			return nil, err
		}
		if len(ours) != len(batch) || len(theirs) != len(batch) {
			return nil, claviger.Errorf(op, claviger.Internal, "", "asked for the metadata of %d keys, got %d from the source and %d from the target", len(batch), len(theirs), len(ours))
		}
		for i, name := range batch {
			if theirs[i] == nil && refusals[i] == nil {
				continue // deleted since we were told its name
			}
			it, err := e.judge(ctx, sv, name, theirs[i], ours[i], refusals[i])
			if err != nil {
				return nil, err
			}
			if askVersions && theirs[i] != nil && it.SourceVersions == nil {
				if it.SourceVersions, askVersions, err = e.sourceVersions(ctx, sv, name); err != nil {
					return nil, err
				}
			}
			sv.items = append(sv.items, it)
		}
	}
	return sv, nil
}

// sourceMetadata asks for a batch; where the source refuses, for each key by
// itself, because one unreadable key makes Hadoop refuse them all.
func (e *Engine) sourceMetadata(ctx context.Context, op string, names []string) ([]*claviger.Metadata, []error, error) {
	refusals := make([]error, len(names))
	ms, err := e.cfg.Source.Metadata(ctx, names...)
	if err == nil {
		return ms, refusals, nil
	}
	if !refused(err) {
		return nil, nil, e.sourceError(ctx, op, "", err)
	}
	ms = make([]*claviger.Metadata, len(names))
	for i, name := range names {
		one, err := e.cfg.Source.Metadata(ctx, name)
		switch {
		case err == nil && len(one) == 1:
			ms[i] = one[0]
		case err != nil && refused(err):
			refusals[i] = err
		case err != nil:
			return nil, nil, e.sourceError(ctx, op, name, err)
		}
	}
	return ms, refusals, nil
}

// sourceVersions asks for the names of a key's versions. They are only for the
// report; a source that does not tell (a KMS does so only with the right GET,
// which would show us material too) is not asked again. Material is wiped.
func (e *Engine) sourceVersions(ctx context.Context, sv *survey, key string) (names []string, again bool, err error) {
	vs, err := e.cfg.Source.Versions(ctx, key)
	if err != nil {
		if ctx.Err() != nil {
			return nil, false, e.sourceError(ctx, "migrate.Versions", key, err)
		}
		// A key-level refusal says nothing of the next key.
		return nil, claviger.Is(err, claviger.KeyDenied), nil
	}
	_, remote := e.cfg.Source.(provider.EDEKService)
	for _, v := range vs {
		if len(v.Material) > 0 {
			v.Material.Wipe()
			sv.material = sv.material || remote
		}
		names = append(names, v.Name)
	}
	return names, true, nil
}

// judge says what is to be done with one key.
func (e *Engine) judge(ctx context.Context, sv *survey, name string, theirs, ours *claviger.Metadata, refusal error) (Item, error) {
	before, known := sv.history.items[name]
	if refusal != nil {
		if known && before.State == Done && ours != nil {
			return before, nil // it is here; that it may no longer be read there changes nothing
		}
		return Item{Key: name, State: Refused, Why: fmt.Sprintf("the source refused us: %v; %s", refusal, e.rightsCure(name, refusal))}, nil
	}
	it := Item{Key: name, State: Planned, Source: fieldsOf(theirs), Count: e.count(theirs)}
	if known {
		it.SourceVersions, it.Started = before.SourceVersions, before.Started
		if len(it.SourceVersions) != theirs.Versions {
			it.SourceVersions = nil // rolled there since
		}
		if before.State == Importing {
			// What was begun has its HSM keys counted already.
			it.State, it.Count = Importing, before.Count
		}
	}
	if ours == nil {
		switch {
		case known && before.State == Done:
			before.State = Deleted
			before.Why = "was migrated and has been deleted here since, so it is not brought back; delete it at the source too, or create it anew here"
			return before, nil
		case known && before.State == Deleted:
			return before, nil
		}
		if why := e.unsupported(theirs); why != "" {
			it.State, it.Why = Unsupported, why
		}
		return it, nil
	}
	if known && before.State == Done {
		before.Why = ""
		if n := theirs.Versions - before.Source.Versions; n > 0 {
			before.Why = fmt.Sprintf("rolled at the source since: %d more there, which are opened through the source", n)
		}
		if diffs := compare(before.Source, fieldsOf(theirs)); len(diffs) > 0 {
			return conflict(it, diffs, "at the source it is another key than the one that was migrated"), nil
		}
		return before, nil
	}
	if diffs := compare(fieldsOf(theirs), fieldsOf(ours)); len(diffs) > 0 {
		return conflict(it, diffs, "a key of that name is here already"), nil
	}
	// It is here and the same: imported by a process that was killed before it
	// could write so down, or through another address of the source.
	adopted, err := e.adopt(ctx, it, known)
	return adopted, err
}

// adopt makes an item done for a key that is at the target.
func (e *Engine) adopt(ctx context.Context, it Item, known bool) (Item, error) {
	vs, err := e.cfg.Target.Versions(ctx, it.Key)
	if err != nil {
		return it, err
	}
	it.Adopted = !known || it.State != Importing
	it.State = Done
	it.Count = min(it.Count, len(vs))
	for _, v := range vs[:it.Count] {
		v.Material.Wipe()
		it.TargetVersions = append(it.TargetVersions, v.Name)
	}
	ended := e.now()
	it.Ended = &ended
	return it, nil
}

// count is how many versions the target shall make.
func (e *Engine) count(m *claviger.Metadata) int {
	if e.cfg.Versions == Current {
		return 1
	}
	return m.Versions
}

// unsupported says why the target could not hold the key; "" where it can.
func (e *Engine) unsupported(m *claviger.Metadata) string {
	algorithm, _, _ := strings.Cut(m.Cipher, "/")
	switch {
	case !strings.EqualFold(algorithm, "AES"):
		return fmt.Sprintf("cipher %q: only AES keys can be made; copy the zone's files into a new zone with an AES key (distcp)", m.Cipher)
	case m.BitLength != 128 && m.BitLength != 192 && m.BitLength != 256:
		return fmt.Sprintf("length %d: AES keys have 128, 192 or 256 bits; copy the zone's files into a new zone (distcp)", m.BitLength)
	case m.Versions < 1:
		return fmt.Sprintf("the source counts %d versions; a key has one at least: look at it there (hadoop key list -metadata)", m.Versions)
	case e.count(m) > e.cfg.MaxVersions:
		return fmt.Sprintf("the source counts %d versions, more than the %d that are made of one key; use --versions current", m.Versions, e.cfg.MaxVersions)
	}
	return ""
}

func conflict(it Item, diffs []Difference, what string) Item {
	var parts []string
	for _, d := range diffs {
		parts = append(parts, fmt.Sprintf("%s %s there, %s here", d.Field, d.Source, d.Target))
	}
	it.State = Conflict
	it.Why = fmt.Sprintf("%s, but with other metadata: %s; rename the zone's key, or delete the one that nobody uses, before the next run", what, strings.Join(parts, "; "))
	return it
}

// Difference is one field of one key that is not the same on both sides. The
// values are written for people.
type Difference struct {
	Field  string `json:"field"`
	Source string `json:"source"`
	Target string `json:"target"`
}

// compare lists what differs, the number of versions left out: that of the
// target grows by rolls.
func compare(source, target Fields) []Difference {
	var d []Difference
	add := func(field, s, t string) { d = append(d, Difference{field, s, t}) }
	if source.Cipher != target.Cipher {
		add("cipher", strconv.Quote(source.Cipher), strconv.Quote(target.Cipher))
	}
	if source.Length != target.Length {
		add("length", strconv.Itoa(source.Length), strconv.Itoa(target.Length))
	}
	if s, t := quoteOrNone(source.Description), quoteOrNone(target.Description); s != t {
		add("description", s, t)
	}
	if !source.Created.Equal(target.Created) {
		add("created", source.Created.UTC().Format(timeFormat), target.Created.UTC().Format(timeFormat))
	}
	for _, name := range slices.Sorted(maps.Keys(source.Attributes)) {
		if v, ok := target.Attributes[name]; !ok {
			add("attribute "+strconv.Quote(name), strconv.Quote(source.Attributes[name]), "none")
		} else if v != source.Attributes[name] {
			add("attribute "+strconv.Quote(name), strconv.Quote(source.Attributes[name]), strconv.Quote(v))
		}
	}
	for _, name := range slices.Sorted(maps.Keys(target.Attributes)) {
		if _, ok := source.Attributes[name]; !ok {
			add("attribute "+strconv.Quote(name), "none", strconv.Quote(target.Attributes[name]))
		}
	}
	return d
}

// timeFormat has the milliseconds that creation times have.
const timeFormat = "2006-01-02T15:04:05.000Z07:00"

func quoteOrNone(s *string) string {
	if s == nil {
		return "none"
	}
	return strconv.Quote(*s)
}

func ptr(t time.Time) *time.Time { return &t }
