package hadoopconf

// Value describes the values of a property. The zero Value means any text, such as a name, a URI or a list.
type Value struct {
	Type   string // bool, int, number, time, file, or "one of" the words in Bounds
	Bounds string // "" means none
	Unit   string // the unit of a value that is written without a unit; "" means none
}

// Values describes the values of properties, by name. A test of the server checks types and bounds: it gives each
// property a wrong value, and compares the error with this table.
var Values = map[string]Value{
	"hadoop.kms.reencryption.crypto.enable": {Type: "bool"},
	"cloudera.hsmkp.initiatemigration":      {Type: "bool"},
	"cloudera.hsmkp.ktkms.config.dir":       {Type: "file"},
	"claviger.metastore.lease":              {Type: "time"},
	"claviger.metastore.seen.file":          {Type: "file"},
	"hadoop.security.kms.encrypted.key.cache.low.watermark": {
		Type: "number", Bounds: "0 to 1",
	},
	"hadoop.security.kms.encrypted.key.cache.low-watermark": {
		Type: "number", Bounds: "0 to 1",
	},
	"hadoop.kms.http.port": {
		Type: "int", Bounds: "0 to 65535",
	},
	"hadoop.security.authorization":                  {Type: "bool"},
	"hadoop.security.instrumentation.requires.admin": {Type: "bool"},
	"hadoop.prometheus.endpoint.enabled":             {Type: "bool"},
	"hadoop.kms.ssl.enabled":                         {Type: "bool"},
	"hadoop.http.max.request.header.size": {
		Type: "int", Bounds: "1024 to 1048576", Unit: "bytes",
	},
	"claviger.http.max.connections": {
		Type: "int", Bounds: "1 to 1048576",
	},
	"claviger.http.max.connections.per.address": {
		Type: "int", Bounds: "0 to 1048576",
	},
	"claviger.http.head.timeout":    {Type: "time"},
	"claviger.http.request.timeout": {Type: "time"},
	"claviger.http.answer.timeout":  {Type: "time"},
	"hadoop.http.idle_timeout.ms":   {Type: "time", Unit: "ms"},
	"claviger.keytrustee.material.life": {
		Type: "time", Bounds: "1s to 24h",
	},
	"claviger.keytrustee.shared.organization":                        {Type: "bool"},
	"hadoop.security.keystore.java-keystore-provider.password-file":  {Type: "file"},
	"hadoop.ssl.server.conf":                                         {Type: "file"},
	"hadoop.ssl.client.conf":                                         {Type: "file"},
	"hadoop.security.credstore.java-keystore-provider.password-file": {Type: "file"},
	"hadoop.security.credential.clear-text-fallback":                 {Type: "bool"},
	"hadoop.kms.cache.enable":                                        {Type: "bool"},
	"hadoop.kms.cache.timeout.ms":                                    {Type: "time", Unit: "ms"},
	"hadoop.kms.current.key.cache.timeout.ms":                        {Type: "time", Unit: "ms"},
	"hadoop.kms.audit.aggregation.window.ms":                         {Type: "time", Unit: "ms"},
	"hadoop.kms.authentication.kerberos.keytab":                      {Type: "file"},
	"hadoop.kms.authentication.kerberos.name.rules.mechanism": {
		Type: "one of", Bounds: "hadoop or mit",
	},
	"hadoop.security.authentication": {
		Type: "one of", Bounds: "simple or kerberos",
	},
	"hadoop.security.auth_to_local.mechanism": {
		Type: "one of", Bounds: "hadoop or mit",
	},
	"hadoop.kms.authentication.signer.secret.provider": {
		Type: "one of", Bounds: "random, file, zookeeper or sql",
	},
	"hadoop.kms.authentication.signature.secret.file": {Type: "file"},
	"hadoop.kms.authentication.signer.secret.provider.zookeeper.auth.type": {
		Type: "one of", Bounds: "none or sasl",
	},
	"hadoop.kms.authentication.signer.secret.provider.zookeeper.kerberos.keytab":         {Type: "file"},
	"hadoop.kms.authentication.signer.secret.provider.zookeeper.ssl.enabled":             {Type: "bool"},
	"hadoop.kms.authentication.signer.secret.provider.zookeeper.ssl.keystore.location":   {Type: "file"},
	"hadoop.kms.authentication.signer.secret.provider.zookeeper.ssl.truststore.location": {Type: "file"},
	"hadoop.kms.authentication.token.validity":                                           {Type: "time", Unit: "s"},
	"hadoop.kms.authentication.token.max-inactive-interval":                              {Type: "time", Unit: "s"},
	"hadoop.kms.authentication.simple.anonymous.allowed":                                 {Type: "bool"},
	"hadoop.kms.authentication.cookie.persistent":                                        {Type: "bool"},
	"hadoop.kms.authentication.delegation-token.update-interval.sec":                     {Type: "time", Unit: "s"},
	"hadoop.kms.authentication.delegation-token.max-lifetime.sec":                        {Type: "time", Unit: "s"},
	"hadoop.kms.authentication.delegation-token.renew-interval.sec":                      {Type: "time", Unit: "s"},
	"hadoop.kms.authentication.delegation-token.removal-scan-interval.sec":               {Type: "time", Unit: "s"},
	"hadoop.kms.authentication.zk-dt-secret-manager.enable":                              {Type: "bool"},
	"hadoop.kms.authentication.zk-dt-secret-manager.zkAuthType": {
		Type: "one of", Bounds: "none or sasl",
	},
	"hadoop.kms.authentication.zk-dt-secret-manager.zkSessionTimeout":    {Type: "time", Unit: "ms"},
	"hadoop.kms.authentication.zk-dt-secret-manager.zkConnectionTimeout": {Type: "time", Unit: "ms"},
	"hadoop.kms.authentication.zk-dt-secret-manager.zkNumRetries": {
		Type: "int", Bounds: "0 to 2147483647",
	},
	"hadoop.kms.authentication.zk-dt-secret-manager.token.seqnum.batch.size": {
		Type: "int", Bounds: "1 to 1048576",
	},
	"hadoop.kms.authentication.zk-dt-secret-manager.kerberos.keytab":         {Type: "file"},
	"hadoop.kms.authentication.zk-dt-secret-manager.ssl.enabled":             {Type: "bool"},
	"hadoop.kms.authentication.zk-dt-secret-manager.ssl.keystore.location":   {Type: "file"},
	"hadoop.kms.authentication.zk-dt-secret-manager.ssl.truststore.location": {Type: "file"},
	"hadoop.security.kms.client.timeout": {
		Type: "int", Bounds: "0 to 86400", Unit: "s",
	},
	"hadoop.security.kms.client.failover.max.retries": {
		Type: "int", Bounds: "0 to 1000",
	},
	"hadoop.security.kms.client.failover.sleep.base.millis": {
		Type: "int", Bounds: "0 to 3600000", Unit: "ms",
	},
	"hadoop.security.kms.client.failover.sleep.max.millis": {
		Type: "int", Bounds: "0 to 3600000", Unit: "ms",
	},
	"hadoop.kms.key.authorization.enable": {Type: "bool"},
	"hadoop.security.kms.encrypted.key.cache.size": {
		Type: "int", Bounds: "1 to 1048576",
	},
	"hadoop.security.kms.encrypted.key.cache.num.fill.threads": {
		Type: "int", Bounds: "1 to 1024",
	},
	"hadoop.security.kms.encrypted.key.cache.expiry": {Type: "time", Unit: "ms"},
	"hadoop.security.key.default.bitlength": {
		Type: "int", Bounds: "128 to 256", Unit: "bits",
	},
	"hadoop.security.group.mapping.ldap.ssl":                          {Type: "bool"},
	"hadoop.security.group.mapping.ldap.ssl.truststore":               {Type: "file"},
	"hadoop.security.group.mapping.ldap.ssl.truststore.password.file": {Type: "file"},
	"hadoop.security.group.mapping.ldap.bind.password.file":           {Type: "file"},
	"hadoop.security.group.mapping.ldap.search.group.hierarchy.levels": {
		Type: "int", Bounds: "0 to 32",
	},
	"hadoop.security.group.mapping.ldap.conversion.rule": {
		Type: "one of", Bounds: "to_upper, to_lower or none",
	},
	"hadoop.security.group.mapping.ldap.connection.timeout.ms":    {Type: "time", Unit: "ms"},
	"hadoop.security.group.mapping.ldap.directory.search.timeout": {Type: "time", Unit: "ms"},
	"hadoop.security.groups.cache.secs":                           {Type: "time", Unit: "s"},
	"claviger.delegation.max.tokens": {
		Type: "int", Bounds: "1 to 16777216",
	},
	"claviger.delegation.max.tokens.per.owner": {
		Type: "int", Bounds: "1 to 16777216",
	},
	"claviger.delegation.rate.per.owner": {
		Type: "number", Bounds: "0.001 to 16777216", Unit: "a second",
	},
	"claviger.delegation.burst.per.owner": {
		Type: "int", Bounds: "1 to 16777216",
	},
	"claviger.delegation.max.renewer.bytes": {
		Type: "int", Bounds: "1 to 512", Unit: "bytes",
	},
	"claviger.groups.max.users": {
		Type: "int", Bounds: "1 to 16777216",
	},
	"claviger.groups.max.lookups": {
		Type: "int", Bounds: "1 to 1024",
	},
	"claviger.groups.max.stale":     {Type: "time"},
	"claviger.audit.file":           {Type: "file"},
	"claviger.audit.hadoop.enabled": {Type: "bool"},
	"claviger.audit.json.file":      {Type: "file"},
	"claviger.audit.json.stdout":    {Type: "bool"},
	"claviger.audit.json.key.file":  {Type: "file"},
	"claviger.audit.rotate.size": {
		Type: "int", Bounds: "0 to 9223372036854775807", Unit: "bytes",
	},
	"claviger.audit.rotate.interval": {Type: "time"},
	"claviger.audit.rotate.keep": {
		Type: "int", Bounds: "0 to 2147483647",
	},
	"claviger.ssl.certificate": {Type: "file"},
	"claviger.ssl.key.timeout": {Type: "time"},
	"claviger.ssl.key.max.handshakes": {
		Type: "int", Bounds: "1 to 256",
	},
	"claviger.ssl.truststore": {Type: "file"},
	"claviger.ssl.truststore.type": {
		Type: "one of", Bounds: "jks, jceks, pkcs12 or pem",
	},
	"claviger.client.kerberos.keytab": {Type: "file"},
	"claviger.source.timeout":         {Type: "time"},
	"claviger.source.max.waiting": {
		Type: "int", Bounds: "1 to 1048576",
	},
	"claviger.kms.max.num.keys": {
		Type: "int", Bounds: "1 to 2147483647",
	},
	"claviger.kms.max.batch": {
		Type: "int", Bounds: "1 to 2147483647",
	},
	"claviger.kms.max.body.bytes": {
		Type: "int", Bounds: "65536 to 4294967296", Unit: "bytes",
	},
	"claviger.kms.max.memory.bytes": {
		Type: "int", Bounds: "1 to 1099511627776", Unit: "bytes",
	},
	"claviger.kms.max.concurrent.decrypts": {
		Type: "int", Bounds: "1 to 1048576",
	},
	"claviger.kms.max.concurrent.generates": {
		Type: "int", Bounds: "1 to 1048576",
	},
	"claviger.kms.max.concurrent.batches": {
		Type: "int", Bounds: "1 to 1048576",
	},
	"claviger.kms.max.concurrent.management": {
		Type: "int", Bounds: "1 to 1048576",
	},
	"claviger.kms.max.concurrent.reads": {
		Type: "int", Bounds: "1 to 1048576",
	},
	"claviger.kms.max.edek.bytes": {
		Type: "int", Bounds: "64 to 1048576", Unit: "bytes",
	},
	"claviger.kms.max.new.versions": {
		Type: "int", Bounds: "0 to 2147483647", Unit: "an hour",
	},
	"claviger.kms.max.metadata.names": {
		Type: "int", Bounds: "1 to 65536",
	},
	"claviger.http.max.parameters": {
		Type: "int", Bounds: "16 to 65536",
	},
	"claviger.http.slow.grace": {Type: "time"},
	"claviger.http.slow.rate": {
		Type: "int", Bounds: "1 to 1099511627776", Unit: "bytes a second",
	},
	"claviger.kms.max.wait":     {Type: "time"},
	"claviger.shutdown.timeout": {Type: "time"},
	"claviger.delete.soft":      {Type: "bool"},
	"claviger.hsm.max.searches": {
		Type: "int", Bounds: "1 to 1000000", Unit: "a minute",
	},
	"claviger.hsm.generate": {
		Type: "one of", Bounds: "encrypted or implied",
	},
	"claviger.hsm.generate.lease": {
		Type: "time", Bounds: "1s to 10m",
	},
	"claviger.hsm.self.check": {
		Type: "one of", Bounds: "none, sampled or twice",
	},
	"claviger.purge.min.unused":        {Type: "time"},
	"claviger.source.compare.interval": {Type: "time"},
	"claviger.migration.gap": {
		Type: "int", Bounds: "0 to 1000000",
	},
	"claviger.migration.versions": {
		Type: "one of", Bounds: "auto, all or current",
	},
	"claviger.metrics.enabled": {Type: "bool"},
	"claviger.trace.ratio": {
		Type: "number", Bounds: "0 to 1",
	},
	"hadoop.security.group.mapping.providers.combined": {Type: "bool"},
}
