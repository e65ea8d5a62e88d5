package hadoopconf

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"claviger"
	"claviger/typo"
)

// The properties that are asked for by name in more than one room.
const (
	ProviderURI        = "hadoop.kms.key.provider.uri"
	SourceURI          = "hadoop.kms.key.provider.reencryption.source.uri"
	ReencryptionEnable = "hadoop.kms.reencryption.crypto.enable"
	InitiateMigration  = "cloudera.hsmkp.initiatemigration"
	TrusteeConf        = "cloudera.hsmkp.ktkms.config.dir"
	MetastoreURI       = "claviger.metastore.uri"
	MetastoreLease     = "claviger.metastore.lease"
	MetastoreSeen      = "claviger.metastore.seen.file"
	HDFSSuperusers     = "claviger.kms.hdfs.superusers"
	LowWatermark       = "hadoop.security.kms.encrypted.key.cache.low.watermark"
	GroupMapping       = "hadoop.security.group.mapping"
	lowWatermarkDash   = "hadoop.security.kms.encrypted.key.cache.low-watermark"
)

// Known is one property that means something here.
type Known struct {
	Name    string // a '*' stands for any text
	Default string // "" = none
	Doc     string
}

// KMS is the table of properties of `claviger kms`: Hadoop's kms-default.xml
// (trunk, 2025-02), what it uses of core-default.xml, what the migration from a
// Key Trustee KMS adds, and our own, which begin with "claviger.".
var KMS = []Known{
	{"hadoop.kms.http.host", "0.0.0.0", "address to listen at"},
	{"hadoop.kms.http.port", "9600", "port to listen at; 0 takes any free one"},
	{"hadoop.kms.http.administrators", "",
		"users and groups (an ACL) that may use /logLevel if hadoop.security.authorization is true; empty: " +
			"nobody may"},
	{"hadoop.security.authorization", "false", "true: /logLevel is only for hadoop.kms.http.administrators"},
	{"hadoop.security.instrumentation.requires.admin", "false",
		"true: /jmx, /conf and /stacks are only for administrators, too"},
	{SensitiveKeys, "",
		"regular expressions of the names of properties whose values /conf hides; empty: Hadoop's default. " +
			"Ours are always hidden"},
	{"hadoop.prometheus.endpoint.enabled", "false",
		"serve /prom: the figures of /metrics, for users who are logged in"},
	{"hadoop.kms.ssl.enabled", "false", "serve HTTPS, with the stores of ssl-server.xml"},
	{"hadoop.http.max.threads", "1000",
		"taken and not used: there is no thread pool here; claviger.http.max.connections and claviger.kms.max.concurrent.* are the limits"},
	{"hadoop.http.max.request.header.size", "65536", "longest head of a request; a longer one gets 431"},
	{"hadoop.http.max.response.header.size", "65536", "taken and not used: the heads of answers are short"},
	{"hadoop.http.temp.dir", "${hadoop.tmp.dir}/kms", "taken and not used: nothing is written there"},
	{"hadoop.http.header.*", "", "a header of every answer, as in hadoop.http.header.Strict-Transport-Security"},
	{"hadoop.http.sni.host.check.enabled", "false",
		"taken and not used: one certificate serves all names, and clients check it"},
	{"hadoop.http.logs.enabled", "true", "taken and not used: log files are not shown over HTTP"},
	{"claviger.http.max.connections", "8192",
		"most connections of clients at a time; one more is closed at once, and its client goes to another node"},
	{"claviger.http.max.connections.per.address", "",
		"most connections of one IPv4 address, or one /64 network of IPv6; empty: half of all; 0: no limit"},
	{"claviger.http.unlimited.addresses", "127.0.0.1,::1",
		"addresses and networks, separated by commas, without the limit per address: balancers, proxies, NAT"},
	{"claviger.console.details", "127.0.0.1,::1",
		"addresses and networks, separated by commas, that see the reasons in /readyz, and the labels of " +
			"/metrics that name keys and sources"},
	{"claviger.http.head.timeout", "10s", "time for the head of a request, and for a TLS handshake"},
	{"claviger.http.request.timeout", "1m", "time for a whole request to arrive"},
	{"claviger.http.answer.timeout", "2m", "time for a whole answer, slow readers included"},
	{"hadoop.http.socket.backlog.size", "500", "taken and not used: the system's own limit holds (net.core.somaxconn)"},
	{"hadoop.http.idle_timeout.ms", "60000", "how long a connection may be idle between requests"},
	{ProviderURI, "",
		"provider URIs, separated by commas: keys are made at the first; the others are asked for versions " +
			"that the first does not know. It must be set"},
	{SourceURI, "",
		"kms:// URI of the source KMS, with ';' between hosts, which is asked for versions that are not ours"},
	{ReencryptionEnable, "false",
		"true: EDEKs of a source's versions may be re-encrypted under versions of this server"},
	{InitiateMigration, "false", "true: take over the key metadata of the source at the start"},
	{TrusteeConf, "",
		"for a keytrustee:// provider: kts-site.xml, or its folder; empty: the file beside kms-site.xml"},
	{"claviger.keytrustee.material.life", "10m",
		"how long a keytrustee:// provider keeps the key of a version in memory after it fetched the key"},
	{"claviger.keytrustee.shared.organization", "false",
		"true: KMS with other identities may belong to the same organization at the Key Trustee Server; " +
			"false: a second one is refused"},
	{"hadoop.security.keystore.java-keystore-provider.password-file", "",
		"file with the password of jceks:// keystores, in the configuration folder"},
	{"hadoop.ssl.enabled.protocols", "", "TLS protocols, separated by commas: TLSv1.2, TLSv1.3; empty: both"},
	{"hadoop.ssl.server.conf", "", "file with the server's TLS stores; empty: ssl-server.xml"},
	{"hadoop.ssl.client.conf", "", "file with the client's TLS stores; empty: ssl-client.xml"},
	{"hadoop.security.credential.provider.path", "",
		"credential stores with passwords, separated by commas: jceks://file/PATH, localjceks://file/PATH"},
	{"hadoop.security.credstore.java-keystore-provider.password-file", "",
		"file with the password of the credential stores, in the configuration folder"},
	{"hadoop.security.credential.clear-text-fallback", "true",
		"true: a password that no credential store has may be in the configuration"},
	{"hadoop.kms.cache.enable", "true", "keep key versions and metadata in memory"},
	{"hadoop.kms.cache.timeout.ms", "600000", "how long after the last use they are kept in memory"},
	{"hadoop.kms.current.key.cache.timeout.ms", "30000", "how long the current version of a key is kept in memory"},
	{"hadoop.kms.audit.aggregation.window.ms", "10000",
		"equal events of one user on one key within this time become one audit line with a count"},
	{"hadoop.kms.audit.logger", "org.apache.hadoop.crypto.key.kms.server.SimpleKMSAuditLogger",
		"taken and not used: the line format is Hadoop's own"},
	{"hadoop.kms.authentication.type", "simple", "simple, kerberos, or the class of Hadoop's multi-scheme handler"},
	{"hadoop.kms.authentication.kerberos.keytab", "${user.home}/kms.keytab",
		"for type kerberos: the keytab with the keys of the principal"},
	{"hadoop.kms.authentication.kerberos.principal", "HTTP/localhost",
		"for type kerberos: HTTP/HOST, or * for each HTTP principal of the keytab"},
	{"hadoop.kms.authentication.kerberos.name.rules", "DEFAULT",
		"for type kerberos: auth_to_local rules, which make user names of principals"},
	{"hadoop.kms.authentication.kerberos.name.rules.mechanism", "",
		"hadoop: a principal that no rule matches is refused; mit: such a principal is the user name"},
	{"hadoop.kms.authentication.kerberos.endpoint.whitelist", "",
		"for type kerberos: pages that need no login, as in /jmx"},
	{"hadoop.security.authentication", "",
		"kerberos: the rules are DEFAULT for type simple too, unless hadoop.security.auth_to_local is set"},
	{"hadoop.security.auth_to_local", "",
		"for type simple: rules that make user names of names with a host or a realm"},
	{"hadoop.security.auth_to_local.mechanism", "",
		"as hadoop.kms.authentication.kerberos.name.rules.mechanism, which overrides it"},
	{"hadoop.kms.authentication.signer.secret.provider", "random",
		"where the secret that signs cookies comes from: random, file, zookeeper, or sql (the metastore in " +
			"PostgreSQL)"},
	{"hadoop.kms.authentication.signature.secret.file", "", "for provider file: the file with the secret"},
	{"hadoop.kms.authentication.signer.secret.provider.zookeeper.path", "/hadoop-kms/hadoop-auth-signature-secret",
		"for provider zookeeper: the node that holds the secrets"},
	{"hadoop.kms.authentication.signer.secret.provider.zookeeper.connection.string", "#HOSTNAME#:#PORT#,...",
		"servers of ZooKeeper: HOST:PORT,HOST:PORT; /CHROOT may follow"},
	{"hadoop.kms.authentication.signer.secret.provider.zookeeper.auth.type", "none",
		"how this server logs in at ZooKeeper: none or sasl"},
	{"hadoop.kms.authentication.signer.secret.provider.zookeeper.kerberos.keytab", "/etc/hadoop/conf/kms.keytab",
		"for sasl: the keytab of this server"},
	{"hadoop.kms.authentication.signer.secret.provider.zookeeper.kerberos.principal", "kms/#HOSTNAME#",
		"for sasl: the principal of this server; _HOST is the name of this host"},
	{"hadoop.kms.authentication.signer.secret.provider.zookeeper.kerberos.server.principal", "",
		"for sasl: the principal of ZooKeeper, if it is not zookeeper/HOST; _HOST is the name of ZooKeeper's host"},
	{"hadoop.kms.authentication.signer.secret.provider.zookeeper.ssl.enabled", "false", "use TLS to ZooKeeper"},
	{"hadoop.kms.authentication.signer.secret.provider.zookeeper.ssl.keystore.location", "",
		"store with this server's certificate, if ZooKeeper demands one: JKS, PKCS#12 or PEM"},
	{"hadoop.kms.authentication.signer.secret.provider.zookeeper.ssl.keystore.password", "",
		"password of that keystore"},
	{"hadoop.kms.authentication.signer.secret.provider.zookeeper.ssl.truststore.location", "",
		"store with the authority of ZooKeeper's certificates: JKS, PKCS#12 or PEM"},
	{"hadoop.kms.authentication.signer.secret.provider.zookeeper.ssl.truststore.password", "",
		"password of that truststore"},
	{"hadoop.kms.authentication.signer.secret.provider.zookeeper.disconnect.on.shutdown", "true",
		"taken and not used: the connection always ends with the server"},
	{"hadoop.kms.authentication.token.validity", "36000", "how long a cookie is valid"},
	{"hadoop.kms.authentication.token.max-inactive-interval", "-1",
		"how long a cookie is valid after its last use; -1: no matter"},
	{"hadoop.kms.authentication.simple.anonymous.allowed", "false", "accept requests without a user name"},
	{"hadoop.kms.authentication.cookie.domain", "", "domain of the cookie hadoop.auth"},
	{"hadoop.kms.authentication.cookie.path", "", "path of the cookie hadoop.auth"},
	{"hadoop.kms.authentication.cookie.persistent", "false", "give the cookie an expiry date"},
	{"hadoop.kms.authentication.delegation-token.update-interval.sec", "86400",
		"how often the key that signs delegation tokens changes"},
	{"hadoop.kms.authentication.delegation-token.max-lifetime.sec", "604800",
		"how long a delegation token can live, with renewals"},
	{"hadoop.kms.authentication.delegation-token.renew-interval.sec", "86400",
		"how long a delegation token is valid without a renewal"},
	{"hadoop.kms.authentication.delegation-token.removal-scan-interval.sec", "3600",
		"how often expired delegation tokens are removed"},
	{"hadoop.kms.authentication.delegation-token.token-kind", "", "taken and not used: it is kms-dt, as in Hadoop's KMS"},
	{"hadoop.kms.authentication.delegation-token.json-mapper.*", "",
		"taken and not used: answers have the form of Hadoop's KMS"},
	{"hadoop.kms.authentication.zk-dt-secret-manager.enable", "false",
		"keep delegation tokens in ZooKeeper, for all nodes"},
	{"hadoop.kms.authentication.zk-dt-secret-manager.zkConnectionString", "",
		"servers of ZooKeeper; not needed if the signer secrets are there too"},
	{"hadoop.kms.authentication.zk-dt-secret-manager.zkAuthType", "",
		"how this server logs in at ZooKeeper: none or sasl"},
	{"hadoop.kms.authentication.zk-dt-secret-manager.znodeWorkingPath", "zkdtsm",
		"the node under which delegation tokens are kept"},
	{"hadoop.kms.authentication.zk-dt-secret-manager.zkSessionTimeout", "10000",
		"timeout of the session at ZooKeeper"},
	{"hadoop.kms.authentication.zk-dt-secret-manager.zkConnectionTimeout", "10000",
		"how long an operation at ZooKeeper is repeated"},
	{"hadoop.kms.authentication.zk-dt-secret-manager.zkNumRetries", "3",
		"taken and not used: zkConnectionTimeout bounds the retries"},
	{"hadoop.kms.authentication.zk-dt-secret-manager.zkShutdownTimeout", "10000",
		"taken and not used: nothing is left to be done at the end"},
	{"hadoop.kms.authentication.zk-dt-secret-manager.token.seqnum.batch.size", "100",
		"sequence numbers that are fetched at a time"},
	{"hadoop.kms.authentication.zk-dt-secret-manager.token.watcher.enabled", "true",
		"taken and not used: a token is read when it is used"},
	{"hadoop.kms.authentication.zk-dt-secret-manager.kerberos.keytab", "", "for sasl: the keytab of this server"},
	{"hadoop.kms.authentication.zk-dt-secret-manager.kerberos.principal", "",
		"for sasl: the principal of this server; _HOST is the name of this host"},
	{"hadoop.kms.authentication.zk-dt-secret-manager.kerberos.server.principal", "",
		"for sasl: the principal of ZooKeeper, if it is not zookeeper/HOST; _HOST is the name of ZooKeeper's host"},
	{"hadoop.kms.authentication.zk-dt-secret-manager.ssl.enabled", "false", "use TLS to ZooKeeper"},
	{"hadoop.kms.authentication.zk-dt-secret-manager.ssl.keystore.location", "",
		"store with this server's certificate, if ZooKeeper demands one: JKS, PKCS#12 or PEM"},
	{"hadoop.kms.authentication.zk-dt-secret-manager.ssl.keystore.password", "", "password of that keystore"},
	{"hadoop.kms.authentication.zk-dt-secret-manager.ssl.truststore.location", "",
		"store with the authority of ZooKeeper's certificates: JKS, PKCS#12 or PEM"},
	{"hadoop.kms.authentication.zk-dt-secret-manager.ssl.truststore.password", "", "password of that truststore"},
	{"hadoop.kms.authentication.multi-scheme-auth-handler.schemes", "",
		"for the multi-scheme handler: the schemes, as in negotiate"},
	{"hadoop.kms.authentication.multi-scheme-auth-handler.schemes.*.handler", "",
		"the handler of a scheme: kerberos, for negotiate"},
	{"hadoop.kms.authentication.multi-scheme-auth-handler.delegation.schemes", "",
		"the schemes that operations on delegation tokens accept"},
	{"hadoop.kms.proxyuser.*.users", "", "users that a proxy user may impersonate"},
	{"hadoop.kms.proxyuser.*.groups", "", "groups whose members a proxy user may impersonate"},
	{"hadoop.kms.proxyuser.*.hosts", "", "hosts from which a proxy user may do so: names, addresses, CIDR ranges, *"},
	{AuthorizationManager, "",
		"Hadoop's KMSACLs, or empty: the rules are those of kms-acls.xml; the server does not start with " +
			"another class"},
	{"hadoop.security.kms.client.timeout", "60", "how long a kms:// provider waits for one answer"},
	{"hadoop.security.kms.client.failover.max.retries", "",
		"how often a kms:// provider tries other hosts of its URI; empty: once for each host"},
	{"hadoop.security.kms.client.failover.sleep.base.millis", "100", "shortest pause after all hosts were tried"},
	{"hadoop.security.kms.client.failover.sleep.max.millis", "2000", "longest pause after all hosts were tried"},
	{"hadoop.kms.key.authorization.enable", "true", "check the key ACLs of kms-acls.xml"},
	{"hadoop.kms.metrics.process.name", "KMS", "name of the process in the beans of /jmx"},
	{"hadoop.kms.metrics.session.id", "", "shown in the bean JvmMetrics"},
	{"hadoop.security.kms.encrypted.key.cache.size", "100", "ready-made EDEKs that are kept for a key"},
	{LowWatermark, "0.3", "fraction of the queue's size below which it is filled again"},
	{lowWatermarkDash, "", "another spelling of " + LowWatermark},
	{"hadoop.security.kms.encrypted.key.cache.num.fill.threads", "2", "how many queues are filled at the same time"},
	{"hadoop.security.kms.encrypted.key.cache.expiry", "43200000",
		"how long after its last use the queue of a key is dropped"},
	{"hadoop.security.key.default.cipher", claviger.DefaultCipher, "cipher of a key that is created without one"},
	{"hadoop.security.key.default.bitlength", "128", "length of a key that is created without one"},
	{GroupMapping, "",
		"Hadoop's class for groups: a class of the operating system's groups, LdapGroupsMapping, " +
			"RuleBasedLdapGroupsMapping or CompositeGroupsMapping"},
	{GroupProviders, "", "for CompositeGroupsMapping: the names of its providers, separated by commas without blanks"},
	{GroupProviders + ".combined", "true",
		"for CompositeGroupsMapping: true: a user is in the groups of all providers; false: in those of the " +
			"first provider that has any"},
	{GroupProviderPrefix + "*", "",
		"for CompositeGroupsMapping: provider.NAME is the class of a provider; provider.NAME.ldap.url and so " +
			"on are its properties, and override those without provider.NAME"},
	{"hadoop.security.group.mapping.ldap.url", "",
		"for LDAP: the servers, as ldap://HOST:PORT or ldaps://HOST:PORT, separated by commas"},
	{"hadoop.security.group.mapping.ldap.ssl", "false",
		"for LDAP: true: an ldap:// URL without a port means ldaps://"},
	{"hadoop.security.group.mapping.ldap.ssl.truststore", "",
		"for LDAP: store with the authority of the servers' certificates: JKS, PKCS#12 or PEM; empty: the " +
			"system's"},
	{"hadoop.security.group.mapping.ldap.ssl.truststore.password", "", "password of that truststore"},
	{"hadoop.security.group.mapping.ldap.ssl.truststore.password.file", "",
		"file with the password of that truststore"},
	{"hadoop.security.group.mapping.ldap.bind.user", "",
		"for LDAP: the user that this server binds as; empty: anonymous"},
	{"hadoop.security.group.mapping.ldap.bind.password", "",
		"password of that user; better in a credential store, or in a file"},
	{"hadoop.security.group.mapping.ldap.bind.password.file", "", "file with the password of that user"},
	{"hadoop.security.group.mapping.ldap.base", "", "for LDAP: the entry below which users and groups are searched"},
	{"hadoop.security.group.mapping.ldap.userbase", "",
		"for LDAP: the entry below which users are searched, if it is not base"},
	{"hadoop.security.group.mapping.ldap.groupbase", "",
		"for LDAP: the entry below which groups are searched, if it is not base"},
	{"hadoop.security.group.mapping.ldap.search.filter.user", "(&(objectClass=user)(sAMAccountName={0}))",
		"for LDAP: the filter that finds a user; {0} is the user's name"},
	{"hadoop.security.group.mapping.ldap.search.filter.group", "(objectClass=group)",
		"for LDAP: the filter that finds groups"},
	{"hadoop.security.group.mapping.ldap.search.attr.member", "member",
		"for LDAP: the attribute of a group that names its members"},
	{"hadoop.security.group.mapping.ldap.search.attr.memberof", "",
		"for LDAP: the attribute of a user that names the groups; if it is set, groups are not searched"},
	{"hadoop.security.group.mapping.ldap.search.attr.group.name", "cn",
		"for LDAP: the attribute of a group that is its name"},
	{"hadoop.security.group.mapping.ldap.search.group.hierarchy.levels", "0",
		"for LDAP: how many levels of nested groups count"},
	{"hadoop.security.group.mapping.ldap.conversion.rule", "none",
		"for RuleBasedLdapGroupsMapping: how names of groups are changed: to_upper, to_lower or none"},
	{"hadoop.security.group.mapping.ldap.posix.attr.uid.name", "uidNumber",
		"for LDAP with posixAccount and posixGroup: the attribute with the user's number"},
	{"hadoop.security.group.mapping.ldap.posix.attr.gid.name", "gidNumber",
		"for LDAP with posixAccount and posixGroup: the attribute with the group's number"},
	{"hadoop.security.group.mapping.ldap.connection.timeout.ms", "60000", "for LDAP: time for a connection"},
	{"hadoop.security.group.mapping.ldap.directory.search.timeout", "10000", "for LDAP: time for one search"},
	{"hadoop.security.groups.cache.secs", "300", "how long the groups of a user are remembered"},
	{"claviger.delegation.max.tokens", "200000",
		"most delegation tokens that are kept; one owner gets at most a quarter of the free ones"},
	{"claviger.delegation.max.tokens.per.owner", "10000",
		"most delegation tokens of one owner, the user whom a token is for"},
	{"claviger.delegation.rate.per.owner", "50", "delegation tokens a second that one owner gets on average"},
	{"claviger.delegation.burst.per.owner", "1000", "delegation tokens that one owner gets at a time"},
	{"claviger.delegation.max.renewer.bytes", "256", "longest name of the renewer of a token"},
	{"claviger.groups.max.users", "10000",
		"users whose groups are remembered, and as many names that the directory does not know"},
	{"claviger.groups.max.lookups", "8", "look-ups at a time of names that the directory never knew"},
	{"claviger.groups.max.stale", "1h",
		"how long the last known groups of a user are used while the directory fails; after that, blacklists " +
			"that name groups exclude the user"},
	{"hadoop.user.group.static.mapping.overrides", "dr.who=;",
		"groups of users for which the directory is not asked: user=group,group;user2=..."},
	{"hadoop.tmp.dir", "${java.io.tmpdir}/hadoop-${user.name}", "a variable that other values may use"},
	{MetastoreURI, "",
		"where key metadata, the migration's journal and the uses of sources are: sqlite:///PATH, or " +
			"postgresql://USER@HOST:PORT/DATABASE for several nodes; empty: claviger.db beside the keystore file " +
			"of the first provider"},
	{MetastoreSeen, "",
		"file in which this node records what it has seen of a metastore in PostgreSQL, so that it notices " +
			"lost changes after a restart; empty: claviger.seen.json beside the keystore file of the first " +
			"provider; none: no file"},
	{MetastoreLease, "10m",
		"how long a node without PostgreSQL serves keys from memory: a key that another node deletes can be " +
			"used here for this time; 0: not at all"},
	{"claviger.audit.file", "", "file of audit lines in Hadoop's format; empty: standard output"},
	{"claviger.audit.hadoop.enabled", "true", "write audit lines in Hadoop's format"},
	{"claviger.audit.json.file", "", "file of the hash-chained JSON audit log"},
	{"claviger.audit.json.stdout", "false", "write the records of the JSON audit log to standard output, too"},
	{"claviger.audit.json.syslog", "",
		"servers, separated by commas, that get the records of the JSON audit log: syslog+unix:///dev/log, " +
			"syslog+udp://H:P, syslog+tcp://H:P, syslog+tls://H:P"},
	{"claviger.audit.json.key.file", "",
		"file with a key for the hashes of the JSON audit log (HMAC); empty: plain SHA-256"},
	{"claviger.audit.node", "", "name of this server in audit records; empty: the host's name"},
	{"claviger.audit.rotate.size", "268435456",
		"size at which an audit file is put aside; 0: never, as where logrotate does it"},
	{"claviger.audit.rotate.interval", "0", "age at which an audit file is put aside; 0: never"},
	{"claviger.audit.rotate.keep", "0", "how many audit files that were put aside are kept; 0: all"},
	{"claviger.audit.must", "management",
		"operations that are refused if they cannot be audited: management, all, none, or a list such as " +
			"CREATE_KEY,DELETE_KEY"},
	{"claviger.ssl.truststore", "",
		"store with the certificates to trust for https:// sources; it replaces that of ssl-client.xml"},
	{"claviger.ssl.truststore.type", "", "type of that store; empty: found by its content"},
	{"claviger.ssl.truststore.password", "",
		"password of that store; better in a credential store. Without a password, JKS and JCEKS are read " +
			"unchecked, as by Java"},
	{"claviger.client.kerberos.principal", "",
		"the principal of this server at another KMS that wants Kerberos; _HOST is the name of this host; " +
			"empty: hadoop.kms.authentication.kerberos.principal with its keytab for type kerberos, else the " +
			"tickets of kinit"},
	{"claviger.client.kerberos.keytab", "", "keytab with the keys of that principal"},
	{"claviger.client.kerberos.ccache", "",
		"without those two: a cache of tickets (FILE:/tmp/krb5cc_0), which is used before the server's keytab"},
	{"claviger.source.timeout", "10s", "how long one call to a source may take"},
	{"claviger.source.max.waiting", "256",
		"how many requests may wait for sources at a time; one user never has more than are left for all " +
			"others; more are sent to another node"},
	{"claviger.kms.max.num.keys", "100000", "most EDEKs that one request may ask for"},
	{"claviger.kms.max.batch", "100000", "most EDEKs that one re-encryption batch may hold"},
	{"claviger.kms.max.body.bytes", "67108864", "longest request body of a batch"},
	{"claviger.kms.max.memory.bytes", "",
		"memory of all requests of more than 16 KiB, body and answer together; empty: four times " +
			"claviger.kms.max.body.bytes"},
	{"claviger.kms.max.concurrent.decrypts", "2048",
		"most requests at a time that decrypt or re-encrypt one EDEK; others wait"},
	{"claviger.kms.max.concurrent.generates", "64",
		"most requests at a time that generate EDEKs, in units of up to 500 EDEKs"},
	{"claviger.kms.max.concurrent.batches", "16", "most batch re-encryptions at a time, in units of up to 500 EDEKs"},
	{"claviger.kms.max.concurrent.management", "32",
		"most requests at a time that create, roll, delete or invalidate keys"},
	{"claviger.kms.max.concurrent.reads", "512",
		"most requests at a time for names, metadata and versions; 16 names of one request take one place"},
	{"claviger.kms.max.edek.bytes", "1024",
		"longest material of an EDEK, which is as long as its DEK: 16 to 32 in HDFS"},
	{"claviger.kms.max.new.versions", "2000",
		"most key versions that one user can make in an hour, by creations and rolls; 0: no limit"},
	{"claviger.kms.max.metadata.names", "1000", "most keys that one request for metadata can name"},
	{"claviger.http.max.parameters", "1024", "most parameters of a query"},
	{"claviger.http.slow.grace", "10s", "how long a body or an answer may take at any rate"},
	{"claviger.http.slow.rate", "262144",
		"bytes a second at which a body must arrive, or an answer be read, after that time"},
	{"claviger.kms.max.wait", "5s",
		"how long a request waits for a place before the client is sent to another node (503)"},
	{"claviger.shutdown.timeout", "15s", "how long running requests may take to end when the server stops"},
	{"claviger.delete.soft", "true",
		"true: the objects of a deleted key stay in the HSM, hidden from clients, until a purge, so that the " +
			"key can be undeleted; false: they are destroyed at once, as by Hadoop"},
	{"claviger.hsm.max.searches", "600",
		"how often a minute the token is searched for names of keys and versions that the metastore does not " +
			"know; one user never gets more than are left for all others"},
	{"claviger.purge.min.unused", "7d",
		"how long a key must have been deleted and unused before it can be purged (two minutes if it was " +
			"never used); on several nodes claviger.metastore.lease and a minute are added; 0: at once"},
	{"claviger.source.compare.interval", "30s",
		"how often the sources are checked for rolls of migrated keys, after which one version name means two " +
			"keys"},
	{"claviger.migration.gap", "0",
		"how many numbers are left free above those of a source that numbers its versions: with 1000 and " +
			"finance@2 there, the version made here is finance@1003, so that rolls at the source use no name that " +
			"is used here"},
	{"claviger.migration.ours", "",
		"key versions (finance@3,...) whose EDEKs all belong to this KMS, although the source rolled its key " +
			"to versions of these names"},
	{"claviger.migration.theirs", "",
		"key versions (finance@3,...), deleted or never made here, whose EDEKs all belong to the source, " +
			"although this KMS, or an older key of the source, may have made EDEKs under these names"},
	{"claviger.migration.versions", "auto",
		"how many versions a migrated key gets; auto: one with the next number if the source numbers its " +
			"versions, else as many as the source counts; all: as many as the source counts; current: one"},
	{HDFSSuperusers, "hdfs",
		"users and groups (an ACL) that may not decrypt EDEKs, unless kms-acls.xml sets " +
			"hadoop.kms.blacklist.DECRYPT_EEK; blank: nobody"},
	{"claviger.metrics.enabled", "true", "serve /metrics"},
}

