// Package migrate moves the metadata of encryption-zone keys from a running Hadoop KMS, or any other provider,
// to a provider that makes its own key versions: an HSM. Material never moves.
//
// For each key of the source the target gets name, cipher, length, description, attributes, creation time, the
// number of versions to make, and their lowest number. The metastore's journal records the work before and
// after each step:
//
//	run ""      {"source": ..., "state": "running"}
//	run "k1"    planned -> importing -> done
//	run "k2"    planned -> importing -> failed
//
// If a process is killed at any point, the next process continues from there. No HSM key is made twice, and none is
// lost. The engine only reads the source.
//
// Each name that the source lists has a record, even if its metadata cannot be read: an unreadable key never counts as
// absent. For a source that answers to every spelling of a name, the metastore gets an alias of
// each key (metastore.SetAlias) before the key is made.
//
// Plan reports what Run would do. Status and Verify report what was done, and whether that is still true. Finish
// decides whether the source may be removed.
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

// LockName is the metastore's lock that lets one process at a time migrate.
const LockName = "migration"

// Source is a provider from which keys are taken over. The engine calls only its reading methods.
type Source interface {
	provider.Reader
	URI() string
}

// Target is the provider into which keys are taken over.
type Target interface {
	provider.Reader
	provider.Importer
	URI() string
}

// Adopter is implemented by a target whose lost records an operator can make again from the keys in an HSM
// (hsm.Provider). Such a record lacks the attributes and the creation time of the lost key.
type Adopter interface {
	// Adopted returns the names whose keys have such a record. Keys that users made have none.
	Adopted(ctx context.Context, names ...string) ([]string, error)
	// Retake gives such a key the description, attributes and creation time of m. Kinds: KeyNotFound; Invalid
	// if the key has no such record, or has another cipher or length.
	Retake(ctx context.Context, m claviger.Metadata) error
}

// Store is the part of a metastore that a migration needs.
type Store interface {
	metastore.Journal
	metastore.Usage
	metastore.Settings
	metastore.Numbers
	metastore.LastUses
	metastore.DeletedKeys
	metastore.Clock
	Lock(ctx context.Context, name string) (unlock func(), err error)
	TryLock(ctx context.Context, name string) (unlock func(), ok bool, err error)
}

// Versions chooses how many versions a key gets at the target.
type Versions string

// The choices. The source opens old EDEKs with each of them.
const (
	Auto    Versions = "auto"    // one if the source numbers its versions, else as many as it counts
	All     Versions = "all"     // as many as the source counts
	Current Versions = "current" // one
)

// Valid reports whether v is one of the choices.
func (v Versions) Valid() bool { return v == Auto || v == All || v == Current }

// Progress is the progress of a run.
type Progress struct {
	Keys, KeysTotal         int // of the keys that this run imports
	Versions, VersionsTotal int // HSM keys; a resumed key counts with all its versions
	Key                     string
	Step                    string // the step that was just made durable
}

// String describes the step.
func (p Progress) String() string {
	if p.Key == "" {
		return p.Step
	}
	return claviger.Printable(p.Key) + ": " + p.Step
}

// Config configures an Engine.
type Config struct {
	// Source may be nil for Status and Finish, which read the journal: after a migration the source is no
	// longer configured.
	Source Source
	Target Target
	Store  Store
	// OtherSources are the configured sources other than Source.
	OtherSources []Source
	// Versions is Auto if it is "".
	Versions Versions
	// Gap is the count of numbers that stay free above the used numbers of a source that numbers its versions. The
	// source may use them for rolls after the key was taken over.
	Gap int
	// Ours are full names of versions at the target. The operator has said that EDEKs of these names are the
	// target's, although the source has other versions of these names.
	Ours map[string]bool
	// Theirs are full names of versions of keys that were deleted at the target. The operator has said that all
	// EDEKs of these names are the source's.
	Theirs map[string]bool
	// Adopted are keys that, as the operator has said, were already taken over from the source, although the restored
	// backup of the metastore lacks this takeover. AllAdopted means all keys. Run keeps the versions that the target
	// has of them, if the target is an Adopter and has adopted them.
	Adopted    []string
	AllAdopted bool
	// MaxVersions is the highest number of versions that the target makes for one key; 0 is 1,000.
	MaxVersions int
	// Parallel is the number of keys that are imported concurrently; 0 is 4.
	Parallel int
	// Probes are the checks of Plan that need more than the fields above.
	Probes Probes
	// Progress, if not nil, is called after each durable step. Calls do not overlap.
	Progress func(Progress)
	// OnStep, if not nil, is called after each durable step with its key ("" for the run's own) and name. Calls
	// do not overlap. If it returns an error, the run ends as after a crash at that point. Tests use it.
	OnStep func(key, step string) error
	// Now is time.Now if nil.
	Now func() time.Time
	// Audit, if not nil, gets an event for each key that is imported or fails. If it is a Guard, it records the
	// attempt first. Caller is the acting user.
	Audit  audit.Logger
	Caller claviger.Caller
	// Host is this machine's name in the journal; "" reads it from the system.
	Host string
	Log  *slog.Logger // nil is slog.Default()
}

// Engine plans, runs, checks and ends a migration. Its methods may be called concurrently; Run takes a lock.
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
		// A host without a name can migrate too.
		cfg.Host, _ = os.Hostname()
	}
	return &Engine{cfg: cfg, log: cfg.Log}, nil
}

