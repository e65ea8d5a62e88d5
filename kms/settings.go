package kms

import (
	"fmt"
	"math"
	"strings"
	"time"

	"claviger"
	"claviger/hadoopconf"
	"claviger/keyring"
	"claviger/kmsapi"
	"claviger/provider"
)

// settings are the properties of the server, read and checked.
type settings struct {
	host string
	port int
	tls  bool
	web  webSettings
	// consoleListen is the address of the web console; "": there is none.
	consoleListen string
	limits        kmsapi.Limits
	admission     kmsapi.Admission
	metrics       bool
	migrate       bool
	audit         auditSettings
	operations    operationSettings
	ring          keyring.Config // without the parts that are opened later
	trace         traceSettings
}

// reader reads properties and keeps the errors, so that the code need not check an error after each property.
type reader struct {
	conf *hadoopconf.Conf
	err  error   // the first
	errs []error // all of them
}

func (r *reader) keep(err error) {
	if err == nil {
		return
	}
	if r.err == nil {
		r.err = err
	}
	r.errs = append(r.errs, err)
}

func (r *reader) int(name string, lo, hi int64) int64 {
	n, err := r.conf.Int(name, lo, hi)
	r.keep(err)
	return n
}

func (r *reader) bool(name string) bool {
	b, err := r.conf.Bool(name)
	r.keep(err)
	return b
}

func (r *reader) duration(name string, unit time.Duration) time.Duration {
	d, err := r.conf.Duration(name, unit)
	r.keep(err)
	return d
}

// positive reads a duration that must not be 0.
func (r *reader) positive(name string, unit time.Duration) time.Duration {
	d := r.duration(name, unit)
	if d <= 0 && r.err == nil {
		r.keep(r.conf.Refuse(name, "it must be longer than 0, as in 30s"))
	}
	return d
}

func (r *reader) float(name string, lo, hi float64) float64 {
	f, err := r.conf.Float(name, lo, hi)
	r.keep(err)
	return f
}

// readSettings reads every property that the server uses itself. The error for a
// wrong value names file, line, property and cure.
func readSettings(conf *hadoopconf.Conf) (settings, error) {
	r := &reader{conf: conf}
	s := r.settings()
	return s, r.err
}

// settings reads every property that the server uses itself. The errors are in r afterwards.
func (r *reader) settings() settings {
	conf := r.conf
	const queue = "hadoop.security.kms.encrypted.key.cache."
	s := settings{
		host:      conf.String("hadoop.kms.http.host"),
		port:      int(r.int("hadoop.kms.http.port", 0, 65535)),
		tls:       r.bool("hadoop.kms.ssl.enabled"),
		web:       r.web(),
		limits:    readLimits(r),
		admission: readAdmission(r),
		metrics:   r.bool("claviger.metrics.enabled"),
		migrate:   r.bool(hadoopconf.InitiateMigration),
		ring: keyring.Config{
			KeyAuthorization:    r.bool("hadoop.kms.key.authorization.enable"),
			Reencryption:        r.bool(hadoopconf.ReencryptionEnable),
			DefaultCipher:       conf.String("hadoop.security.key.default.cipher"),
			DefaultBitLength:    int(r.int("hadoop.security.key.default.bitlength", 128, 256)),
			CacheEnable:         r.bool("hadoop.kms.cache.enable"),
			CacheTimeout:        r.duration("hadoop.kms.cache.timeout.ms", time.Millisecond),
			CurrentCacheTimeout: r.duration("hadoop.kms.current.key.cache.timeout.ms", time.Millisecond),
			QueueSize:           int(r.int(queue+"size", 1, 1<<20)),
			QueueLowWatermark:   r.float(hadoopconf.LowWatermark, 0, 1),
			QueueExpiry:         r.duration(queue+"expiry", time.Millisecond),
			QueueFillers:        int(r.int(queue+"num.fill.threads", 1, 1024)),
			SourceTimeout:       r.duration("claviger.source.timeout", time.Second),
			Lease:               max(r.duration(hadoopconf.MetastoreLease, time.Second), time.Nanosecond),
			SourceWaiting:       int(r.int("claviger.source.max.waiting", 1, 1<<20)),
			CompareEvery:        r.positive("claviger.source.compare.interval", time.Second),
			PurgeMinUnused:      r.duration(minUnused, time.Second),
		},
	}
	const check = "claviger.hsm.self.check"
	if s.ring.SelfCheck = keyring.SelfCheck(conf.String(check)); !s.ring.SelfCheck.Valid() {
		r.keep(conf.Refuse(check, "it must be none, sampled or twice"))
	}
	s.ring.ImpliedLease = r.impliedLease()
	s.consoleListen = r.consoleListen()
	set := r.migration()
	s.ring.OwnVersions, s.ring.SourceVersions = set.ours, set.theirs
	r.newKeys(&s.ring)
	s.audit = r.audit()
	s.operations = r.operations()
	s.trace = r.trace()
	r.keep(conf.CheckRules())
	if _, ok := conf.Get(hadoopconf.SourceURI); s.migrate && !ok &&
		!strings.Contains(conf.String(hadoopconf.ProviderURI), ",") {
		r.keep(conf.Refuse(hadoopconf.InitiateMigration, fmt.Sprintf("a migration needs a source: set %s to "+
			"kms://http@HOST:PORT/kms, or this to false", hadoopconf.SourceURI)))
	}
	return s
}