// ours are the families in which every property must be in the table.
var ours = []string{"hadoop.kms.", "cloudera.hsmkp.", "claviger.", "hadoop.security.kms.encrypted.key.cache."}

// LoadKMS reads the files of a KMS's configuration folder in Hadoop's order:
// built-in defaults, core-site.xml, kms-site.xml. env as in New. A folder that is
// not there, or that holds neither file, is an error.
func LoadKMS(dir string, env func(string) (string, bool)) (*Conf, error) {
	abs, err := filepath.Abs(dir)
	if err != nil {
		return nil, fmt.Errorf("configuration folder %s: %w", dir, err)
	}
	switch info, err := os.Stat(abs); {
	case errors.Is(err, fs.ErrNotExist):
		return nil, fmt.Errorf("configuration folder %s is not there; name it with --conf", abs)
	case err == nil && !info.IsDir():
		return nil, fmt.Errorf("configuration folder %s is not a folder; name the folder of kms-site.xml with --conf", abs)
	}
	c := New(abs, env)
	if err := c.AddFile(filepath.Join(abs, "core-site.xml"), true); err != nil {
		return nil, err
	}
	site := filepath.Join(abs, "kms-site.xml")
	if err := c.AddFile(site, true); err != nil {
		return nil, err
	}
	if len(c.props) == 0 {
		return nil,
			fmt.Errorf("configuration folder %s holds no property in core-site.xml or kms-site.xml; name the folder with --conf, and set at least %s in its kms-site.xml", abs, ProviderURI)
	}
	c.environment()
	c.lowWatermark()
	c.warnUnknown()
	c.warnIdle()
	c.warnings = append(c.warnings, c.MisplacedRules()...)
	for _, k := range KMS {
		if k.Default != "" {
			c.SetDefault(k.Name, k.Default)
		}
	}
	if err := c.checkOurs(); err != nil {
		return nil, err
	}
	if err := c.checkGuards(); err != nil {
		return nil, err
	}
	return c, nil
}

