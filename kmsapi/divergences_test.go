package kmsapi_test

import "strings"

// everywhereIDs are differences in many answers that no client notices. The replay checks that
// they still occur.
var everywhereIDs = words("D-json-whitespace D-content-length D-date D-servlet-name")

// divergences holds the known differences: by recording and by the part of the answer that
// differs, the id of the line in docs/hadoop-divergences with the reason.
var divergences = table(map[string]string{
	"D-reason-phrase: reason": `auth-cookie-bad-signature auth-cookie-bad-signature-options auth-cookie-empty
		auth-cookie-empty-value auth-cookie-garbage auth-cookie-unsigned conf-missing jmx-noauth kms-jmx-noauth
		auth-none auth-none-delete auth-none-head auth-none-json-accept auth-none-options auth-none-post
		auth-none-put auth-none-unknown auth-token-type auth-username-amp auth-username-empty doas-empty
		doas-missing-realuser-cookie expired-cookie expired-cookie-options expired-cookie-post
		expired-cookie-secret-rolled krb-none krb-none-options krb-basic krb-username krb-garbage krb-garbage-options
		krb-empty-token krb-ntlm krb-lowercase-scheme krb-replay krb-norule krb-dt-get-doas krb-dt-get-none-options
		dt-get-put dt-renew-not-renewer dt-renew-get dt-renew-no-token dt-renew-garbage dt-cancel-other-user
		dt-cancel-no-token dt-cancel-garbage dt-cancel-again dt-renew-cancelled dt-unknown-op-noauth
		simple-key-create-1 simple-key-create-existing-1 simple-key-list-1 simple-key-list-metadata-1
		simple-createZone-1 simple-put-2 simple-cat-1 simple-key-roll-1 simple-put2-1 simple-cat-after-1
		simple-key-invalidate-1 simple-key-roll-missing-1 simple-key-delete-1 simple-key-delete-missing-1
		kerberos-key-create-1 kerberos-key-roll-1 kerberos-key-list-nocred-1 kerberos-key-list-nocred-2
		kerberos-dt-get-keytab-1 kerberos-dt-get-keytab-4 kerberos-dt-renew-1 kerberos-dt-renew-wrong-1
		kerberos-dt-renew-wrong-3`,
	"D-token-errors: Content-Type Cache-Control Expires Content-Length body": `dt-get-put dt-renew-not-renewer
		dt-renew-no-token dt-renew-garbage dt-cancel-other-user dt-cancel-no-token dt-cancel-garbage dt-cancel-again
		dt-renew-cancelled kerberos-dt-renew-wrong-3`,
	"D-token-errors: Content-Type Cache-Control Expires body": `dt-renew-get`,
	"D-jceks-names: body": `names accept-java accept-none-quality doas-allowed doas-case doas-twice dt-use-header
		dt-use-query dt-use-doas dt-use-with-cookie names-final doas-username req-gzip simple-key-list-3
		simple-key-list-metadata-3 auth-cookie-and-username auth-other-cookies auth-two-cookies`,
	"D-bad-token: body":    `krb-ntlm`,
	"D-quoted-twice: body": `auth-cookie-unsigned`,
	"D-stack-trace: body":  `auth-username-amp auth-username-empty doas-empty krb-norule krb-dt-get-doas`,
	"D-wadl: Content-Type Vary Last-Modified Content-Length body": `auth-username-options options-eek options-keys
		options-v1-slash options-v1-slash-username doas-options-allowed anonymous-options dt-use-options
		simple-key-create-2 simple-key-create-existing-2 simple-key-list-2 simple-key-list-metadata-2
		simple-createZone-2 simple-put-3 simple-cat-2 simple-key-roll-2 simple-put2-2 simple-cat-after-2
		simple-key-invalidate-2 simple-key-roll-missing-2 simple-key-delete-2 simple-key-delete-missing-2
		kerberos-key-create-2 kerberos-key-roll-2 kerberos-dt-get-keytab-2 kerberos-dt-get-keytab-5
		kerberos-dt-renew-2 kerberos-dt-renew-wrong-2`,
	"D-location: Location": `create-201 create-201-attributes-256 create-201-defaults create-201-material
		create-201-material-stdb64-padded create-201-null-fields create-unknown-field create-name-with-at
		create-content-type-charset create-user-name-only name-plus-create name-slash-create name-space-create
		name-percent-create name-umlaut-create name-semicolon-create name-hash-create name-question-create
		name-dslash-create name-dotdot-create name-newline-create name-quote-create name-dot-create
		name-leadslash-create name-under-create name-backslash-create name-pipe-create name-colon-create req-chunked
		create-again-after-delete create-length-192 create-cipher-cbc create-json-duplicate create-json-trailing
		create-json-bom-latin1 acl-create-no-get acl-create-kb acl-create-kall acl-create-with-acl-name
		noauthz-create krb-create simple-key-create-3 kerberos-key-create-3`,
	"D-json-message: body":                      `create-invalid-json decrypt-invalid-json reencryptbatch-invalid-json`,
	"D-key-name-as-version: status reason body": `keyversion-is-key-name`,
	"D-cipher-length: status reason body":       `create-cipher-des`,
	"D-unknown-path: status reason": `kms-root kms-root-slash options-unknown unknown-path unknown-path-outside-v1
		kms-conf path-dotdot path-double-slash path-double-slash-2 path-pct-unreserved kms-noslash-options
		acl-unknown-path-denied`,
	"D-method: status reason Allow": `v1-root v1-root-slash wrong-method-delete-names wrong-method-get-keys
		wrong-method-patch wrong-method-put wrong-method-trace dt-unknown-op`,
	"D-start-page: status reason Content-Type Location " +
		"Cache-Control Expires Content-Length body": `root redirect-root`,
	"D-servlets: status reason Content-Type WWW-Authenticate " +
		"Set-Cookie Cache-Control Expires body": `logs`,
	"D-servlets: status reason Content-Type WWW-Authenticate Set-Cookie " +
		"Cache-Control Last-Modified Pragma body": `static`,
	"D-log-level: body":               `loglevel`,
	"D-jmx: beans":                    `jmx kms-jmx-username`,
	"D-bad-escape: Content-Type body": `path-bad-escape`,
})

// table converts rows from "ID: parts that differ" to the names of recordings into divergences.
func table(rows map[string]string) map[string]map[string]string {
	byName := map[string]map[string]string{}
	for row, names := range rows {
		id, what, _ := strings.Cut(row, ": ")
		for name := range words(names) {
			if byName[name] == nil {
				byName[name] = map[string]string{}
			}
			for w := range words(what) {
				byName[name][w] = id
			}
		}
	}
	return byName
}

func allIDs() map[string]bool {
	ids := map[string]bool{}
	for id := range everywhereIDs {
		ids[id] = true
	}
	for _, diffs := range divergences {
		for _, id := range diffs {
			ids[id] = true
		}
	}
	return ids
}
