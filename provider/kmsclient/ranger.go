package kmsclient

import (
	"bytes"
	"context"
	"fmt"
	"net/http"
	"time"
)

// A Ranger KMS speaks Hadoop's protocol, but has its rules in policies of Ranger Admin, not in kms-acls.xml. Since
// Ranger 2.2 it can be recognized by one page that needs no login: GET /kms/api/status returns
//
//	{"status":"Ranger KMS service is running"}
//
// (apache/ranger, RangerKMSRestApi.java, KMSAuthenticationFilter.java). An older Ranger KMS looks like Hadoop's.
const (
	rangerPath    = "/api/status"
	rangerText    = "Ranger KMS"
	rangerTimeout = 3 * time.Second
)

// The kinds of a KMS, in Provider.kind.
const (
	kindUnknown = iota
	kindHadoop
	kindRanger
)

// Ranger reports whether the KMS is a Ranger KMS. It sends a request until the KMS has answered once.
func (p *Provider) Ranger(ctx context.Context) bool {
	if k := p.kind.Load(); k != kindUnknown {
		return k == kindRanger
	}
	ctx, cancel := context.WithTimeout(ctx, rangerTimeout)
	defer cancel()
	for _, h := range p.order() {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, h.base+rangerPath, nil)
		if err != nil {
			return false
		}
		resp, err := p.client.Do(req)
		if err != nil {
			continue
		}
		body, err := readAll(resp.Body, maxErrorBody)
		drain(resp)
		if err != nil {
			continue
		}
		kind := int32(kindHadoop)
		if resp.StatusCode == http.StatusOK && bytes.Contains(body, []byte(rangerText)) {
			kind = kindRanger
		}
		p.kind.Store(kind)
		return kind == kindRanger
	}
	return false
}

// rangerAccess maps Hadoop's operations to the accesses of a Ranger policy, as Ranger's RangerKmsAuthorizer does.
var rangerAccess = map[string]string{
	"CREATE_KEY": "create", "DELETE_KEY": "delete", "ROLL_NEW_VERSION": "rollover", "INVALIDATE_CACHE": "rollover",
	"GET_KEYS": "getkeys", "GET_METADATA": "getmetadata", "GET_KEYS_METADATA": "getmetadata",
	"GET_KEY_VERSION": "get", "GET_KEY_VERSIONS": "get", "GET_CURRENT_KEY": "get",
	"GENERATE_EEK": "generateeek", "REENCRYPT_EEK": "generateeek", "REENCRYPT_EEK_BATCH": "generateeek",
	"DECRYPT_EEK": "decrypteek",
}

// rangerAdvice returns advice which policy would allow the operation to the user. Ranger checks an operation without a
// key against the policies for all keys.
func rangerAdvice(operation, user, key string) string {
	access := rangerAccess[operation]
	if access == "" {
		return ""
	}
	if key == "" {
		key = "*"
	}
	return fmt.Sprintf(" (it is a Ranger KMS: a policy of its service in Ranger Admin must allow %s the access %s "+
		"on key %s, and hadoop.kms.blacklist.%s in its dbks-site.xml must not name that user)",
		user, access, key, aclOf[operation])
}
