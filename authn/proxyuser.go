package authn

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"claviger"
	"claviger/authz"
	"claviger/secret"
)

// ProxyUserPrefix is the prefix of the properties that say who may act for whom:
// hadoop.kms.proxyuser.<user>.users, .groups and .hosts.
const ProxyUserPrefix = "hadoop.kms.proxyuser."

// ProxyUsers are the rules of hadoop.kms.proxyuser.*. The zero value lets nobody
// act for anybody. Hadoop's stay as they are until it is started anew; ours can be
// replaced.
type ProxyUsers struct {
	rules atomic.Pointer[proxyRules]
}

type proxyRules struct {
	of     map[string]*proxyRule // by the proxy's short name
	groups func(user string) []string
}

// proxyRule is for one proxy. Both parts must admit.
type proxyRule struct {
	whom  authz.ACL // whom he may act for; the zero value is nobody
	hosts hostList  // where from; the zero value is nowhere
}

// NewProxyUsers makes the rules. props maps what follows ProxyUserPrefix in a
// property's name to its value ("oozie.hosts" → "*"); groups returns the groups
// of a user's short name. What cannot be understood allows nothing and is told
// in a warning.
func NewProxyUsers(props map[string]string, groups func(user string) []string, log *slog.Logger) (_ *ProxyUsers,
	warnings []string) {
	rules := &proxyRules{of: make(map[string]*proxyRule), groups: groups}
	lists := make(map[string]map[string]string) // proxy → users, groups, hosts → value
	for name, value := range props {
		dot := strings.LastIndexByte(name, '.') // a proxy's name may hold dots
		if dot <= 0 || !slices.Contains([]string{"users", "groups", "hosts"}, name[dot+1:]) {
			warnings = append(warnings, fmt.Sprintf("%s%s is ignored; the form is %s<user>.users, .groups or .hosts",
				ProxyUserPrefix, name, ProxyUserPrefix))
			continue
		}
		proxy, which := name[:dot], name[dot+1:]
		if lists[proxy] == nil {
			lists[proxy] = make(map[string]string)
		}
		lists[proxy][which] = value
	}
	for proxy, list := range lists {
		hosts, complaints := parseHosts(list["hosts"], log)
		for _, c := range complaints {
			warnings = append(warnings, fmt.Sprintf("%s%s.hosts: %s", ProxyUserPrefix, proxy, c))
		}
		_, hasHosts := list["hosts"]
		_, hasUsers := list["users"]
		_, hasGroups := list["groups"]
		switch {
		case !hasHosts:
			warnings = append(warnings, fmt.Sprintf("%s%s may act for nobody: there is no .hosts property for him",
				ProxyUserPrefix, proxy))
		case !hasUsers && !hasGroups:
			warnings = append(warnings,
				fmt.Sprintf("%s%s may act for nobody: there is neither a .users nor a .groups property for him",
					ProxyUserPrefix,
					proxy))
		}
		rules.of[proxy] = &proxyRule{whom: authz.NewACL(list["users"], list["groups"]), hosts: hosts}
	}
	slices.Sort(warnings)
	p := new(ProxyUsers)
	p.rules.Store(rules)
	return p, warnings
}

// Replace puts the rules of other in the place of these, all at once. A request
// goes by the ones or the others.
func (p *ProxyUsers) Replace(other *ProxyUsers) { p.rules.Store(other.rules.Load()) }

// refuse returns why who.Real may not act for who from that address, in Hadoop's
// words and with the property that would have to say so; nil where he may.
func (p *ProxyUsers) refuse(ctx context.Context, who claviger.Principal, from netip.Addr) *Refusal {
	var rule *proxyRule
	var groups func(user string) []string
	if rules := p.rules.Load(); rules != nil {
		rule, groups = rules.of[who.Real.Short], rules.groups
	}
	of := ProxyUserPrefix + who.Real.Short
	no := &Refusal{Kind: NotAllowed, Real: who.Real.Name, User: who.Name}
	switch {
	case rule == nil:
		no.Property = of + ".users"
		no.Explanation = fmt.Sprintf("there is no rule for %s: set %s.hosts, and %s.users or %s.groups, in "+
			"kms-site.xml if it is to act for %s", who.Real.Short, of, of, of, who.Short)
	case !rule.whom.Admits(who, groups):
		no.Property = of + ".users"
		no.Explanation = fmt.Sprintf("%s.users does not name %s, and %s.groups names no group of it: add one of them "+
			"in kms-site.xml if %s is to act for it", of, who.Short, of, who.Real.Short)
	case !rule.hosts.includes(ctx, from):
		no.Property = of + ".hosts"
		no.Reason = fmt.Sprintf("Unauthorized connection for super-user: %s from IP /%s", who.Real.Name, javaAddr(from))
		no.Explanation = fmt.Sprintf("%s.hosts does not list %s: add it in kms-site.xml if %s is to act for others "+
			"from there", of, from, who.Real.Short)
		return no
	default:
		return nil
	}
	no.Reason = fmt.Sprintf("User: %s is not allowed to impersonate %s", who.Real.Name, who.Name)
	return no
}

