package kms

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"claviger/authn"
	"claviger/hadoopconf"
	"claviger/internal/certtest"
	"claviger/internal/kdctest"
	"claviger/internal/logtest"
	"claviger/internal/softhsm/softhsmtest"
	"claviger/kms/kmstest"
	"claviger/pkcs11"
	"claviger/tlskey/tlskeytest"
)

// wrongText is a wrong value for numbers, times, lists of words, URIs and files.
const wrongText = "bogus value"

// wrongValue is a wrong value of a property of hadoopconf.KMS.
type wrongValue struct {
	name  string // replaces a pattern in the table
	value string // "" means wrongText
	with  string // the settings with which the server reads it, see wrongSettings; "" means plain
	// warned means that the server starts, with a warning.
	warned bool
	// free is the reason why every text is right. Then the test tries no value.
	free   string
	hidden bool // the value may be a password, so errors do not show it
}

// Reasons why every text is right.
const (
	freeName     = "a name that the site chose"
	freeACL      = "names of users and groups"
	freeTheirs   = "only the other side can check it"
	freePassword = "every text can be a password"
	freeText     = "the server only shows it"
)

const (
	signer    = signerPrefix
	ldapOf    = authn.LDAPPrefix
	noFile    = "/nowhere/bogus"
	kmsClient = "hadoop.security.kms.client."
)

