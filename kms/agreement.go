package kms

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"claviger"
	"claviger/buildinfo"
	"claviger/console"
	"claviger/hadoopconf"
	"claviger/metastore"
	"claviger/owner"
	"claviger/provider"
	"claviger/provider/hsm"
)

// sameOnAllNodes are the properties that must have the same values on all nodes of one metastore.
// Otherwise the answer to a client depends on the node. docs/nodes/postgresql.md has the list.
var sameOnAllNodes = []string{
	hadoopconf.ProviderURI, // without the first provider's path; the metastore itself compares the HSM
	hadoopconf.SourceURI,
	hadoopconf.ReencryptionEnable,
	hadoopconf.GroupMapping,
	hadoopconf.HDFSSuperusers,
	"hadoop.user.group.static.mapping.overrides",
	"hadoop.kms.key.authorization.enable",
	"hadoop.kms.authentication.type",
	"hadoop.kms.authentication.kerberos.name.rules",
	"hadoop.kms.authentication.kerberos.name.rules.mechanism",
	"hadoop.security.auth_to_local",
	"hadoop.security.auth_to_local.mechanism",
	signerKind,
	"hadoop.kms.authentication.token.validity",
	"hadoop.kms.authentication.cookie.domain",
	"hadoop.kms.authentication.cookie.path",
	"hadoop.kms.authentication.delegation-token.max-lifetime.sec",
	"hadoop.kms.authentication.delegation-token.renew-interval.sec",
	"hadoop.kms.authentication.zk-dt-secret-manager.enable",
	"hadoop.security.key.default.cipher",
	"hadoop.security.key.default.bitlength",
	"claviger.audit.must",
	hsm.PropertySoftDelete,
	"claviger.migration.ours",
	"claviger.migration.theirs",
	minUnused,
}

// minUnused is the property that says how long a key must have been unused before
// it can be purged.
const minUnused = "claviger.purge.min.unused"

// proxyUsers is the prefix of the rules of impersonation. A node takes changes of
// these without a restart.
const proxyUsers = "hadoop.kms.proxyuser."

const (
	// settingNodes is the metastore's setting in which nodes record their settings.
	settingNodes = "nodes.settings"
	// agreementEvery is the time between two comparisons with the other nodes.
	// agreementHolds is how long readiness reuses a successful comparison.
	agreementEvery = time.Minute
	agreementHolds = 15 * time.Second
)

// nodeSettings is a node's record: a digest of each property in sameOnAllNodes, of the proxy
// users' rules and of kms-acls.xml.
type nodeSettings struct {
	// ID identifies the node: it is the ID of its owner.Owner. Host and PID are only for
	// people, because containers on two hosts may have the same values.
	ID      string            `json:"id"`
	Since   time.Time         `json:"since"`
	Host    string            `json:"host"`
	PID     int               `json:"pid"`
	Version string            `json:"version,omitempty"` // of the program; "" for an older program
	Digests map[string]string `json:"digests"`
}

// differing returns the names of the settings that differ from those of another
// node, sorted.
func (n *nodeSettings) differing(o nodeSettings) []string {
	var differ []string
	for name, digest := range o.Digests {
		if here, ok := n.Digests[name]; ok && here != digest {
			differ = append(differ, name)
		}
	}
	slices.Sort(differ)
	return differ
}

// isAlive reports whether one of these processes wrote the record.
func (n *nodeSettings) isAlive(alive []owner.Owner) bool {
	return slices.ContainsFunc(alive, func(o owner.Owner) bool { return o.ID == n.ID })
}

// name returns a readable name of another node.
func (n *nodeSettings) name(o nodeSettings) string {
	if o.Host == n.Host && o.PID == n.PID {
		return fmt.Sprintf("another node, whose host has the same name %s (process %d, since %s)", o.Host, o.PID,
			o.Since.Format(time.RFC3339))
	}
	return fmt.Sprintf("the node on %s (process %d)", o.Host, o.PID)
}

