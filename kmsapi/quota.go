package kmsapi

import (
	"maps"
	"strconv"
	"sync"
	"time"

	"claviger/kmswire"
)

// tooManyVersions is the reason of a refusal for the quota of new versions.
const tooManyVersions = "new_versions"

// A user with the right CREATE can make and delete keys without end. Each leaves objects in
// the HSM, which has room for so many: what is deleted stays for its time, and what is purged
// until an operator prunes it. So a user makes a bounded number of versions in an hour.
const (
	newVersionsIn = time.Hour
	// quotaUsers bounds the users that are counted.
	quotaUsers = 1 << 14
)

// quota counts what users have made in this hour.
type quota struct {
	most int // 0: no limit

	mu    sync.Mutex
	began time.Time
	made  map[string]int
}

// take counts one more of a user's, and refuses it where there were enough.
func (q *quota) take(user string, now time.Time) bool {
	if q.most <= 0 {
		return true
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.made == nil || now.Sub(q.began) >= newVersionsIn {
		q.began, q.made = now, map[string]int{}
	}
	if _, counted := q.made[user]; !counted && len(q.made) >= quotaUsers {
		q.forget()
	}
	if q.made[user] >= q.most {
		return false
	}
	q.made[user]++
	return true
}

// forget makes room for other users, by those who have made fewest: a user must not lose
// the own count by many invented names. q.mu is held.
func (q *quota) forget() {
	for few := 1; len(q.made) > quotaUsers/2; few *= 2 {
		maps.DeleteFunc(q.made, func(_ string, n int) bool { return n <= few && n < q.most })
		if few > q.most {
			clear(q.made) // each of them has used all of it
			return
		}
	}
}

// mayMake refuses a creation or a roll beyond the user's number. Nothing was done: another
// node, or this one later, may do it.
func (c *call) mayMake() error {
	if c.newVersions.take(c.caller.Short, time.Now()) {
		return nil
	}
	c.Refused(tooManyVersions)
	if silent, ok := c.warned.due("new_versions "+c.caller.Short, ""); ok {
		c.Log.Warn("a user makes more key versions than one may in an hour (claviger.kms.max.new.versions)", "user", c.caller.Short, "limit", c.newVersions.most, "notShown", silent)
	}
	return kmswire.Throw(kmswire.StandbyException, "you have made "+strconv.Itoa(c.newVersions.most)+" key versions here within an hour, and more are not made for one user; repeat it later")
}