// checkOurs expands every property that we may ask for, so that Get need not
// fail later, and warns of variables that stay as they stand.
func (c *Conf) checkOurs() error {
	names := make(map[string]bool, len(KMS))
	for _, k := range KMS {
		names[k.Name] = true
	}
	for _, name := range c.Names() {
		if !names[name] && !inFamily(name) {
			continue
		}
		p := c.props[name]
		v, err := c.expand(p)
		if err != nil {
			return err
		}
		if left := variable.FindString(v); left != "" && p.File != "" {
			c.warnings = append(c.warnings, fmt.Sprintf("%s: property %s: %s is not set, so that the value is %s", p.Where(),
				name, left, shown(name, v)))
		}
	}
	return nil
}

// environment applies the settings that Hadoop's KMS still takes from the
// environment and that mean something here. They go over the files, as there.
func (c *Conf) environment() {
	for _, e := range []struct{ env, name string }{
		{"KMS_HTTP_PORT", "hadoop.kms.http.port"},
		{"KMS_SSL_ENABLED", "hadoop.kms.ssl.enabled"},
		{"KMS_MAX_HTTP_HEADER_SIZE", "hadoop.http.max.request.header.size"},
	} {
		if v, _ := c.env(e.env); v != "" {
			c.warnings = append(c.warnings,
				fmt.Sprintf("environment variable %s overrides property %s with %q; set the property in kms-site.xml instead",
					e.env, e.name, v))
			c.Override(e.name, v, "environment "+e.env)
		}
	}
}