// agreement compares this node's settings with those of the other nodes.
type agreement struct {
	conf  *hadoopconf.Conf
	store metastore.Store
	log   *slog.Logger
	self  owner.Owner

	mu     sync.Mutex
	logged string // the last differences
}

// digests returns the digests of this node's settings now. Settings that take effect without a restart are read from
// the current files.
func (a *agreement) digests() map[string]string {
	all := map[string]string{}
	put := func(name, value string) {
		sum := sha256.Sum256([]byte(value))
		all[name] = hex.EncodeToString(sum[:8])
	}
	for _, name := range sameOnAllNodes {
		value := strings.TrimSpace(a.conf.String(name))
		if name == hadoopconf.ProviderURI {
			value = withoutPath(value)
		}
		put(name, value)
	}
	now, err := hadoopconf.LoadKMS(a.conf.Dir(), os.LookupEnv)
	if err != nil {
		now = a.conf // this node keeps the rules that it has loaded
	}
	rules := now.WithPrefix(proxyUsers)
	var text strings.Builder
	for _, name := range slices.Sorted(maps.Keys(rules)) {
		fmt.Fprintf(&text, "%s=%s\n", name, rules[name])
	}
	put(proxyUsers+"*", text.String())
	if acls, err := os.ReadFile(ACLFile(a.conf)); err == nil {
		put("kms-acls.xml", string(acls))
	}
	return all
}

// withoutPath returns a list of provider URIs with only the scheme of the first URI.
func withoutPath(list string) string {
	uris, err := provider.SplitURIs(list)
	if err != nil || len(uris) == 0 {
		return list
	}
	scheme, _, _ := strings.Cut(uris[0], ":")
	return strings.Join(append([]string{scheme}, uris[1:]...), ",")
}

// record returns this node's record.
func (a *agreement) record() nodeSettings {
	return nodeSettings{a.self.ID, a.self.Since, a.self.Host, a.self.PID, buildinfo.Read().Version, a.digests()}
}

// check stores this node's record, and returns an error that names the nodes with
// other settings.
func (a *agreement) check(ctx context.Context) error {
	own := a.record()
	others, err := a.exchange(ctx, own)
	if err != nil {
		return err
	}
	var texts []string
	for _, o := range others {
		if differ := own.differing(o); len(differ) > 0 {
			texts = append(texts, fmt.Sprintf("%s has other values of %s", own.name(o), strings.Join(differ, ", ")))
		}
	}
	text := strings.Join(texts, "; ")
	a.mu.Lock()
	defer a.mu.Unlock()
	if text != a.logged && text != "" {
		a.log.Warn("nodes of this metastore have different settings, which must be the same: the answer to a client "+
			"depends on the node", "metastore", a.store.URI(), "differences", text)
	}
	a.logged = text
	if text == "" {
		return nil
	}
	return errors.New(text + ", and these must be the same on all nodes of the metastore " + a.store.URI() +
		": compare the files of both, and restart the node that is wrong (kms-acls.xml and proxy users are taken " +
		"without a restart)")
}

// mayDestroy refuses to destroy keys while another node has another value of the
// property that permits it: a mistake in one node's file must not destroy keys that
// the other nodes would keep. A node that keeps deleted keys may delete keys in any
// case. The error has kind Unavailable; the caller's answer names the property and
// the nodes.
func (a *agreement) mayDestroy(ctx context.Context, purge bool) error {
	const op = "kms.mayDestroy"
	property, action := minUnused, "purges"
	if !purge {
		property, action = hsm.PropertySoftDelete, "deletes"
		if keeps, err := a.conf.Bool(property); err != nil || keeps {
			return err
		}
	}
	own := a.record()
	others, err := a.exchange(ctx, own)
	if err != nil {
		return claviger.E(op, claviger.Unavailable, "", err)
	}
	var differ []string
	for _, o := range others {
		if slices.Contains(own.differing(o), property) {
			differ = append(differ, own.name(o))
		}
	}
	if len(differ) == 0 {
		return nil
	}
	has := map[bool]string{true: "has", false: "have"}[len(differ) == 1]
	text := fmt.Sprintf("the node on %s (process %d) %s no key: it would destroy keys for ever, and %s %s another "+
		"value of %s; give it the same value on all nodes, and restart the nodes that had a wrong "+
		"value", own.Host, own.PID,
		action, strings.Join(differ, " and "), has, property)
	return claviger.Answer(claviger.Errorf(op, claviger.Unavailable, "", "%s", text), text)
}