// newKeys checks the default cipher and length of new keys.
func (r *reader) newKeys(ring *keyring.Config) {
	if r.err != nil {
		return
	}
	spec := provider.Spec{Name: "k", Cipher: ring.DefaultCipher, BitLength: ring.DefaultBitLength}
	switch err := provider.CheckSpec("", spec); {
	case claviger.Is(err, claviger.UnknownCipher):
		r.keep(r.conf.Refuse("hadoop.security.key.default.cipher", "only AES is known, as in "+claviger.DefaultCipher))
	case err != nil:
		r.keep(r.conf.Refuse("hadoop.security.key.default.bitlength", "it must be 128, 192 or 256"))
	}
}

const maxMemoryName = "claviger.kms.max.memory.bytes"

// readLimits reads the limits of one request.
func readLimits(r *reader) kmsapi.Limits {
	l := kmsapi.Limits{
		MaxKeys:        int(r.int("claviger.kms.max.num.keys", 1, math.MaxInt32)),
		MaxBatch:       int(r.int("claviger.kms.max.batch", 1, math.MaxInt32)),
		MaxBody:        r.int("claviger.kms.max.body.bytes", 1<<16, 1<<32),
		MaxNames:       int(r.int("claviger.kms.max.metadata.names", 1, 1<<16)),
		MaxMaterial:    int(r.int("claviger.kms.max.edek.bytes", 64, 1<<20)),
		MaxNewVersions: int(r.int("claviger.kms.max.new.versions", 0, math.MaxInt32)),
		MaxParameters:  int(r.int("claviger.http.max.parameters", 16, 1<<16)),
		Slow: kmsapi.Slow{Grace: r.duration("claviger.http.slow.grace", time.Second),
			Rate: r.int("claviger.http.slow.rate", 1, 1<<40)},
	}
	if text, _ := r.conf.Get(maxMemoryName); text != "" {
		l.MaxMemory = r.int(maxMemoryName, 1, 1<<40)
		if r.err == nil && l.MaxMemory < 2*l.MaxBody {
			// One user may use half of the memory.
			r.keep(r.conf.Refuse(maxMemoryName, fmt.Sprintf("it must be at least twice claviger.kms.max.body.bytes, "+
				"%d, or no user could send the longest body", 2*l.MaxBody)))
		}
	}
	if r.err == nil && l.Slow.Grace == 0 {
		r.keep(r.conf.Refuse("claviger.http.slow.grace", "it must be more than 0: a client needs some time to send "+
			"a body"))
	}
	return l
}

// readAdmission reads how many requests of each class run at once.
func readAdmission(r *reader) kmsapi.Admission {
	const prefix = "claviger.kms.max.concurrent."
	atOnce := func(class string) int { return int(r.int(prefix+class, 1, 1<<20)) }
	return kmsapi.Admission{
		Decrypts: atOnce("decrypts"), Generates: atOnce("generates"), Batches: atOnce("batches"),
		Management: atOnce("management"), Reads: atOnce("reads"),
		Wait: max(r.duration("claviger.kms.max.wait", time.Second), time.Millisecond),
	}
}