// wrongValues are the properties that need another value than wrongText, or other settings
// than those of a server with a jceks:// provider.
var wrongValues = map[string]wrongValue{
	"hadoop.kms.http.administrators":  {free: freeACL},
	hadoopconf.SensitiveKeys:          {value: "(", with: "plain"},
	"hadoop.http.header.*":            {name: "hadoop.http.header.X", value: "a&#9;b"},
	hadoopconf.TrusteeConf:            {value: noFile, with: "keytrustee"},
	"hadoop.tmp.dir":                  {free: "nothing is written there"},
	"hadoop.kms.metrics.process.name": {free: freeText},
	"hadoop.kms.metrics.session.id":   {free: freeText},
	"claviger.audit.node":             {free: freeText},
	hadoopconf.HDFSSuperusers:         {free: freeACL},
	"hadoop.security.keystore.java-keystore-provider.password-file": {value: noFile},

	"claviger.keytrustee.material.life":       {with: "keytrustee"},
	"claviger.keytrustee.shared.organization": {with: "keytrustee"},
	"claviger.delete.soft":                    {with: "hsm"},
	"claviger.hsm.max.searches":               {with: "hsm"},
	hadoopconf.MetastoreURI:                   {with: "source", hidden: true},
	hadoopconf.MetastoreSeen:                  {with: "postgres"},
	kmsClient + "timeout":                     {with: "source"},
	kmsClient + "failover.max.retries":        {with: "source"},
	kmsClient + "failover.sleep.base.millis":  {with: "source"},
	kmsClient + "failover.sleep.max.millis":   {with: "source"},

	"claviger.ssl.rsa":                                               {with: "https"},
	"claviger.ssl.key":                                               {with: "https"},
	"claviger.ssl.certificate":                                       {value: noFile, with: "https key"},
	"claviger.ssl.key.timeout":                                       {with: "https key"},
	"claviger.ssl.key.max.handshakes":                                {with: "https key"},
	"hadoop.ssl.enabled.protocols":                                   {with: "https"},
	"hadoop.ssl.server.conf":                                         {value: noFile, with: "https"},
	"hadoop.ssl.client.conf":                                         {value: noFile, with: "https source"},
	"hadoop.security.credential.provider.path":                       {with: "https"},
	"hadoop.security.credstore.java-keystore-provider.password-file": {value: noFile, with: "credentials"},
	"hadoop.security.credential.clear-text-fallback":                 {with: "https"},
	"claviger.ssl.truststore":                                        {value: noFile, with: "https source"},
	"claviger.ssl.truststore.type":                                   {with: "truststore"},
	"claviger.ssl.truststore.password":                               {free: freePassword},
	clientCCache: {free: "a cache that need not be there before " +
		"it is used"},

	authKeytab:  {value: noFile, with: "kerberos"},
	authService: {with: "kerberos"},
	authRules:   {with: "kerberos"},
	authPrefix + "kerberos.name.rules.mechanism": {with: "rules"},
	authPrefix + "kerberos.endpoint.whitelist":   {value: "a b", with: "kerberos"},
	authToLocal + ".mechanism":                   {with: "rules"},
	authPrefix + authn.SchemesProperty:           {with: "schemes"},
	authPrefix + "multi-scheme-auth-handler.schemes.*.handler": {name: authPrefix +
		authn.SchemeHandlerProperty("negotiate"), with: "schemes"},
	authPrefix + authn.DelegationSchemesProperty: {with: "schemes"},
	authPrefix + "signature.secret.file":         {value: noFile, with: "secret file"},

	signer + "path":                            {with: "zookeeper"},
	signer + "connection.string":               {with: "zookeeper"},
	signer + "auth.type":                       {with: "zookeeper"},
	signer + "kerberos.keytab":                 {value: noFile, with: "zookeeper sasl"},
	signer + "kerberos.principal":              {value: "kms/#HOSTNAME#", with: "zookeeper sasl"},
	signer + "kerberos.server.principal":       {free: freeTheirs},
	signer + "ssl.enabled":                     {with: "zookeeper"},
	signer + "ssl.keystore.location":           {value: noFile, with: "zookeeper tls"},
	signer + "ssl.keystore.password":           {free: freePassword},
	signer + "ssl.truststore.location":         {value: noFile, with: "zookeeper tls"},
	signer + "ssl.truststore.password":         {free: freePassword},
	tokensPrefix + "zkConnectionString":        {with: "tokens"},
	tokensPrefix + "zkAuthType":                {with: "tokens"},
	tokensPrefix + "znodeWorkingPath":          {value: "/a/../b", with: "tokens"},
	tokensPrefix + "kerberos.keytab":           {value: noFile, with: "tokens sasl"},
	tokensPrefix + "kerberos.principal":        {value: "kms/#HOSTNAME#", with: "tokens sasl"},
	tokensPrefix + "kerberos.server.principal": {free: freeTheirs},
	tokensPrefix + "ssl.enabled":               {with: "tokens"},
	tokensPrefix + "ssl.keystore.location":     {value: noFile, with: "tokens tls"},
	tokensPrefix + "ssl.keystore.password":     {free: freePassword},
	tokensPrefix + "ssl.truststore.location":   {value: noFile, with: "tokens tls"},
	tokensPrefix + "ssl.truststore.password":   {free: freePassword},

	"hadoop.kms.proxyuser.*.users":  {free: freeACL},
	"hadoop.kms.proxyuser.*.groups": {free: freeACL},
	"hadoop.kms.proxyuser.*.hosts":  {name: "hadoop.kms.proxyuser.oozie.hosts", value: "10.0.0.0/99", warned: true},

	authn.StaticMappingProperty:              {value: "a=b=c"},
	hadoopconf.GroupProviders:                {value: "a, b", with: "composite"},
	hadoopconf.GroupProviders + ".combined":  {with: "composite"},
	hadoopconf.GroupProviderPrefix + "*":     {name: hadoopconf.GroupProviderPrefix + "one", with: "composite"},
	ldapOf + "url":                           {with: "ldap"},
	ldapOf + "ssl":                           {with: "ldap"},
	ldapOf + "ssl.truststore":                {value: noFile, with: "ldap"},
	ldapOf + "ssl.truststore.password":       {free: freePassword},
	ldapOf + "ssl.truststore.password.file":  {value: noFile, with: "ldap truststore"},
	ldapOf + "bind.user":                     {with: "ldap"}, // it has no password
	ldapOf + "bind.password":                 {free: freePassword},
	ldapOf + "bind.password.file":            {value: noFile, with: "ldap"},
	ldapOf + "base":                          {with: "ldap"},
	ldapOf + "userbase":                      {with: "ldap"},
	ldapOf + "groupbase":                     {with: "ldap"},
	ldapOf + "search.filter.user":            {with: "ldap"},
	ldapOf + "search.filter.group":           {with: "ldap"},
	ldapOf + "search.attr.member":            {free: freeTheirs},
	ldapOf + "search.attr.memberof":          {free: freeTheirs},
	ldapOf + "search.attr.group.name":        {free: freeTheirs},
	ldapOf + "posix.attr.uid.name":           {free: freeTheirs},
	ldapOf + "posix.attr.gid.name":           {free: freeTheirs},
	ldapOf + "search.group.hierarchy.levels": {with: "ldap"},
	ldapOf + "conversion.rule":               {with: "ldap rules"},
	ldapOf + "connection.timeout.ms":         {with: "ldap"},
	ldapOf + "directory.search.timeout":      {with: "ldap"},

	"claviger.audit.file":          {value: noFile},
	"claviger.audit.json.file":     {value: noFile},
	"claviger.audit.json.key.file": {value: noFile, with: "json"},
}

