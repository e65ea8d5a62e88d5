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

// ProxyUserPrefix is the prefix of the properties that let one user act for others:
// hadoop.kms.proxyuser.<user>.users, .groups and .hosts.
const ProxyUserPrefix = "hadoop.kms.proxyuser."

// ProxyUsers has the rules of hadoop.kms.proxyuser.*. The zero value allows nothing. Hadoop needs a restart to change
// these rules; here Replace changes them.
type ProxyUsers struct {
	rules atomic.Pointer[proxyRules]
}

type proxyRules struct {
	byProxy map[string]*proxyRule // by the proxy's short name
	groups  func(user string) []string
}

// proxyRule is the rule of one proxy. Both parts must allow a request.
type proxyRule struct {
	users authz.ACL // users that the proxy may act for; the zero value admits no user
	hosts hostList  // hosts that the proxy may send from; the zero value admits no host
}

// NewProxyUsers makes the rules. props maps the rest of a property's name after ProxyUserPrefix to its value
// ("oozie.hosts" → "*"). groups returns the groups of a user's short name. A value that cannot be read allows
// nothing, and causes a warning.
func NewProxyUsers(props map[string]string, groups func(user string) []string, log *slog.Logger) (_ *ProxyUsers,
	warnings []string) {
	rules := &proxyRules{byProxy: make(map[string]*proxyRule), groups: groups}
	lists := make(map[string]map[string]string) // proxy → "users", "groups" or "hosts" → value
	for name, value := range props {
		dot := strings.LastIndexByte(name, '.') // a proxy's name may hold dots
		if dot <= 0 || !slices.Contains([]string{"users", "groups", "hosts"}, name[dot+1:]) {
			warnings = append(warnings, fmt.Sprintf("%s%s is ignored; the form is %s<user>.users, .groups or .hosts",
				ProxyUserPrefix, name, ProxyUserPrefix))
			continue
		}
		proxy, suffix := name[:dot], name[dot+1:]
		if lists[proxy] == nil {
			lists[proxy] = make(map[string]string)
		}
		lists[proxy][suffix] = value
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
			warnings = append(warnings, fmt.Sprintf("%s%[2]s.hosts is not set, so %[2]s may act for no user",
				ProxyUserPrefix, proxy))
		case !hasUsers && !hasGroups:
			warnings = append(warnings,
				fmt.Sprintf("%[1]s%[2]s.users and %[1]s%[2]s.groups are not set, so %[2]s may act for no user",
					ProxyUserPrefix, proxy))
		}
		rules.byProxy[proxy] = &proxyRule{users: authz.NewACL(list["users"], list["groups"]), hosts: hosts}
	}
	slices.Sort(warnings)
	p := new(ProxyUsers)
	p.rules.Store(rules)
	return p, warnings
}

// Replace replaces the rules by those of other, in one step: no request sees a mixture.
func (p *ProxyUsers) Replace(other *ProxyUsers) { p.rules.Store(other.rules.Load()) }

// refuse returns nil if who.Real may act for who from that address. Otherwise the refusal has Hadoop's text, and the
// property that would allow the request.
func (p *ProxyUsers) refuse(ctx context.Context, who claviger.Principal, from netip.Addr) *Refusal {
	var rule *proxyRule
	var groups func(user string) []string
	if rules := p.rules.Load(); rules != nil {
		rule, groups = rules.byProxy[who.Real.Short], rules.groups
	}
	prefix := ProxyUserPrefix + who.Real.Short
	refusal := &Refusal{Kind: NotAllowed, Real: who.Real.Name, User: who.Name}
	switch {
	case rule == nil:
		refusal.Property = prefix + ".users"
		refusal.Explanation = fmt.Sprintf("there is no rule for %s; to let it act for %s, set %s.hosts, and %s.users "+
			"or %s.groups, in kms-site.xml", who.Real.Short, who.Short, prefix, prefix, prefix)
	case !rule.users.Admits(who, groups):
		refusal.Property = prefix + ".users"
		refusal.Explanation = fmt.Sprintf("%s.users does not name %s, and %s.groups names no group of it; to let %s "+
			"act for it, add the user or a group in kms-site.xml", prefix, who.Short, prefix, who.Real.Short)
	case !rule.hosts.includes(ctx, from):
		refusal.Property = prefix + ".hosts"
		refusal.Reason = fmt.Sprintf("Unauthorized connection for super-user: %s from IP /%s", who.Real.Name,
			javaAddr(from))
		refusal.Explanation = fmt.Sprintf("%s.hosts does not list %s; to let %s act for others from there, add the "+
			"address in kms-site.xml", prefix, from, who.Real.Short)
		return refusal
	default:
		return nil
	}
	refusal.Reason = fmt.Sprintf("User: %s is not allowed to impersonate %s", who.Real.Name, who.Name)
	return refusal
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
	// resolveTTL is the time for which the addresses of a host's name are used. Hadoop resolves names only once, at
	// start.
	resolveTTL = time.Minute
	// resolveTimeout limits the lookup of all names of one list together.
	resolveTimeout = 2 * time.Second
)

// hostList is Hadoop's MachineList: all hosts, or addresses, networks and names.
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
				complaints = append(complaints, fmt.Sprintf("%q is ignored; write a network as in 10.1.0.0/16",
					secret.Value(e)))
				continue
			}
			h.nets = append(h.nets, net.Masked())
		case e == "*":
			complaints = append(complaints, "* inside a list is ignored; for all hosts, write * alone")
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
	if h.all || !a.IsValid() {
		return h.all
	}
	if slices.ContainsFunc(h.nets, func(n netip.Prefix) bool { return n.Contains(a) }) {
		return true
	}
	return h.names != nil && h.names.include(ctx, a)
}

// resolvedNames has the names of a host list, and their latest addresses. If a lookup fails, the name keeps its
// earlier addresses.
type resolvedNames struct {
	names  []string
	log    *slog.Logger
	lookup func(ctx context.Context, network, host string) ([]netip.Addr, error)
	now    func() time.Time

	mu       sync.Mutex // held during the lookup, so that concurrent callers share one lookup
	addrs    map[string][]netip.Addr
	resolved time.Time // when the latest lookup began
}

func (r *resolvedNames) include(ctx context.Context, a netip.Addr) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if now := r.now(); r.addrs == nil || now.Sub(r.resolved) >= resolveTTL {
		r.resolved = now
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
	// Later callers use the result too, so the lookup must not fail because this caller disconnects.
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
