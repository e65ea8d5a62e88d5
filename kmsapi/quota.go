package kmsapi

import (
	"maps"
	"strconv"
	"sync"
	"time"

	"claviger"
	"claviger/kmswire"
)

// tooManyVersions is the reason for which Config.Refused is called.
const tooManyVersions = "new_versions"

// A user with the right CREATE could make and delete keys without end. Each key
// leaves objects in the HSM, whose room is limited: a deleted key stays for its
// retention time, and a purged key until an operator prunes it. So a user may make
// only a limited number of versions in an hour.
const (
	quotaPeriod = time.Hour
	// quotaUsers is the greatest number of users that are counted.
	quotaUsers = 1 << 14
)

// quota counts the new key versions of each user in the current period.
type quota struct {
	most int // of one user; 0: no limit

	mu    sync.Mutex
	began time.Time
	count map[string]int // by user
}

// take counts one more version of a user. It returns false if the user has no
// quota left.
func (q *quota) take(user string, now time.Time) bool {
	if q.most <= 0 {
		return true
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.count == nil || now.Sub(q.began) >= quotaPeriod {
		q.began, q.count = now, map[string]int{}
	}
	if _, counted := q.count[user]; !counted && len(q.count) >= quotaUsers {
		q.forget()
	}
	if q.count[user] >= q.most {
		return false
	}
	q.count[user]++
	return true
}

// give returns one version to a user, whose creation or roll was refused.
func (q *quota) give(user string) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.count[user] > 0 {
		q.count[user]--
	}
}

// forget drops the users with the fewest versions, to make room for others. The users with most versions stay:
// otherwise a user could reset their own count by requests under many other names. q.mu is held.
func (q *quota) forget() {
	for limit := 1; len(q.count) > quotaUsers/2; limit *= 2 {
		maps.DeleteFunc(q.count, func(_ string, n int) bool { return n <= limit && n < q.most })
		if limit > q.most {
			clear(q.count) // all who are left have used their whole quota
			return
		}
	}
}

// checkQuota refuses a creation or a roll if the user has no quota left. Nothing
// was changed, so the client may try another node, or this node later.
func (c *call) checkQuota() error {
	if c.newVersions.take(c.caller.Short, time.Now()) {
		return nil
	}
	c.Refused(tooManyVersions)
	if notShown, ok := c.warned.due("new_versions "+c.caller.Short, ""); ok {
		c.Log.Warn("a user makes more key versions than one may in an hour (claviger.kms.max.new.versions)",
			"user", c.caller.Short, "limit", c.newVersions.most, "notShown", notShown)
	}
	return kmswire.Throw(kmswire.StandbyException, "you have made, or tried to make, "+
		strconv.Itoa(c.newVersions.most)+" key versions at this node within an hour, which is the limit of one user; "+
		"try again later")
}

// returnQuota gives the quota back after an error that shows that no version was begun. Other attempts that failed
// count: they may have left an object in the HSM until the next sweep.
func (c *call) returnQuota(err error) {
	switch claviger.KindOf(err) {
	case claviger.Denied, claviger.KeyDenied, claviger.KeyExists, claviger.KeyNotFound, claviger.Invalid,
		claviger.InvalidKeySize, claviger.MaterialLength, claviger.UnknownCipher, claviger.Unsupported:
		c.newVersions.give(c.caller.Short)
	}
}
