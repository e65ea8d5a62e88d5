package kms

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"math"
	"os"
	"slices"
	"strings"
	"time"

	"claviger/audit"
	"claviger/console"
	"claviger/hadoopconf"
	"claviger/metastore"
	"claviger/metastore/location"
	"claviger/provider"
	"claviger/secret"
	"claviger/typo"
	"claviger/web"
)

// auditSettings are the properties of the audit trail.
type auditSettings struct {
	window   time.Duration
	hadoop   bool
	file     string
	json     string // file
	stdout   bool
	syslog   []string
	keyFile  string
	node     string
	rotation audit.Rotation
	must     []audit.Op
}

func (s auditSettings) chained() bool { return s.json != "" || s.stdout || len(s.syslog) > 0 }

// audit reads the properties of the audit trail.
func (r *reader) audit() auditSettings {
	s := auditSettings{
		window: r.duration("hadoop.kms.audit.aggregation.window.ms", time.Millisecond),
		hadoop: r.bool("claviger.audit.hadoop.enabled"),
		stdout: r.bool("claviger.audit.json.stdout"),
		syslog: r.conf.Strings("claviger.audit.json.syslog"),
		node:   r.conf.String("claviger.audit.node"),
		rotation: audit.Rotation{
			Size:  r.int("claviger.audit.rotate.size", 0, math.MaxInt64),
			Every: r.duration("claviger.audit.rotate.interval", time.Second),
			Keep:  int(r.int("claviger.audit.rotate.keep", 0, math.MaxInt32)),
		},
	}
	s.file, _ = r.conf.Path("claviger.audit.file")
	s.json, _ = r.conf.Path("claviger.audit.json.file")
	s.keyFile, _ = r.conf.Path("claviger.audit.json.key.file")
	s.must = r.mustAudit()
	if s.node == "" {
		s.node, _ = os.Hostname() // without a name, the check below returns an error
	}
	switch {
	case s.node == "":
		r.keep(r.conf.Refuse("claviger.audit.node", "this host has no name: name it here"))
	case !s.hadoop && !s.chained():
		r.keep(r.conf.Refuse("claviger.audit.hadoop.enabled", "nothing would be audited: set it to true, or set "+
			"claviger.audit.json.file"))
	case s.hadoop && s.file == "" && s.stdout:
		r.keep(r.conf.Refuse("claviger.audit.json.stdout", "Hadoop's lines go to standard output too: set "+
			"claviger.audit.file, or claviger.audit.hadoop.enabled to false"))
	case s.json != "" && s.json == s.file:
		r.keep(r.conf.Refuse("claviger.audit.json.file", "claviger.audit.file names the same file: name another"))
	case s.keyFile != "" && !s.chained():
		r.keep(r.conf.Refuse("claviger.audit.json.key.file", "there is no JSON audit log to use it for: set "+
			"claviger.audit.json.file"))
	}
	return s
}

// mustAudit reads which operations are refused if they cannot be audited.
func (r *reader) mustAudit() []audit.Op {
	const name = "claviger.audit.must"
	var ops []audit.Op
	words := r.conf.Strings(name)
	for _, word := range words {
		switch op := audit.Op(strings.ToUpper(word)); {
		case op == "MANAGEMENT":
			ops = append(ops, audit.Management...)
		case op == "ALL":
			ops = append(ops, audit.Operations...)
		case op == "NONE" && len(words) == 1:
		case slices.Contains(audit.Operations, op):
			ops = append(ops, op)
		default:
			want := "it must be management, all, none, or a list of operations such as CREATE_KEY"
			var known []string
			for _, o := range audit.Operations {
				known = append(known, string(o))
			}
			if nearest, ok := typo.Nearest(string(op), known); ok {
				want = fmt.Sprintf("%s is not an operation; did you mean %s?", word, nearest)
			}
			r.keep(r.conf.Refuse(name, want))
		}
	}
	return ops
}

// AuditTrail is the audit log of a server.
type AuditTrail struct {
	*audit.Tee
	chain *audit.Chain // nil without a JSON log
	log   *slog.Logger
}