// javaAddr writes an address as java.net.InetAddress does: IPv6 without "::".
func javaAddr(a netip.Addr) string {
	if !a.Is6() {
		return a.String()
	}
	b := a.As16()
	groups := make([]string, 0, 8)
	for i := 0; i < len(b); i += 2 {
		groups = append(groups, fmt.Sprintf("%x", uint16(b[i])<<8|uint16(b[i+1])))
	}
	return strings.Join(groups, ":")
}

const (
	// resolveEvery is how long what a host's name resolved to is believed.
	// Hadoop resolves once, at start.
	resolveEvery = time.Minute
	// resolveTimeout is for all names of one list together.
	resolveTimeout = 2 * time.Second
)

// hostList is Hadoop's MachineList: everywhere, addresses, networks, names.
type hostList struct {
	all   bool
	nets  []netip.Prefix
	names *resolvedNames // nil: none
}

func parseHosts(list string, log *slog.Logger) (h hostList, complaints []string) {
	var entries, names []string
	for _, e := range strings.FieldsFunc(list, func(r rune) bool { return r == ',' || r == '\n' }) {
		if e = strings.TrimSpace(e); e != "" {
			entries = append(entries, e)
		}
	}
	if len(entries) == 1 && entries[0] == "*" {
		return hostList{all: true}, nil
	}
	for _, e := range entries {
		if ip, err := netip.ParseAddr(e); err == nil {
			ip = ip.Unmap().WithZone("")
			h.nets = append(h.nets, netip.PrefixFrom(ip, ip.BitLen()))
			continue
		}
		switch {
		case strings.Contains(e, "/"):
			net, err := netip.ParsePrefix(e)
			if err != nil {
				complaints = append(complaints, fmt.Sprintf("%q is ignored; a network is written like 10.1.0.0/16",
					secret.Value(e)))
				continue
			}
			h.nets = append(h.nets, net.Masked())
		case e == "*":
			complaints = append(complaints, "* inside a list is ignored; everywhere is a * alone")
		default:
			names = append(names, e)
		}
	}
	if len(names) > 0 {
		h.names = &resolvedNames{names: names, log: log, lookup: net.DefaultResolver.LookupNetIP, now: time.Now}
	}
	return h, complaints
}

func (h *hostList) includes(ctx context.Context, a netip.Addr) bool {
	if h.all {
		return true
	}
	if !a.IsValid() {
		return false
	}
	if slices.ContainsFunc(h.nets, func(n netip.Prefix) bool { return n.Contains(a) }) {
		return true
	}
	return h.names != nil && h.names.include(ctx, a)
}

// resolvedNames are the names of a host list and what they resolved to last. A
// name that cannot be resolved now keeps its last addresses.
type resolvedNames struct {
	names  []string
	log    *slog.Logger
	lookup func(ctx context.Context, network, host string) ([]netip.Addr, error)
	now    func() time.Time

	mu    sync.Mutex // held while resolving, so that one caller does it for all
	addrs map[string][]netip.Addr
	when  time.Time
}

func (r *resolvedNames) include(ctx context.Context, a netip.Addr) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if now := r.now(); r.addrs == nil || now.Sub(r.when) >= resolveEvery {
		r.when = now
		r.resolve(ctx)
	}
	for _, addrs := range r.addrs {
		if slices.Contains(addrs, a) {
			return true
		}
	}
	return false
}

func (r *resolvedNames) resolve(ctx context.Context) {
	// The outcome is for later callers too: this one's hanging up must not
	// spoil it.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), resolveTimeout)
	defer cancel()
	if r.addrs == nil {
		r.addrs = make(map[string][]netip.Addr)
	}
	for _, name := range r.names {
		addrs, err := r.lookup(ctx, "ip", name)
		if err != nil {
			r.log.Warn("a host of "+ProxyUserPrefix+"*.hosts cannot be resolved", "host", name, "err", err)
			continue
		}
		for i := range addrs {
			addrs[i] = addrs[i].Unmap().WithZone("")
		}
		r.addrs[name] = addrs
	}
}