// wrongSettings returns settings by their names in wrongValue.with. The wrong value replaces
// its property.
func wrongSettings(t *testing.T, dir string) map[string]map[string]string {
	t.Helper()
	plain := map[string]string{
		hadoopconf.ProviderURI: "jceks://file@" + filepath.Join(dir, "k.jceks"),
		"hadoop.kms.http.host": "127.0.0.1",
		"claviger.audit.file":  filepath.Join(dir, "audit.log"),
	}
	and := func(base map[string]string, pairs ...string) map[string]string {
		m := maps.Clone(base)
		for i := 0; i < len(pairs); i += 2 {
			m[pairs[i]] = pairs[i+1]
		}
		return m
	}
	authority := certtest.New(t, dir)
	pem := authority.CA
	kmstest.WriteFile(t, filepath.Join(dir, "ssl-server.xml"), kmstest.SiteXML("ssl.server.keystore.location",
		authority.Issue("server", "localhost")))
	kmstest.WriteFile(t, filepath.Join(dir, "kts-site.xml"),
		kmstest.SiteXML("cloudera.trustee.keyprovider.hostname-ACTIVE", "127.0.0.1:1",
			"cloudera.trustee.keyprovider.org", "o"))

	tok := softhsmtest.New(t)
	token := filepath.Join(dir, "luna.keystore")
	if err := pkcs11.WriteKeystoreFile(token, pkcs11.FileConfig{Module: tok.Module, Token: tok.Label,
		PINFile: tok.PINFile,
		Profile: pkcs11.SoftHSM}); err != nil {
		t.Fatal(err)
	}
	keytab := kdctest.Start(t).Keytab("kms", "HTTP/localhost")

	const template = "RULE:[1:$1]"
	set := map[string]map[string]string{
		"plain":      plain,
		"source":     and(plain, hadoopconf.SourceURI, "kms://http@127.0.0.1:1/kms"),
		"hsm":        and(plain, hadoopconf.ProviderURI, "cloudera.hsmkp://file@"+token),
		"keytrustee": and(plain, hadoopconf.ProviderURI, "keytrustee://file@"+dir+"/.keytrustee"),
		"https":      and(plain, "hadoop.kms.ssl.enabled", "true"),
		"rules":      and(plain, authToLocal, template),
		"kerberos": and(plain, authType, "kerberos", authKeytab, keytab, authService, "HTTP/localhost", authRules,
			template),
		"secret file": and(plain, signerKind, "file"),
		"zookeeper":   and(plain, signerKind, "zookeeper", signer+"connection.string", "127.0.0.1:1"),
		"tokens": and(plain, tokensEnable, "true", tokensEnsemble, "127.0.0.1:1", tokensPrefix+"zkAuthType",
			"none"),
		"composite": and(plain, hadoopconf.GroupMapping, "CompositeGroupsMapping", hadoopconf.GroupProviders, "one",
			hadoopconf.GroupProviderPrefix+"one", "NullGroupsMapping"),
		"ldap": and(plain, hadoopconf.GroupMapping, "LdapGroupsMapping", ldapOf+"url", "ldap://127.0.0.1:1",
			ldapOf+"base", "dc=x"),
		"json": and(plain, "claviger.audit.json.file", filepath.Join(dir, "audit.json")),
	}
	set["postgres"] = and(set["source"], hadoopconf.MetastoreURI, "postgresql://a@127.0.0.1:1/d")
	set["https source"] = and(plain, hadoopconf.SourceURI, "kms://https@127.0.0.1:1/kms")
	uri, public := tlskeytest.New(t, tok, "", pkcs11.P256, "tls")
	set["https key"] = and(set["https"], tlsKeyProperty, strings.ReplaceAll(uri, "&", "&amp;"),
		tlsCertificateProperty, authority.IssueFor(public, "tls", "localhost"))
	set["truststore"] = and(set["https source"], "claviger.ssl.truststore", pem)
	set["credentials"] = and(set["https"], "hadoop.security.credential.provider.path",
		"localjceks://file"+dir+"/c.jceks")
	set["schemes"] = and(set["kerberos"], authType, delegationBy+"MultiSchemeDelegationTokenAuthenticationHandler",
		authPrefix+authn.SchemesProperty, "negotiate",
		authPrefix+authn.SchemeHandlerProperty("negotiate"), "kerberos", authPrefix+authn.DelegationSchemesProperty,
		"negotiate")
	for _, at := range []string{"zookeeper", "tokens"} {
		prefix, auth := signer, signer+"auth.type"
		if at == "tokens" {
			prefix, auth = tokensPrefix, tokensPrefix+"zkAuthType"
		}
		set[at+" sasl"] = and(set[at], auth, "sasl", prefix+"kerberos.keytab", keytab, prefix+"kerberos.principal",
			"kms/h")
		set[at+" tls"] = and(set[at], prefix+"ssl.enabled", "true", prefix+"ssl.truststore.location", pem)
	}
	set["ldap truststore"] = and(set["ldap"], ldapOf+"ssl.truststore", pem)
	set["ldap rules"] = and(set["ldap"], hadoopconf.GroupMapping, "RuleBasedLdapGroupsMapping")
	return set
}

