package hadoopconf

import (
	"fmt"
	"slices"
	"strings"

	"claviger/typo"
)

// shared has prefixes of names that Hadoop also uses for properties without a meaning here. For an unknown name with
// such a prefix, there is a warning only if it is similar to a known name.
var shared = []string{"hadoop.security.", "hadoop.ssl.", "hadoop.http.", "hadoop.user.", "hadoop.prometheus."}

// hadoopOnly has names with these prefixes that have no meaning here. They are in the core-default.xml or the classes
// of Hadoop 3.4.2, or of an earlier Hadoop. An entry that ends with a dot matches all names that begin with it.
var hadoopOnly = strings.Fields(`
	hadoop.http.acceptor.count hadoop.http.authentication. hadoop.http.cross-origin.
	hadoop.http.delegation-token-secret-manager hadoop.http.filter.initializers
	hadoop.http.jmx.nan-filter.enabled hadoop.http.metrics.enabled hadoop.http.selector.count
	hadoop.http.staticuser.user hadoop.http.staticuser.user.
	hadoop.security.authorization.policyprovider hadoop.security.crypto.
	hadoop.security.delegation-token.ugi hadoop.security.dns.
	hadoop.security.group.mapping.ldap.bind.password.alias hadoop.security.group.mapping.ldap.bind.users
	hadoop.security.group.mapping.ldap.bind.users. hadoop.security.group.mapping.ldap.ctx.factory.class
	hadoop.security.group.mapping.ldap.group.search.filter.pattern
	hadoop.security.group.mapping.ldap.num.attempts
	hadoop.security.group.mapping.ldap.num.attempts.before.failover
	hadoop.security.group.mapping.ldap.read.timeout.ms hadoop.security.group.mapping.ldap.ssl.keystore
	hadoop.security.group.mapping.ldap.ssl.keystore.password
	hadoop.security.group.mapping.ldap.ssl.keystore.password.file
	hadoop.security.groups.cache.background.reload hadoop.security.groups.cache.background.reload.threads
	hadoop.security.groups.cache.warn.after.ms hadoop.security.groups.negative-cache.secs
	hadoop.security.groups.shell.command.timeout hadoop.security.impersonation.provider.class
	hadoop.security.java.secure.random.algorithm hadoop.security.kerberos.ticket.cache.path
	hadoop.security.key.provider.path hadoop.security.kms.client.authentication.retry-count
	hadoop.security.kms.client.encrypted.key.cache. hadoop.security.openssl.engine.id
	hadoop.security.random.device.file.path hadoop.security.resolver.impl hadoop.security.sasl.
	hadoop.security.saslproperties.resolver.class hadoop.security.secure.random.impl
	hadoop.security.service.user.name.key hadoop.security.token.service.use_ip
	hadoop.security.uid.cache.secs hadoop.ssl.enabled hadoop.ssl.hostname.verifier
	hadoop.ssl.keystores.factory.class hadoop.ssl.require.client.cert
	hadoop.user.group.metrics.percentiles.intervals`)

// hadoopHas reports whether a name is one of hadoopOnly.
func hadoopHas(name string) bool {
	return slices.ContainsFunc(hadoopOnly, func(own string) bool {
		return name == own || strings.HasSuffix(own, ".") && strings.HasPrefix(name, own)
	})
}

// warnMisspelt warns of a property that neither this server nor Hadoop knows, if its name is more similar to a name of
// this server than to any name of Hadoop.
func (c *Conf) warnMisspelt(name string) {
	if hadoopHas(name) {
		return
	}
	inShared := slices.ContainsFunc(shared, func(f string) bool { return strings.HasPrefix(name, f) })
	nearest, ok := c.withRightPrefix(name)
	if inShared {
		nearest, ok = typo.Nearest(name, append(candidates(name), hadoopOnly...))
	}
	if !ok || hadoopHas(nearest) {
		return
	}
	c.suggested[name] = nearest
	c.warnings = append(c.warnings, fmt.Sprintf("%s: property %s is not known here and not known in Hadoop, and has "+
		"no effect; did you mean %s?", c.props[name].Where(), name, nearest))
}

// withRightPrefix returns the property that a name means if the first or second word of its prefix is misspelt
// ("clavigr.", "hadoop.kmss."). Such a name has none of our prefixes.
func (c *Conf) withRightPrefix(name string) (meant string, ok bool) {
	words := strings.Split(name, ".")
	for i := range min(2, len(words)-1) {
		var known []string // the words that the prefixes have at this place
		for _, f := range slices.Concat(ownPrefixes, shared) {
			if w := strings.Split(f, "."); len(w) > i+1 && slices.Equal(w[:i], words[:i]) {
				known = append(known, w[i])
			}
		}
		if slices.Contains(known, words[i]) {
			continue
		}
		word, nearest := typo.Nearest(words[i], known)
		if !nearest {
			return "", false
		}
		right := strings.Join(slices.Concat(words[:i], []string{word}, words[i+1:]), ".")
		if slices.ContainsFunc(KMS, func(k Known) bool { return k.Name == right || k.covers(right) }) || IsRule(right) {
			return right, true
		}
		return typo.Nearest(right, candidates(right))
	}
	return "", false
}