// openAudit opens the logs that the settings name. out replaces standard output.
func openAudit(ctx context.Context, s auditSettings, svc *Service, out io.Writer) (_ *AuditTrail, err error) {
	t := &AuditTrail{Tee: &audit.Tee{Must: s.must}, log: svc.Log}
	defer func() {
		if err != nil {
			_ = t.Close() // the first error counts
		}
	}()
	if s.hadoop {
		w := out
		if s.file != "" {
			if w, err = audit.OpenFile(s.file, s.rotation); err != nil {
				return nil, svc.Conf.BadFile("claviger.audit.file", err, "")
			}
		}
		t.Loggers = append(t.Loggers, audit.NewHadoop(w, s.window))
	}
	if s.chained() {
		if t.chain, err = openChain(ctx, s, svc, out); err != nil {
			return nil, err
		}
		t.Loggers = append(t.Loggers, t.chain)
	}
	return t, nil
}

// openChain opens the JSON log. After an error it closes what it has opened.
func openChain(ctx context.Context, s auditSettings, svc *Service, out io.Writer) (_ *audit.Chain, err error) {
	cfg := audit.ChainConfig{Node: s.node, Log: svc.Log}
	if s.keyFile != "" {
		if cfg.Key, err = ReadAuditKey(s.keyFile); err != nil {
			return nil, svc.Conf.BadFile("claviger.audit.json.key.file", err, "")
		}
	}
	defer func() {
		if err == nil {
			return
		}
		for _, stream := range cfg.Streams {
			_ = stream.Close()
		}
		if cfg.File != nil {
			_ = cfg.File.Close()
		}
	}()
	if s.stdout {
		cfg.Streams = append(cfg.Streams, audit.NewWriter("standard output", out))
	}
	for _, uri := range s.syslog {
		roots, err := svc.ClientTLS(provider.Env{})
		if err != nil {
			return nil, err
		}
		stream, err := audit.OpenSyslog(uri, roots)
		if err != nil {
			return nil, svc.Conf.RefuseFor("claviger.audit.json.syslog", err, "%q: %v", secret.Value(uri), err)
		}
		cfg.Streams = append(cfg.Streams, stream)
	}
	if s.json != "" {
		if cfg.File, err = audit.OpenExclusiveFile(s.json, s.rotation); err != nil {
			return nil, svc.Conf.BadFile("claviger.audit.json.file", err, "")
		}
		cfg.Heads = append(cfg.Heads, audit.HeadFileOf(s.json))
		if svc.Store != nil {
			cfg.Heads = append(cfg.Heads, storedHead{svc.Store, s.node})
		}
	}
	return audit.OpenChain(ctx, cfg)
}

// ReadAuditKey reads the key of the chain's hashes.
func ReadAuditKey(path string) (secret.Bytes, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	key := secret.Bytes(bytes.TrimRight(b, "\r\n"))
	if len(key) < 16 || len(key) > 1024 {
		return nil, fmt.Errorf("%s holds a key of %d bytes; it must have 16 to 1024, as `openssl rand -hex 32` makes",
			path, len(key))
	}
	return key, nil
}

// reopenOnHangup reopens the files on each SIGHUP, which logrotate sends, until stop
// is called.
func (t *AuditTrail) reopenOnHangup() (stop func()) {
	return web.OnHangup(func() {
		if err := t.Reopen(); err != nil {
			t.log.Error("the audit log cannot be reopened; records still go to the old file", "err", err)
		} else {
			t.log.Info("the audit log was reopened")
		}
	})
}

// checks returns the checks of readiness. A log that cannot be written takes the node
// out of service only for operations that must be audited.
func (t *AuditTrail) checks() []console.Check {
	records := console.Check{Name: "audit", Informational: len(t.Must) == 0,
		Run: func(context.Context) error { return t.Stopped() }}
	for _, p := range console.Purposes {
		if slices.ContainsFunc(t.Must, func(op audit.Op) bool { return purposeOf(op) == p }) {
			records.For = append(records.For, p)
		}
	}
	return []console.Check{
		records,
		{Name: "audit head", Informational: true, Run: func(context.Context) error {
			if t.chain == nil {
				return nil
			}
			return t.chain.Degraded()
		}},
		{Name: "audit streams", Informational: true, Run: func(context.Context) error { return t.streamErr() }},
	}
}

