package kmsapi

import (
	"fmt"
	"testing"
	"time"
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