// ServerTLSEnvironment does the same with the two settings that belong to
// ssl-server.xml, which c is. What it returns is for the log.
func (c *Conf) ServerTLSEnvironment() (warnings []string) {
	for _, e := range []struct{ env, name string }{
		{"KMS_SSL_KEYSTORE_FILE", "ssl.server.keystore.location"},
		{"KMS_SSL_KEYSTORE_PASS", "ssl.server.keystore.password"},
	} {
		if v, _ := c.env(e.env); v != "" {
			warnings = append(warnings,
				fmt.Sprintf("environment variable %s overrides property %s; set the property in ssl-server.xml instead", e.env,
					e.name))
			c.Override(e.name, v, "environment "+e.env)
		}
	}
	return warnings
}

// lowWatermark takes the spelling that Cloudera's page prints. Hadoop's KMS
// reads only the one with dots, so there the advice had no effect.
func (c *Conf) lowWatermark() {
	dash, ok := c.props[lowWatermarkDash]
	if !ok {
		return
	}
	if dot, both := c.props[LowWatermark]; both {
		c.warnings = append(c.warnings, fmt.Sprintf("%s: property %s is ignored, since %s sets %s", dash.Where(), dash.Name,
			dot.Where(), LowWatermark))
		return
	}
	c.warnings = append(c.warnings,
		fmt.Sprintf("%s: property %s is taken for %s; Hadoop's own KMS reads only the latter and would ignore this line",
			dash.Where(), dash.Name, LowWatermark))
	c.props[LowWatermark] = dash // under its own name, by which a complaint finds the line
}

