// Package migrate moves the metadata of encryption-zone keys from a running
// Hadoop KMS (or any other provider) to a provider that makes its own key
// versions: an HSM. Material never moves.
//
// For each key of the source the target is told name, cipher, length,
// description, attributes, creation time, how many versions to make, and from which
// number on. The
// work is written down in the metastore's journal before and after each step:
//
//	run ""      {"source": ..., "state": "running"}
//	run "k1"    planned -> importing -> done
//	run "k2"    planned -> importing -> failed
//
// so that a process that is killed at any point is followed by one that goes on
// from there, with neither a second HSM key nor a lost one. The source is only
// ever read.
//
// Each name that the source lists has a record, whether its metadata can be read or
// not: what was not read is never taken for absent. Of a source that answers to every
// spelling of a name, the metastore has an alias of each key (metastore.SetAlias),
// written before the key is made.
//
// Plan says beforehand what Run would do; Status and Verify say afterwards what
// was done and whether it still is so; Finish says when the source may go.
package migrate

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"time"

	"claviger"
	"claviger/audit"
	"claviger/metastore"
	"claviger/provider"
)

// LockName is the metastore's lock under which one process migrates, however
// many are told to.
const LockName = "migration"

// Source is what keys are taken over from. Nothing but its reading methods is
// ever called.
type Source interface {
	provider.Reader
	URI() string
}

// Target is what keys are taken over into.
type Target interface {
	provider.Reader
	provider.Importer
	URI() string
}

// Adopter is implemented by a target whose lost records an operator can have made anew
// from what an HSM holds (hsm.Provider). Such a record has neither the attributes nor the
// creation time of the key that was lost.
type Adopter interface {
	// Adopted returns those of the names whose keys have a record that was made so. A key
	// that a user made is not among them.
	Adopted(ctx context.Context, names ...string) ([]string, error)
	// Retake gives such a key the description, attributes and creation time of m. Kinds
	// KeyNotFound; Invalid where the key is none of these, or has another cipher or length.
	Retake(ctx context.Context, m claviger.Metadata) error
}

// Store is the part of a metastore that a migration needs.
type Store interface {
	metastore.Journal
	metastore.Usage
	metastore.Settings
	metastore.Numbers
	metastore.LastUses
	metastore.Shelf
	metastore.Clock
	Lock(ctx context.Context, name string) (unlock func(), err error)
	TryLock(ctx context.Context, name string) (unlock func(), ok bool, err error)
}

// Versions says how many versions a key gets at the target.
type Versions string

// The choices. Old EDEKs are opened through the source with each of them.
const (
	Auto    Versions = "auto"    // one where the source numbers its versions, else as many as it counts
	All     Versions = "all"     // as many as the source counts
	Current Versions = "current" // one
)

// Valid tells whether v is one of the choices.
func (v Versions) Valid() bool { return v == Auto || v == All || v == Current }

// Progress is how far a run has come.
type Progress struct {
	Keys, KeysTotal         int // of those that this run imports
	Versions, VersionsTotal int // HSM keys; a resumed key counts wholly
	Key                     string
	Step                    string // what was just made durable
}

// Config is what an Engine is made of.
type Config struct {
	// Source may be nil for Status and Finish, which live on the journal: when a
	// migration is finished, the source is no longer configured.
	Source Source
	Target Target
	Store  Store
	// Beside are the other sources that are configured.
	Beside []Source
	// Versions is Auto where empty.
	Versions Versions
	// Gap is how many numbers are left free above those that a source which numbers its
	// versions has used, for its rolls after the key was taken over.
	Gap int
	// Ours are versions at the target, full names, whose EDEKs are the target's by the
	// operator's word, though the source has other versions of these names.
	Ours map[string]bool
	// Theirs are versions of keys that were deleted at the target, full names: all EDEKs of
	// these names are the source's by the operator's word.
	Theirs map[string]bool
	// Adopted are keys, and AllAdopted stands for all, that were taken over from the source
	// before a backup that does not know it was restored, by the operator's word. Run takes
	// them over with the versions that are here, where the target is an Adopter and its
	// records of them were made by an operator's adoption.
	Adopted    []string
	AllAdopted bool
	// MaxVersions bounds what a source may make us generate for one key; 0 is
	// 1,000.
	MaxVersions int
	// Parallel is how many keys are imported side by side; 0 is 4.
	Parallel int
	// Probes are the checks of Plan that need more than the fields above.
	Probes Probes
	// Progress is called after each durable step, if not nil, never twice at a
	// time.
	Progress func(Progress)
	// OnStep is called after each durable step with its key ("" for the run's
	// own) and name, never twice at a time. An error from it ends the run as a
	// crash at that point would. Tests use it; nil is none.
	OnStep func(key, step string) error
	// Now is time.Now where nil.
	Now func() time.Time
	// Audit, if not nil, is told of each key that is imported, or could not be; where
	// it is a Guard, the attempt is recorded before. Caller is who does it.
	Audit  audit.Logger
	Caller claviger.Caller
	// Host names this machine in the journal; "" is the machine's own name.
	Host string
	Log  *slog.Logger // nil is slog.Default()
}

