package audit

import (
	"regexp"
	"strings"
	"testing"
	"time"
)

// TestKMSAudit has the cases and regular expressions of Hadoop's own TestKMSAudit (3.4.2). evict is Hadoop's
// evictCacheForTesting, which ends all windows.
func TestKMSAudit(t *testing.T) {
	user := caller("luser@REALM")
	for name, test := range map[string]struct {
		run  func(ok func(op Op, key string, times int), log func(Event), evict func())
		want string
	}{
		"testAggregation": {func(ok func(Op, string, int), _ func(Event), evict func()) {
			ok(DecryptEEK, "k1", 3)
			ok(DeleteKey, "k1", 1)
			ok(RollNewVersion, "k1", 1)
			ok(InvalidateCache, "k1", 1)
			ok(DecryptEEK, "k1", 3)
			evict()
			ok(DecryptEEK, "k1", 1)
			evict()
			ok(ReencryptEEK, "k1", 3)
			evict()
			ok(ReencryptEEKBatch, "k1", 2)
			evict()
		}, `OK\[op=DECRYPT_EEK, key=k1, user=luser@REALM, accessCount=1, interval=[^m]{1,4}ms\] testmsg` +
			`OK\[op=DELETE_KEY, key=k1, user=luser@REALM\] testmsg` +
			`OK\[op=ROLL_NEW_VERSION, key=k1, user=luser@REALM\] testmsg` +
			`OK\[op=INVALIDATE_CACHE, key=k1, user=luser@REALM\] testmsg` +
			`OK\[op=DECRYPT_EEK, key=k1, user=luser@REALM, accessCount=6, interval=[^m]{1,4}ms\] testmsg` +
			`OK\[op=DECRYPT_EEK, key=k1, user=luser@REALM, accessCount=1, interval=[^m]{1,4}ms\] testmsg` +
			`OK\[op=REENCRYPT_EEK, key=k1, user=luser@REALM, accessCount=1, interval=[^m]{1,4}ms\] testmsg` +
			`OK\[op=REENCRYPT_EEK, key=k1, user=luser@REALM, accessCount=3, interval=[^m]{1,4}ms\] testmsg` +
			`OK\[op=REENCRYPT_EEK_BATCH, key=k1, user=luser@REALM\] testmsg` +
			`OK\[op=REENCRYPT_EEK_BATCH, key=k1, user=luser@REALM\] testmsg`},
		"testAggregationUnauth": {func(ok func(Op, string, int), log func(Event), evict func()) {
			log(Event{Status: Unauthorized, Op: GenerateEEK, Key: "k2", Caller: user})
			evict()
			ok(GenerateEEK, "k3", 5)
			log(Event{Status: Unauthorized, Op: GenerateEEK, Key: "k3", Caller: user})
			ok(GenerateEEK, "k3", 1)
			evict()
		}, `UNAUTHORIZED\[op=GENERATE_EEK, key=k2, user=luser@REALM\] ` +
			`OK\[op=GENERATE_EEK, key=k3, user=luser@REALM, accessCount=1, interval=[^m]{1,4}ms\] testmsg` +
			`OK\[op=GENERATE_EEK, key=k3, user=luser@REALM, accessCount=5, interval=[^m]{1,4}ms\] testmsg` +
			`UNAUTHORIZED\[op=GENERATE_EEK, key=k3, user=luser@REALM\] ` +
			`OK\[op=GENERATE_EEK, key=k3, user=luser@REALM, accessCount=1, interval=[^m]{1,4}ms\] testmsg`},
		"testAuditLogFormat": {func(ok func(Op, string, int), log func(Event), evict func()) {
			ok(GenerateEEK, "k4", 1)
			ok(GenerateEEK, "", 1)
			evict()
			log(Event{Status: Unauthorized, Op: DecryptEEK, Key: "k4", Caller: user})
			log(Event{Status: Error, Caller: user, Method: "method", URL: "url", Message: "testmsg"})
			unknown := Event{Status: Unauthenticated, Method: "method", URL: "url", Message: "testmsg"}
			unknown.Caller.RemoteAddr = "remotehost"
			log(unknown)
		}, `OK\[op=GENERATE_EEK, key=k4, user=luser@REALM, accessCount=1, interval=[^m]{1,4}ms\] testmsg` +
			`OK\[op=GENERATE_EEK, user=luser@REALM\] testmsg` +
			`OK\[op=GENERATE_EEK, key=k4, user=luser@REALM, accessCount=1, interval=[^m]{1,4}ms\] testmsg` +
			`UNAUTHORIZED\[op=DECRYPT_EEK, key=k4, user=luser@REALM\] ` +
			`ERROR\[user=luser@REALM\] Method:'method' Exception:'testmsg'` +
			`UNAUTHENTICATED RemoteHost:remotehost Method:method URL:url ErrorMsg:'testmsg'`},
	} {
		t.Run(name, func(t *testing.T) {
			l := newTestLog(10 * time.Second)
			ok := func(op Op, key string, times int) {
				for range times {
					l.Log(t.Context(), Event{Status: OK, Op: op, Key: key, Caller: user, Message: "testmsg"})
				}
			}
			evict := func() {
				l.mu.Lock()
				defer l.mu.Unlock()
				l.endWindows(l.now, func(*heldEntry) bool { return true })
			}
			test.run(ok, func(e Event) { l.Log(t.Context(), e) }, evict)
			var got strings.Builder
			for line := range strings.Lines(l.out.String()) {
				got.WriteString(strings.TrimSuffix(line[24:], "\n"))
			}
			if !regexp.MustCompile("^" + test.want + "$").MatchString(got.String()) {
				t.Errorf("got\n%s\nwant\n%s", got.String(), test.want)
			}
		})
	}
}