// misnamed are names that documents print and nothing ever read.
var misnamed = map[string]string{
	"hadoop.kms.aggregation.delay.ms": "hadoop.kms.audit.aggregation.window.ms", // Hadoop's own KMS guide
}

// guards are properties without which the server would go on with less than its operator
// meant: other keys, another store of them, anybody for a user, no TLS, no record. Where
// one is not set, a property that is most probably a misspelling of it is refused.
var guards = []string{
	ProviderURI, SourceURI, InitiateMigration, MetastoreURI,
	"hadoop.kms.authentication.type", "hadoop.kms.ssl.enabled", "hadoop.security.authorization",
	AuthorizationManager, HDFSSuperusers, "claviger.audit.json.file", "claviger.audit.must",
}

// checkGuards refuses the first property (by name) that is not known and means a guard
// which is not set.
func (c *Conf) checkGuards() error {
	for _, name := range c.Names() {
		meant, ok := c.meant[name]
		if !ok || !slices.Contains(guards, meant) {
			continue
		}
		if p, set := c.props[meant]; set && p.File != "" {
			continue
		}
		return fmt.Errorf("%s: property %s is not known, and %s is not set; did you mean that? It decides on keys, on who "+
			"may use them, or on what is recorded, so it is not left to its default: correct the name, or take the line out",
			c.props[name].Where(), name, meant)
	}
	return nil
}