// sourceSettings are the settings that decide which sources a server reads.
var sourceSettings = []string{hadoopconf.ProviderURI, hadoopconf.SourceURI, hadoopconf.ReencryptionEnable}

// recordSettings stores this server's record in the metastore, even if there can be
// no other node: claviger migrate finish compares the record with the files.
func (s *server) recordSettings(ctx context.Context) error {
	if s.svc.Store == nil {
		return nil
	}
	a := &agreement{conf: s.conf, store: s.svc.Store, log: s.log, self: s.svc.self}
	_, err := a.exchange(ctx, a.record())
	return err
}

// NotRestarted returns the servers of the metastore that run with other sources than
// the files have now. A server without a record, of an older claviger, is not
// included.
func (s *Service) NotRestarted(ctx context.Context) ([]string, error) {
	own, records, err := s.nodeRecords(ctx)
	var servers []string
	for _, n := range records {
		if slices.ContainsFunc(sourceSettings,
			func(name string) bool { return n.Digests[name] != own.Digests[name] }) {
			servers = append(servers, own.name(n))
		}
	}
	return servers, err
}

// nodeRecords returns the record that a server with the files of this host would have, and the records of the servers
// that run.
func (s *Service) nodeRecords(ctx context.Context) (own nodeSettings, records []nodeSettings, err error) {
	store, err := s.store(ctx)
	if err != nil {
		return own, nil, err
	}
	alive, err := store.Owners(ctx)
	if err != nil {
		return own, nil, err
	}
	text, _, err := store.Setting(ctx, settingNodes)
	if err != nil {
		return own, nil, err
	}
	_ = json.Unmarshal([]byte(text), &records) // a text that is not a list has no records
	own = (&agreement{conf: s.Conf, store: store, log: s.Log, self: s.self}).record()
	return own, slices.DeleteFunc(records, func(n nodeSettings) bool { return !n.isAlive(alive) }), nil
}

// exchange stores this node's record, and returns the records of the other nodes
// that run. It removes the records of nodes that have ended.
func (a *agreement) exchange(ctx context.Context, own nodeSettings) (others []nodeSettings, err error) {
	unlock, err := a.store.Lock(ctx, settingNodes)
	if err != nil {
		return nil, err
	}
	defer unlock()
	alive, err := a.store.Owners(ctx)
	if err != nil {
		return nil, err
	}
	text, _, err := a.store.Setting(ctx, settingNodes)
	if err != nil {
		return nil, err
	}
	var records []nodeSettings
	_ = json.Unmarshal([]byte(text), &records) // a text that is not a list is replaced
	for _, n := range records {
		if n.isAlive(alive) && n.ID != own.ID {
			others = append(others, n)
		}
	}
	now, err := json.Marshal(append(slices.Clone(others), own))
	if err != nil || string(now) == text {
		return others, err
	}
	return others, a.store.SetSetting(ctx, settingNodes, string(now))
}

// watchAgreement compares this node's settings with those of the other nodes until
// ctx ends, so that the log has the differences even if nobody reads readiness. It
// does nothing if there can be no other node.
func (s *server) watchAgreement(ctx context.Context) {
	a := s.agreement
	for a != nil {
		_ = a.check(ctx) // differences are logged, and other checks report a store that does not answer
		select {
		case <-ctx.Done():
			return
		case <-time.After(agreementEvery):
		}
	}
}

// agreementCheck returns no check if no other node can use the metastore.
func (s *server) agreementCheck() []console.Check {
	if s.agreement == nil {
		return nil
	}
	return []console.Check{{Name: "settings of other nodes", Informational: true, Run: s.agreement.check,
		Holds: agreementHolds}}
}
