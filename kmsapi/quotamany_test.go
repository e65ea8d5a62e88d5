package kmsapi

import (
	"fmt"
	"testing"
	"time"

	"claviger"
)

// TestQuotaOfManyUsers: requests under many invented user names neither fill the memory nor
// reset the count of another user.
func TestQuotaOfManyUsers(t *testing.T) {
	q, now := quota{most: 5}, time.Now()
	for range 5 {
		if !q.take("mallory", now) {
			t.Fatal("refused too early")
		}
	}
	for i := range 3 * quotaUsers {
		if !q.take(fmt.Sprint("invented", i), now) {
			t.Fatalf("user %d is refused", i)
		}
		if len(q.count) > quotaUsers {
			t.Fatalf("%d users are counted", len(q.count))
		}
	}
	if q.take("mallory", now) {
		t.Error("invented users gave mallory a new count")
	}
	if !q.take("mallory", now.Add(quotaPeriod)) {
		t.Error("refused in the next hour")
	}
}

// TestQuotaGivenBack: a refusal that shows that no version was begun does not count. A failure of the HSM or of the
// metastore counts, because it may have left an object.
func TestQuotaGivenBack(t *testing.T) {
	for kind, back := range map[claviger.Kind]bool{
		claviger.Denied: true, claviger.KeyDenied: true, claviger.KeyExists: true, claviger.KeyNotFound: true,
		claviger.Invalid: true, claviger.InvalidKeySize: true, claviger.MaterialLength: true,
		claviger.UnknownCipher: true, claviger.Unsupported: true,
		claviger.Unavailable: false, claviger.Internal: false, claviger.Closed: false,
	} {
		c := &call{api: &api{newVersions: quota{most: 1}}}
		if !c.newVersions.take("", time.Now()) {
			t.Fatal("refused too early")
		}
		c.returnQuota(claviger.E("test", kind, "k", nil))
		if got := c.newVersions.take("", time.Now()); got != back {
			t.Errorf("%v: given back: %t", kind, got)
		}
	}
}
