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
	"claviger/console"
	"claviger/hadoopconf"
	"claviger/metastore"
	"claviger/owner"
	"claviger/provider"
	"claviger/provider/hsm"
)

// alike are the properties that all nodes of one metastore must have alike: else what a
// client gets depends on the node that it asks. docs/nodes.md has the list.
var alike = []string{
	hadoopconf.ProviderURI, // but for where the first one is, an HSM, which the metastore itself compares
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

// minUnused is how long a key must have been unused before it can be purged.
const minUnused = "claviger.purge.min.unused"

// proxyUsers are the rules of impersonation, of which a node takes changes without a restart.
const proxyUsers = "hadoop.kms.proxyuser."

const (
	// settingNodes is where nodes note what they run with.
	settingNodes = "nodes.settings"
	// agreementEvery lies between two looks at the others' notes, and agreementHolds is how
	// long a look holds that readiness asks for.
	agreementEvery = time.Minute
	agreementHolds = 15 * time.Second
)

// nodeSettings is a node's note: of each of alike a digest.
type nodeSettings struct {
	// ID is the owner.Owner's. Host and PID are for people: containers on two hosts may have
	// the same ones.
	ID      string            `json:"id"`
	Since   time.Time         `json:"since"`
	Host    string            `json:"host"`
	PID     int               `json:"pid"`
	Digests map[string]string `json:"digests"`
}

// differing are the settings that another node has otherwise, sorted.
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

// serves tells whether one of these processes wrote the note.
func (n *nodeSettings) serves(alive []owner.Owner) bool {
	return slices.ContainsFunc(alive, func(o owner.Owner) bool { return o.ID == n.ID })
}

// name names another node to people.
func (n *nodeSettings) name(o nodeSettings) string {
	if o.Host == n.Host && o.PID == n.PID {
		return fmt.Sprintf("another node whose host is named %s, as this one's, (process %d, since %s)", o.Host, o.PID,
			o.Since.Format(time.RFC3339))
	}
	return fmt.Sprintf("the node on %s (process %d)", o.Host, o.PID)
}

// agreement compares what this node runs with to what the others do.
type agreement struct {
	conf  *hadoopconf.Conf
	store metastore.Store
	log   *slog.Logger
	self  owner.Owner

	mu   sync.Mutex
	told string // of the log
}

// digests are those of this node now. Of what is taken without a restart, the files count.
func (a *agreement) digests() map[string]string {
	all := map[string]string{}
	put := func(name, value string) {
		sum := sha256.Sum256([]byte(value))
		all[name] = hex.EncodeToString(sum[:8])
	}
	for _, name := range alike {
		value := strings.TrimSpace(a.conf.String(name))
		if name == hadoopconf.ProviderURI {
			value = withoutPlace(value)
		}
		put(name, value)
	}
	now, err := hadoopconf.LoadKMS(a.conf.Dir(), os.LookupEnv)
	if err != nil {
		now = a.conf // its rules stay in force
	}
	rules := now.Under(proxyUsers)
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

// withoutPlace is a list of providers without the place of the first one's file.
func withoutPlace(list string) string {
	uris, err := provider.SplitURIs(list)
	if err != nil || len(uris) == 0 {
		return list
	}
	scheme, _, _ := strings.Cut(uris[0], ":")
	return strings.Join(append([]string{scheme}, uris[1:]...), ",")
}

// mine is this node's note.
func (a *agreement) mine() nodeSettings {
	return nodeSettings{a.self.ID, a.self.Since, a.self.Host, a.self.PID, a.digests()}
}

// check notes what this node runs with, and tells of nodes that run with something else.
func (a *agreement) check(ctx context.Context) error {
	mine := a.mine()
	others, err := a.exchange(ctx, mine)
	if err != nil {
		return err
	}
	var texts []string
	for _, o := range others {
		if differ := mine.differing(o); len(differ) > 0 {
			texts = append(texts, fmt.Sprintf("%s has other values of %s", mine.name(o), strings.Join(differ, ", ")))
		}
	}
	text := strings.Join(texts, "; ")
	a.mu.Lock()
	defer a.mu.Unlock()
	if text != a.told && text != "" {
		a.log.Warn("nodes of this metastore have different settings, which must be alike: what a client gets depends "+
			"on the node that it asks", "metastore", a.store.URI(), "differences", text)
	}
	a.told = text
	if text == "" {
		return nil
	}
	return errors.New(text + ", and these must be alike on all nodes of the metastore " + a.store.URI() +
		": compare the files of both, and restart the node that is wrong (kms-acls.xml and proxy users are taken " +
		"without a restart)")
}

// mayDestroy refuses to destroy keys while another node has another value of the property
// that decides it: a slip in one node's file must not end keys that the others would keep.
// A node that keeps deleted keys may delete them, whatever the others do. Kind Unavailable,
// with the property and the nodes in the caller's answer.
func (a *agreement) mayDestroy(ctx context.Context, purge bool) error {
	const op = "kms.mayDestroy"
	property, deed := minUnused, "purged"
	if !purge {
		property, deed = hsm.PropertySoftDelete, "deleted"
		if keeps, err := a.conf.Bool(property); err != nil || keeps {
			return err
		}
	}
	mine := a.mine()
	others, err := a.exchange(ctx, mine)
	if err != nil {
		return claviger.E(op, claviger.Unavailable, "", err)
	}
	var differ []string
	for _, o := range others {
		if slices.Contains(mine.differing(o), property) {
			differ = append(differ, mine.name(o))
		}
	}
	if len(differ) == 0 {
		return nil
	}
	text := fmt.Sprintf("no key is %s by the node on %s (process %d): that destroys keys, and %s %s another value of "+
		"%s; give it the same value on all nodes, and restart those that were wrong", deed, mine.Host, mine.PID,
		strings.Join(differ, " and "), map[bool]string{true: "has", false: "have"}[len(differ) == 1], property)
	return claviger.Answer(claviger.Errorf(op, claviger.Unavailable, "", "%s", text), text)
}

// ofSources are the settings that say which sources a server asks.
var ofSources = []string{hadoopconf.ProviderURI, hadoopconf.SourceURI, hadoopconf.ReencryptionEnable}

// noteSettings keeps what this server runs with in the metastore, also where no other node
// can be: claviger migrate finish compares it with the files.
func (s *server) noteSettings(ctx context.Context) error {
	if s.svc.Store == nil {
		return nil
	}
	a := &agreement{conf: s.conf, store: s.svc.Store, log: s.log, self: s.svc.self}
	_, err := a.exchange(ctx, a.mine())
	return err
}

// NotRestarted are the servers of the metastore that run with other sources than the files
// have now. One that has noted nothing, an older claviger, is not among them.
func (s *Service) NotRestarted(ctx context.Context) ([]string, error) {
	store, err := s.store(ctx)
	if err != nil {
		return nil, err
	}
	a := &agreement{conf: s.Conf, store: store, log: s.Log, self: s.self}
	alive, err := store.Owners(ctx)
	if err != nil {
		return nil, err
	}
	text, _, err := store.Setting(ctx, settingNodes)
	if err != nil {
		return nil, err
	}
	var noted []nodeSettings
	_ = json.Unmarshal([]byte(text), &noted) // what is no list says nothing
	mine := a.mine()
	var servers []string
	for _, n := range noted {
		if n.serves(alive) && slices.ContainsFunc(ofSources,
			func(name string) bool { return n.Digests[name] != mine.Digests[name] }) {
			servers = append(servers, mine.name(n))
		}
	}
	return servers, nil
}

// exchange notes this node's settings, and returns those of the nodes that serve. Notes of
// nodes that are gone are removed.
func (a *agreement) exchange(ctx context.Context, mine nodeSettings) (others []nodeSettings, err error) {
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
	var was []nodeSettings
	_ = json.Unmarshal([]byte(text), &was) // what is no list is written anew
	for _, n := range was {
		if n.serves(alive) && n.ID != mine.ID {
			others = append(others, n)
		}
	}
	now, err := json.Marshal(append(slices.Clone(others), mine))
	if err != nil || string(now) == text {
		return others, err
	}
	return others, a.store.SetSetting(ctx, settingNodes, string(now))
}

// agree starts to compare this node's settings with those of the others, where others may
// be: until ctx ends the log tells of differences, also where nobody asks for readiness.
func (s *server) agree(ctx context.Context) {
	a := s.agreement
	for a != nil {
		_ = a.check(ctx) // it is in the log, or the store is away, which others tell
		select {
		case <-ctx.Done():
			return
		case <-time.After(agreementEvery):
		}
	}
}

// agreementCheck is none where no other node has the metastore.
func (s *server) agreementCheck() []console.Check {
	if s.agreement == nil {
		return nil
	}
	return []console.Check{{Name: "settings of other nodes", Informational: true, Run: s.agreement.check,
		Holds: agreementHolds}}
}
