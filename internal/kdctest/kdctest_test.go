package kdctest_test

import (
	"os"
	"testing"

	"claviger/internal/kdctest"
)

// TestKDC: principals can log in at the KDC with the keytab that it made.
func TestKDC(t *testing.T) {
	k := kdctest.Start(t)
	keytab := k.Keytab("two.keytab", "zookeeper/localhost", "alice")
	for _, p := range []string{"zookeeper/localhost", "alice"} {
		if fi, err := os.Stat(k.Login(keytab, p)); err != nil || fi.Size() == 0 {
			t.Errorf("the ticket of %s: %v", p, err)
		}
	}
}