// startLog is the log of a server. It stops the server when that serves, or waits for a part.
type startLog struct {
	slog.Handler
	stop context.CancelFunc
}

func (l startLog) Handle(ctx context.Context, r slog.Record) error {
	if r.Message == "serving" || strings.Contains(r.Message, "does not answer; the server tries to start") {
		l.stop()
	}
	return l.Handler.Handle(ctx, r)
}

// startOnce starts a server, and stops it as soon as it serves or waits for a part, or after limit.
func startOnce(t *testing.T, dir string, limit time.Duration) (log string, err error) {
	t.Helper()
	ctx, stop := context.WithTimeout(t.Context(), limit)
	defer stop()
	text := &logtest.Buffer{}
	h := startLog{slog.NewTextHandler(text, nil), stop}
	err = Serve(ctx, Options{Dir: dir, Port: -1, Log: slog.New(h), Level: new(slog.LevelVar)})
	return text.String(), err
}

// startWith is startOnce with these settings and one other property, which is in line 2 of the file.
func startWith(t *testing.T, dir string, settings map[string]string, name, value string) (log string, err error) {
	t.Helper()
	pairs := []string{name, value}
	for _, other := range slices.Sorted(maps.Keys(settings)) {
		if other != name {
			pairs = append(pairs, other, settings[other])
		}
	}
	if name != "hadoop.kms.http.port" {
		pairs = append(pairs, "hadoop.kms.http.port", "0")
	}
	kmstest.WriteFile(t, filepath.Join(dir, "kms-site.xml"), kmstest.SiteXML(pairs...))
	limit := 10 * time.Second
	if settings[signerKind] == "zookeeper" { // no server answers: the KMS tries to get secrets until it is stopped
		limit = 2 * time.Second
	}
	return startOnce(t, dir, limit)
}

