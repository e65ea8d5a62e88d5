package main

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"

	"claviger/hadoopconf"
	"claviger/kms/kmstest"
	"claviger/provider/kmsclient"
)

// kmsURI returns the provider URI of a KMS with a base URL.
func kmsURI(url string) string { return "kms://" + strings.Replace(url, "://", "@", 1) }

// clientOf returns a client of a KMS for the user alice.
func clientOf(t *testing.T, url string) *kmsclient.Provider {
	t.Helper()
	return userClient(t, url, "alice")
}

// userClient returns a client of a KMS for a user.
func userClient(t *testing.T, url, user string) *kmsclient.Provider {
	t.Helper()
	p, err := kmsclient.New(kmsURI(url), kmsclient.Options{User: user})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = p.Close() })
	return p
}

// oldVersions is the state of TestOldVersionsStayForeign.
type oldVersions struct {
	t                *testing.T
	source, here     *node
	ofSource, ofHere []sealed // EDEKs of versions of the source, and of versions made here
}

// TestOldVersionsStayForeign: EDEKs of a source that numbers its versions are opened by the source, or not at all. This
// stays so when the key is migrated, rolled, deleted, and made again after the source is gone. No version made here has
// the name of a version of the source, so an old EDEK never opens to a wrong DEK.
func TestOldVersionsStayForeign(t *testing.T) {
	v := &oldVersions{t: t, source: numberingSource(t)}
	makeKey(t, v.source.kms, newKey("ledger", ""))
	for n := range 3 {
		if n > 0 {
			rollKey(t, v.source.kms, "ledger")
		}
		v.ofSource = append(v.ofSource, seal(t, v.source.kms, "ledger", fmt.Sprintf("ledger@%d", n)))
	}
	dir, site := kmstest.HSM(t)
	withSource := maps.Clone(site)
	withSource[hadoopconf.SourceURI], withSource[hadoopconf.ReencryptionEnable] = kmsURI(v.source.url), "true"
	kmstest.WriteSite(t, dir, withSource)
	wants(t, true, []string{"migrate", "run", "--conf", dir})
	v.here = startNode(t, dir)
	v.rollAndDelete()
	out := wants(t, false, []string{"migrate", "finish", "--conf", dir}, "confirm it yourself by --edeks-done")
	if strings.Contains(out, "was not migrated") {
		t.Fatal(out)
	}
	all := slices.Concat(v.ofSource, v.ofHere)
	v.source.stop()
	wantClosed(t, "deleted, without the source", v.here.kms, all...)
	v.here.stop()
	kmstest.WriteSite(t, dir, site)
	v.finish()
	// Nobody may make a key of that name, until an administrator frees it.
	wants(t, true, []string{"migrate", "free", "--conf", dir, "ledger"})
	v.here.start()
	makeKey(t, v.here.kms, newKey("ledger", ""))
	v.wantNewest("made again", 5)
	wantClosed(t, "made again", v.here.kms, all...)
	wantOpen(t, "made again", v.here.kms, seal(t, v.here.kms, "ledger", ""))
}

// rollAndDelete rolls and deletes the migrated key.
func (v *oldVersions) rollAndDelete() {
	v.t.Helper()
	v.wantNewest("migrated", 3)
	wantOpen(v.t, "migrated", v.here.kms, v.ofSource...)
	v.ofHere = []sealed{seal(v.t, v.here.kms, "ledger", "")}
	rollKey(v.t, v.here.kms, "ledger")
	v.wantNewest("rolled", 4)
	v.ofHere = append(v.ofHere, seal(v.t, v.here.kms, "ledger", ""))
	wantOpen(v.t, "rolled", v.here.kms, slices.Concat(v.ofSource, v.ofHere)...)
	deleteKey(v.t, v.here.kms, "ledger")
	wantOpen(v.t, "deleted", v.here.kms, v.ofSource...)
	wantClosed(v.t, "deleted", v.here.kms, v.ofHere...)
}

// finish ends the migration. A request for an EDEK of the source delays the end: the source is still used.
func (v *oldVersions) finish() {
	v.t.Helper()
	v.here.start()
	wantClosed(v.t, "without the source in the configuration", v.here.kms, v.ofSource[1])
	v.here.stop()
	finish := []string{"migrate", "finish", "--conf", v.here.dir, "--edeks-done", "--unused-for"}
	wants(v.t, false, append(finish, "1h"), "ledger@1 was requested at")
	wants(v.t, true, []string{"migrate", "status", "--conf", v.here.dir},
		" EDEKs of the source could not be opened, since it was not configured")
	wants(v.t, true, append(finish, "0s"))
}

// wantNewest checks that the newest version of the key here has a number.
func (v *oldVersions) wantNewest(when string, n int) {
	v.t.Helper()
	ms, err := v.here.kms.Metadata(v.t.Context(), "ledger")
	if err != nil || len(ms) != 1 || ms[0] == nil {
		v.t.Fatal(ms, err)
	}
	s := seal(v.t, v.here.kms, "ledger", "")
	if ms[0].Versions != n+1 || s.edek.Version != fmt.Sprintf("ledger@%d", n) {
		v.t.Errorf("%s: the metadata says %d, new EDEKs are of %s; want number %d", when,
			ms[0].Versions, s.edek.Version, n)
	}
}