// purposeOf returns the purpose of a node that an operation needs.
func purposeOf(op audit.Op) console.Purpose {
	switch {
	case op == audit.DecryptEEK:
		return console.Decrypt
	case slices.Contains(audit.Management, op):
		return console.Write
	}
	return console.Generate
}

// state returns the state of the chain; ok is false if there is none.
func (t *AuditTrail) state() (state audit.ChainState, ok bool) {
	if t.chain == nil {
		return state, false
	}
	return t.chain.State(), true
}

func (t *AuditTrail) streamErr() error {
	if t.chain == nil {
		return nil
	}
	return t.chain.StreamErr()
}

// metrics adds the metrics of the streams.
func (t *AuditTrail) metrics(m *console.Metrics) {
	if t.chain != nil {
		m.Counter("claviger_audit_replaced_total", "Audit records that were too long for a datagram to syslog, and "+
			"were replaced by a short record.", func() float64 { return float64(t.chain.Replaced()) })
	}
}

// storedHead keeps the head of a node's chain in the metastore.
type storedHead struct {
	settings metastore.Settings
	node     string
}

func (s storedHead) setting() string { return "audit.head." + s.node }

// Name names the place of the head in messages.
func (s storedHead) Name() string { return "the metastore" }

// Load reads the head from the setting.
func (s storedHead) Load(ctx context.Context) (audit.Head, bool, error) {
	text, ok, err := s.settings.Setting(ctx, s.setting())
	if err != nil || !ok {
		return audit.Head{}, false, err
	}
	h, err := audit.ParseHead([]byte(text))
	return h, err == nil, err
}

// Save writes the head to the setting.
func (s storedHead) Save(ctx context.Context, h audit.Head) error {
	text, err := json.Marshal(h)
	if err != nil {
		return err
	}
	return s.settings.SetSetting(ctx, s.setting(), string(text))
}

// AuditHead opens the head of a node's chain in the metastore of its configuration.
// end closes the metastore.
func AuditHead(ctx context.Context, conf *hadoopconf.Conf) (head audit.Heads, end func(), err error) {
	r := &reader{conf: conf}
	set := r.audit()
	if r.err != nil {
		return nil, nil, r.err
	}
	store, err := location.OpenReadOnly(ctx, conf, slog.New(slog.DiscardHandler))
	if err != nil {
		return nil, nil, err
	}
	end = func() { _ = store.Close() } // read-only, so an error of Close does not matter
	return storedHead{store, set.node}, end, nil
}

// AuditHeads returns the places of the heads of this node's chain: a file, and the metastore. It returns none if the
// node keeps no chain in a file.
func (s *Service) AuditHeads() ([]audit.Heads, error) {
	r := &reader{conf: s.Conf}
	set := r.audit()
	if r.err != nil || set.json == "" {
		return nil, r.err
	}
	heads := []audit.Heads{audit.HeadFileOf(set.json)}
	if s.Store != nil {
		heads = append(heads, storedHead{s.Store, set.node})
	}
	return heads, nil
}

// OpenAudit opens the audit log of a command. It does not rotate files: a server that
// runs at the same time may do that. out replaces standard output, and is not closed.
func (s *Service) OpenAudit(ctx context.Context, out io.Writer) (*AuditTrail, error) {
	r := &reader{conf: s.Conf}
	set := r.audit()
	if r.err != nil {
		return nil, r.err
	}
	set.rotation = audit.Rotation{}
	return openAudit(ctx, set, s, struct{ io.Writer }{out})
}

// standardOutput is os.Stdout without Close: other code writes to it, too.
type standardOutput struct{}

func (standardOutput) Write(p []byte) (int, error) { return os.Stdout.Write(p) }