// TestWrongValues: a wrong value of any property keeps the server from starting, and the error
// names file, line, property and value. For the others the table has the reason why every value
// is right.
func TestWrongValues(t *testing.T) {
	dir := t.TempDir()
	settings := wrongSettings(t, dir)
	start := func(with, name, value string) (string, error) {
		return startWith(t, dir, settings[with], name, value)
	}
	for _, with := range slices.Sorted(maps.Keys(settings)) {
		if with == "keytrustee" || with == "secret file" || strings.HasPrefix(with, "zookeeper") {
			continue // these need servers that do not run, or the property that gets the wrong value
		}
		if log, err := start(with, "x", "y"); err != nil {
			t.Errorf("%s: %v\n%s", with, err, log)
		}
	}
	known := map[string]bool{}
	for _, k := range hadoopconf.KMS {
		known[k.Name] = true
		w := wrongValues[k.Name]
		if w.free != "" {
			continue
		}
		name, value := k.Name, wrongText
		if w.name != "" {
			name = w.name
		}
		if w.value != "" {
			value = w.value
		}
		with := w.with
		if with == "" {
			with = "plain"
		}
		if settings[with] == nil {
			t.Fatalf("%s: no settings %q", name, with)
		}
		name = strings.Replace(name, "*", "x", 1) // of a group of properties without effect
		log, err := start(with, name, value)
		unused := strings.HasPrefix(k.Doc, "accepted and not used") || w.warned
		if why := otherType(k.Name, err); why != "" {
			t.Errorf("hadoopconf.Values has another type of %s: %s", k.Name, why)
		}
		shown := strings.ReplaceAll(value, "&#9;", `\t`)
		switch where := filepath.Join(dir, "kms-site.xml:2") + ": property " + name; {
		case err == nil && unused && (strings.Contains(log, where) || strings.Contains(log, name) && w.warned):
		case err == nil:
			t.Errorf("%s = %s: the server started; the log:\n%s", name, value, log)
		case !strings.Contains(err.Error(), where) || strings.Contains(err.Error(), shown) == w.hidden:
			t.Errorf("%s = %s: %v", name, value, err)
		case foundWithout(t, dir, where) == (faultless[name] != ""):
			t.Errorf("%s = %s: found without a start, or not, against the table faultless", name, value)
		}
	}
	for name := range wrongValues {
		if !known[name] {
			t.Errorf("%s is not a property of hadoopconf.KMS", name)
		}
	}
}

// faultless are the properties whose wrong values only a start finds, with the step of the start.
var faultless = map[string]string{
	"hadoop.kms.http.host":                                          "the server listens",
	hadoopconf.TrusteeConf:                                          "the provider is opened",
	"claviger.keytrustee.material.life":                             "the provider is opened",
	"claviger.keytrustee.shared.organization":                       "the provider is opened",
	"hadoop.security.keystore.java-keystore-provider.password-file": "the provider is opened",
	kmsClient + "timeout":                                           "the provider is opened",
	kmsClient + "failover.max.retries":                              "the provider is opened",
	kmsClient + "failover.sleep.base.millis":                        "the provider is opened",
	kmsClient + "failover.sleep.max.millis":                         "the provider is opened",
	signer + "path":                                                 "the connection to ZooKeeper is made",
	tokensPrefix + "znodeWorkingPath":                               "the connection to ZooKeeper is made",
	hadoopconf.MetastoreSeen:                                        "the store is opened",
	"claviger.audit.file":                                           "the file is opened for writing",
	"claviger.audit.json.file":                                      "the file is opened for writing",
	"claviger.audit.json.syslog":                                    "the connection is made",
}

// foundWithout reports whether Faults finds a fault of the configuration at that place, without a start.
func foundWithout(t *testing.T, dir, where string) bool {
	t.Helper()
	conf, err := hadoopconf.LoadKMS(dir, os.LookupEnv)
	if err != nil {
		return strings.Contains(err.Error(), where)
	}
	for _, fault := range Faults(conf, slog.New(slog.DiscardHandler)) {
		if strings.Contains(fault.Error(), where) {
			return true
		}
	}
	return false
}

// otherType compares the refusal of a wrong value with the type that hadoopconf.Values has.
func otherType(name string, refusal error) string {
	v, text := hadoopconf.Values[name], fmt.Sprint(refusal)
	of := map[string]string{"bool": "it must be true or false", "int": "it must be a whole number from ",
		"number": "it must be a number between ", "time": "it must be a time"}
	want := of[v.Type] + v.Bounds
	switch {
	case v.Type == "number":
		want = of[v.Type] + strings.Replace(v.Bounds, " to ", " and ", 1)
	case v.Type == "one of", v.Type == "time" && v.Bounds != "":
		want = "it must be " + v.Bounds
	case of[v.Type] == "":
		for typ, says := range of {
			if strings.Contains(text, says) {
				return "it is of type " + typ
			}
		}
		return ""
	}
	if !strings.Contains(text, want) {
		return fmt.Sprintf("%q lacks %q", text, want)
	}
	return ""
}