// warnUnknown names properties of our families that mean nothing, with the
// nearest one that does.
func (c *Conf) warnUnknown() {
	exact := map[string]bool{}
	for _, k := range KMS {
		exact[k.Name] = true
	}
	for _, name := range c.Names() {
		if strings.HasPrefix(name, GroupProviderPrefix) {
			c.warnUnknownProvider(name, exact)
			continue
		}
		if exact[name] || matchesPattern(name) || IsRule(name) {
			continue
		}
		if !inFamily(name) {
			c.warnMisspelt(name)
			continue
		}
		w := fmt.Sprintf("%s: property %s is not known and has no effect", c.props[name].Where(), name)
		if meant, ok := misnamed[name]; ok {
			w += "; the property is called " + meant
		} else if near, ok := typo.Nearest(name, candidates(name)); ok {
			w += "; did you mean " + near + "?"
			c.meant[name] = near
		}
		c.warnings = append(c.warnings, w)
	}
}

// notUsed begins the line of a property that is taken and does nothing; the
// reason follows.
const notUsed = "taken and not used"

// warnIdle names properties that somebody has set to other than the default and
// that do nothing here, with the reason.
func (c *Conf) warnIdle() {
	for _, k := range KMS {
		why, idle := strings.CutPrefix(k.Doc, notUsed)
		if !idle {
			continue
		}
		for _, name := range c.Names() {
			p := c.props[name]
			if name != k.Name && !k.covers(name) || strings.TrimSpace(p.Value) == k.Default {
				continue
			}
			c.warnings = append(c.warnings, fmt.Sprintf("%s: property %s has no effect here%s", p.Where(), name, why))
		}
	}
}

// candidates are the names that name may be a misspelling of. Where a known
// name has a '*' between dots, what name has in that place stands in for it.
func candidates(name string) []string {
	parts := strings.Split(name, ".")
	var out []string
	for _, k := range KMS {
		if !strings.Contains(k.Name, "*") {
			out = append(out, k.Name)
			continue
		}
		pattern := strings.Split(k.Name, ".")
		if len(pattern) != len(parts) {
			continue
		}
		for i := range pattern {
			if pattern[i] == "*" {
				pattern[i] = parts[i]
			}
		}
		out = append(out, strings.Join(pattern, "."))
	}
	return out
}

func inFamily(name string) bool {
	for _, f := range ours {
		if strings.HasPrefix(name, f) {
			return true
		}
	}
	return false
}

// matchesPattern knows names with one '*', which stands for one character or
// more.
func matchesPattern(name string) bool {
	return slices.ContainsFunc(KMS, func(k Known) bool { return k.covers(name) })
}

// covers tells whether the property's name is a pattern that name has.
func (k Known) covers(name string) bool {
	before, after, ok := strings.Cut(k.Name, "*")
	return ok && len(name) > len(before)+len(after) && strings.HasPrefix(name, before) && strings.HasSuffix(name, after)
}