// now is the journal's clock: UTC, milliseconds.
func (e *Engine) now() time.Time { return e.cfg.Now().UTC().Truncate(time.Millisecond) }

// The properties that messages of this package name.
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

// ErrNoSource is in the error of work that needs a source, if no source is configured.
var ErrNoSource = errors.New("no source")

// noSource returns the error for a migration without a source.
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

// sourceError returns the error for a source that could not be read. Its text names the property at the source that
// would allow the reading.
func (e *Engine) sourceError(ctx context.Context, op, key string, err error) error {
	if ctx.Err() != nil {
		return stopped(ctx, op, key)
	}
	uri := e.cfg.Source.URI()
	if errors.Is(err, provider.ErrSourceIsSelf) {
		return claviger.E(op, claviger.SourceRefused, key, fault(err, "the source %s cannot be used: %v; correct %s",
			uri,
			provider.ErrSourceIsSelf, propSource))
	}
	if login := (*provider.LoginError)(nil); errors.As(err, &login) {
		kind := claviger.SourceUnreachable // a KDC may be reachable again later
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
		hint := "check that the KMS runs and that its port can be reached from here"
		if better := e.cfg.Probes.whyUnreachable(ctx); better != "" {
			hint = better
		}
		return claviger.E(op, claviger.SourceUnreachable, key, fault(err, "the source %s does not answer: %s; %s", uri,
			claviger.Reason(err), hint))
	}
	kind := claviger.KindOf(err)
	if kind == claviger.Internal { // a malformed answer, or HTTP status 500
		kind = claviger.SourceUnreachable
	}
	return claviger.E(op, kind, key, fault(err, "the source %s answers, but its keys cannot be read: %s; see its log",
		uri, claviger.Reason(err)))
}

// stopped returns the error of work whose context ended: an operator sent a signal, or the deadline of a request
// passed. Neither the source nor the target is at fault.
func stopped(ctx context.Context, op, key string) error {
	what := "interrupted"
	if errors.Is(ctx.Err(), context.DeadlineExceeded) {
		what = "the deadline has passed"
	}
	return claviger.E(op, claviger.Unavailable, key,
		fault(ctx.Err(), "%s; finished work is kept, and the next run continues from here", what))
}

// textError is an error with a text of its own.
type textError struct {
	text string
	err  error
}

func (w *textError) Error() string { return w.text }
func (w *textError) Unwrap() error { return w.err }

// fault gives an error a text for an operator, and keeps the error for errors.Is.
func fault(err error, format string, args ...any) error {
	return &textError{text: fmt.Sprintf(format, args...), err: err}
}

// noAnswer reports whether err means that the source is unreachable.
func noAnswer(err error) bool {
	return claviger.Is(err, claviger.Unavailable) || claviger.Is(err, claviger.SourceUnreachable)
}

// whyRefused returns the source's refusal with its cure. A refusal in Hadoop's known words has the cure already.
func (e *Engine) whyRefused(ctx context.Context, key string, err error) string {
	reason := claviger.Reason(err)
	switch {
	case e.ranger(ctx) || !strings.Contains(reason, ".xml must admit "):
		return reason + "; " + e.rightsCure(ctx, key, err)
	case e.seenAs(err) == "root":
		return reason + "; this command runs as root: run it as the user that the server runs as (sudo -u USER); the " +
			"source must admit that user instead of root"
	}
	return reason
}

// rightsCure names the rules at the source that would let us read: properties of its kms-acls.xml, or policies of a
// Ranger KMS. key "" means the list of names.
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
	return fmt.Sprintf("at the source, in kms-acls.xml: let whitelist.key.acl.READ admit %s (it works together with "+
		"the key's own entries), and hadoop.kms.acl.GET_METADATA too", who)
}

// ownUser returns our user name at the source, for messages, as far as the name is known here.
func (e *Engine) ownUser() string {
	p := &e.cfg.Probes
	if k, ok := e.cfg.Source.(interface{ WantsKerberos() bool }); ok && p.KerberosUser != "" && k.WantsKerberos() {
		return p.KerberosUser
	}
	if p.User != "" {
		return p.User
	}
	return "our user"
}

// seenAs returns our user name at the source: the name in the source's error, or else the name that is known here.
func (e *Engine) seenAs(err error) string {
	if seen := (*provider.SeenAs)(nil); errors.As(err, &seen) {
		return seen.User
	}
	return e.ownUser()
}

// admitted returns the user that the source must admit, for cures. It never returns root, because a command may run as
// root by mistake. err is the source's refusal, or nil.
func (e *Engine) admitted(err error) string {
	if who := e.seenAs(err); who != "root" {
		return who
	}
	return "the user that the server runs as (run this command as that user, by sudo -u, not as root)"
}

// ranger reports whether the source says that it is a Ranger KMS.
func (e *Engine) ranger(ctx context.Context) bool {
	r, ok := e.cfg.Source.(interface {
		Ranger(ctx context.Context) bool
	})
	return ok && r.Ranger(ctx)
}

// refused reports whether err means that the source refused the request.
func refused(err error) bool {
	return claviger.Is(err, claviger.Denied) || claviger.Is(err, claviger.KeyDenied) ||
		claviger.Is(err, claviger.SourceRefused)
}