// Engine does the work. Its methods may be called at the same time; Run takes a
// lock.
type Engine struct {
	cfg Config
	log *slog.Logger
}

// New checks the configuration.
func New(cfg Config) (*Engine, error) {
	const op = "migrate.New"
	if cfg.Target == nil || cfg.Store == nil {
		return nil, claviger.Errorf(op, claviger.Internal, "", "no target or no store")
	}
	if cfg.Versions == "" {
		cfg.Versions = Auto
	}
	if !cfg.Versions.Valid() {
		return nil, claviger.Errorf(op, claviger.Invalid, "", "versions: %q is none of %q, %q, %q", cfg.Versions, Auto,
			All, Current)
	}
	if cfg.MaxVersions <= 0 {
		cfg.MaxVersions = 1000
	}
	if cfg.Parallel <= 0 {
		cfg.Parallel = 4
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Log == nil {
		cfg.Log = slog.Default()
	}
	if cfg.Host == "" {
		// A host without a name is rare, and no reason not to migrate.
		cfg.Host, _ = os.Hostname()
	}
	return &Engine{cfg: cfg, log: cfg.Log}, nil
}

// now is the journal's clock: UTC, milliseconds.
func (e *Engine) now() time.Time { return e.cfg.Now().UTC().Truncate(time.Millisecond) }

// The properties that the messages of this package speak of.
const (
	propInitiate  = "cloudera.hsmkp.initiatemigration"
	propSource    = "hadoop.kms.key.provider.reencryption.source.uri"
	propReencrypt = "hadoop.kms.reencryption.crypto.enable"
	propTrustee   = "cloudera.hsmkp.ktkms.config.dir"
	propProvider  = "hadoop.kms.key.provider.uri"

	// PropVersions, PropGap, PropOurs and PropTheirs set Config.Versions, Gap, Ours and Theirs.
	PropVersions = "claviger.migration.versions"
	PropGap      = "claviger.migration.gap"
	PropOurs     = "claviger.migration.ours"
	PropTheirs   = "claviger.migration.theirs"
)

// ErrNoSource marks what a source is needed for, where none is configured.
var ErrNoSource = errors.New("no source")

// noSource is what a migration without a source gets.
func (e *Engine) noSource(ctx context.Context, op string) error {
	h, err := e.read(ctx, "")
	if err != nil {
		return err
	}
	if last := h.last(); last != nil && last.State == Finished && last.Ended != nil {
		return claviger.E(op, claviger.Invalid, "",
			fault(ErrNoSource,
				"the migration from %s was finished at %s, and no source is configured any more, so there is nothing "+
					"to read; claviger migrate status shows what was done. For another migration set %s",
				last.Source, last.Ended.UTC().Format(time.RFC3339), propSource))
	}
	return claviger.E(op, claviger.Invalid, "",
		fault(ErrNoSource,
			"there is nothing to migrate from: set %s to the old KMS (kms://https@HOST:PORT/kms) in kms-site.xml, or "+
				"name it second in %s", propSource, propProvider))
}

// sourceError puts into words why the source could not be read, with the
// property at the source that would allow it.
func (e *Engine) sourceError(ctx context.Context, op, key string, err error) error {
	if ctx.Err() != nil {
		return stopped(ctx, op, key)
	}
	uri := e.cfg.Source.URI()
	if errors.Is(err, provider.ErrItself) {
		return claviger.E(op, claviger.SourceRefused, key, fault(err, "the source %s cannot be used: %v; correct %s",
			uri,
			provider.ErrItself, propSource))
	}
	if login := (*provider.LoginError)(nil); errors.As(err, &login) {
		kind := claviger.SourceUnreachable // a KDC may be there again later
		if refused(err) {
			kind = claviger.SourceRefused
		}
		return claviger.E(op, kind, key, fault(err, "this server's own login at the source %s failed: %s", uri,
			claviger.Reason(err)))
	}
	switch claviger.KindOf(err) {
	case claviger.Denied, claviger.KeyDenied, claviger.SourceRefused, claviger.Unsupported:
		return claviger.E(op, claviger.SourceRefused, key, fault(err, "the source %s refused us: %s", uri,
			e.whyRefused(ctx, key, err)))
	case claviger.Unavailable, claviger.SourceUnreachable:
		hint := "see that it runs and that its port can be reached from here"
		if better := e.cfg.Probes.whyUnreachable(ctx); better != "" {
			hint = better
		}
		return claviger.E(op, claviger.SourceUnreachable, key, fault(err, "the source %s does not answer: %s; %s", uri,
			claviger.Reason(err), hint))
	}
	kind := claviger.KindOf(err)
	if kind == claviger.Internal { // an answer that makes no sense, or a 500
		kind = claviger.SourceUnreachable
	}
	return claviger.E(op, kind, key, fault(err, "the source %s answers, and cannot be read: %s; see its log", uri,
		claviger.Reason(err)))
}

// stopped is the error of work that its caller ended: an operator, by a signal, or a
// request whose time is up. It is no fault of the source or the target.
func stopped(ctx context.Context, op, key string) error {
	what := "interrupted"
	if errors.Is(ctx.Err(), context.DeadlineExceeded) {
		what = "the time for it is up"
	}
	return claviger.E(op, claviger.Unavailable, key,
		fault(ctx.Err(), "%s; what was done is kept, and the next run goes on from here", what))
}

// worded is an error with a text of its own.
type worded struct {
	text string
	err  error
}

func (w *worded) Error() string { return w.text }
func (w *worded) Unwrap() error { return w.err }

// fault words an error for an operator, and keeps it for errors.Is.
func fault(err error, format string, args ...any) error {
	return &worded{text: fmt.Sprintf(format, args...), err: err}
}

// noAnswer tells the errors of a source that is not there, as against one that
// answers and cannot do it.
func noAnswer(err error) bool {
	return claviger.Is(err, claviger.Unavailable) || claviger.Is(err, claviger.SourceUnreachable)
}

// whyRefused is the source's refusal with its cure, which stands in it already where we
// know the source's words.
func (e *Engine) whyRefused(ctx context.Context, key string, err error) string {
	reason := claviger.Reason(err)
	switch {
	case e.ranger(ctx) || !strings.Contains(reason, ".xml must admit "):
		return reason + "; " + e.rightsCure(ctx, key, err)
	case e.seenAs(err) == "root":
		return reason +
			"; this command asks as root: run it as the user that the server runs as (sudo -u USER), who must be " +
			"admitted in root's place"
	}
	return reason
}

// rightsCure names what at the source would let us read: properties of its
// kms-acls.xml, or the policies of a Ranger KMS. key "" is the list of names.
func (e *Engine) rightsCure(ctx context.Context, key string, err error) string {
	who := e.admitted(err)
	if e.ranger(ctx) {
		return fmt.Sprintf("the source is a Ranger KMS: in Ranger Admin, a policy of its service must allow %s Get "+
			"Keys and Get Metadata (getkeys, getmetadata) on key *, and Decrypt EEK (decrypteek) for "+
			"re-encryption", who)
	}
	if key == "" {
		return fmt.Sprintf("at the source, in kms-acls.xml: let hadoop.kms.acl.GET_KEYS and "+
			"hadoop.kms.acl.GET_METADATA admit %s, and no hadoop.kms.blacklist.* of these name it", who)
	}
	if claviger.Is(err, claviger.Denied) {
		return fmt.Sprintf("at the source, in kms-acls.xml: let hadoop.kms.acl.GET_METADATA admit %s", who)
	}
	return fmt.Sprintf("at the source, in kms-acls.xml: let whitelist.key.acl.READ admit %s (it works beside the "+
		"key's own entries), and hadoop.kms.acl.GET_METADATA too", who)
}

// us is who we are at the source, for messages: as far as it is known here.
func (e *Engine) us() string {
	p := &e.cfg.Probes
	if k, ok := e.cfg.Source.(interface{ WantsKerberos() bool }); ok && p.KerberosUser != "" && k.WantsKerberos() {
		return p.KerberosUser
	}
	if p.User != "" {
		return p.User
	}
	return "our user"
}

// seenAs is who we are at the source: as it says in the error, or else as far as it is
// known here.
func (e *Engine) seenAs(err error) string {
	if seen := (*provider.SeenAs)(nil); errors.As(err, &seen) {
		return seen.User
	}
	return e.us()
}

// admitted is who must be let in at the source, for cures: never root, as whom a command
// may be run by mistake. err is the source's refusal, or nil.
func (e *Engine) admitted(err error) string {
	if who := e.seenAs(err); who != "root" {
		return who
	}
	return "the user that the server runs as (as whom to run this command, by sudo -u, and not as root)"
}

// ranger reports whether the source says that it is a Ranger KMS.
func (e *Engine) ranger(ctx context.Context) bool {
	r, ok := e.cfg.Source.(interface {
		Ranger(ctx context.Context) bool
	})
	return ok && r.Ranger(ctx)
}

// refused tells the errors by which a source says no, as against not
// answering.
func refused(err error) bool {
	return claviger.Is(err, claviger.Denied) || claviger.Is(err, claviger.KeyDenied) ||
		claviger.Is(err, claviger.SourceRefused)
}
