package main

import (
	"io"
	"net/http"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"claviger"
	"claviger/hadoopconf"
	"claviger/kms/kmstest"
)

// conflictSite returns a configuration folder, with its properties, of a KMS that migrates from source. It compares
// the versions with the source every 100 ms.
func conflictSite(t *testing.T, source *node) (dir string, site map[string]string) {
	t.Helper()
	dir, site = kmstest.HSM(t)
	site[hadoopconf.SourceURI], site[hadoopconf.ReencryptionEnable] = kmsURI(source.url), "true"
	site["claviger.source.compare.interval"] = "100ms"
	kmstest.WriteSite(t, dir, site)
	return dir, site
}

// TestRolledAtTheSource: a source that numbers its versions rolls a key after the migration, so that one version name
// belongs to two keys. The server notices this, opens no EDEK of that name, and gives its next version a number that
// the source does not have. The operator ends the conflict by a property. A gap of numbers avoids the next conflict.
func TestRolledAtTheSource(t *testing.T) {
	source := numberingSource(t)
	makeKey(t, source.kms, newKey("ledger", ""))
	first := seal(t, source.kms, "ledger", "ledger@0")
	dir, site := conflictSite(t, source)
	wants(t, true, []string{"migrate", "run", "--conf", dir})
	here := startNode(t, dir)
	madeHere := seal(t, here.kms, "ledger", "ledger@1")
	rollKey(t, source.kms, "ledger")
	var err error
	limit := time.Now().Add(20 * time.Second)
	for ; time.Now().Before(limit) && err == nil; time.Sleep(50 * time.Millisecond) {
		_, err = openEDEK(t, here.kms, madeHere.edek)
	}
	if !claviger.Is(err, claviger.Unavailable) ||
		!strings.Contains(err.Error(), "'ledger@1' is one key here and another key") {
		t.Fatalf("an EDEK of a version name of two keys: %v, want a 503", err)
	}
	// At a start the sources are compared before anything is opened.
	here.stop()
	rollKey(t, source.kms, "ledger")
	rollKey(t, source.kms, "ledger")
	here.start()
	if _, err := openEDEK(t, here.kms, madeHere.edek); !claviger.Is(err, claviger.Unavailable) {
		t.Errorf("after a restart: %v, want a 503", err)
	}
	madeThere := seal(t, source.kms, "ledger", "ledger@3")
	wantOpen(t, "the source's older version", here.kms, first)
	wantOpen(t, "a version of the source that is not here", here.kms, madeThere)
	rollKey(t, here.kms, "ledger")
	if n, ok := claviger.VersionNumber(seal(t, here.kms, "ledger", "").edek.Version); !ok || n < 4 {
		t.Errorf("rolled here to number %d, which the source has too", n)
	}
	wantReadyPage(t, here.url, "version names of two keys", "ledger@1 of kms://")
	wants(t, false, []string{"migrate", "verify", "--conf", dir}, "set claviger.migration.ours to ledger@1")
	here.stop()
	site["claviger.migration.ours"], site["claviger.migration.gap"] = "ledger@1", "10"
	kmstest.WriteSite(t, dir, site)
	migrateWithGap(t, source, here, madeHere)
}

// wantReadyPage checks that a server is ready, and that its page about this holds some texts.
func wantReadyPage(t *testing.T, url string, texts ...string) {
	t.Helper()
	res, err := http.Get(strings.TrimSuffix(url, "/kms") + "/readyz")
	if err != nil {
		t.Fatal(err)
	}
	page, err := io.ReadAll(res.Body)
	_ = res.Body.Close()
	if err != nil || res.StatusCode != http.StatusOK {
		t.Errorf("%s, %v: %s", res.Status, err, page)
	}
	for _, text := range texts {
		if !strings.Contains(string(page), text) {
			t.Errorf("the page lacks %q: %s", text, page)
		}
	}
}

// migrateWithGap migrates another key, which the source can roll: the gap leaves numbers for it. The operator has
// decided that the version in conflict is the one here. Nothing was made through the source meanwhile.
func migrateWithGap(t *testing.T, source, here *node, madeHere sealed) {
	t.Helper()
	makeKey(t, source.kms, newKey("books", ""))
	wants(t, true, []string{"migrate", "run", "--conf", here.dir})
	wants(t, true, []string{"migrate", "verify", "--conf", here.dir})
	here.start()
	wantOpen(t, "by the operator's decision", here.kms, madeHere)
	rollKey(t, source.kms, "books")
	wantOpen(t, "rolled at the source, with a gap", here.kms, seal(t, source.kms, "books", "books@1"))
	seal(t, here.kms, "books", "books@11")
	wants(t, true, []string{"migrate", "verify", "--conf", here.dir})
}

// deletedConflict is the state of TestDeletedForAConflict.
type deletedConflict struct {
	t            *testing.T
	source, here *node
	madeHere     sealed // of the version used@1 that is here
	fresh, used  sealed // of fresh@1 and used@1 at the source
}

// TestDeletedForAConflict: two keys were migrated from a source that numbers its versions. The source then rolls them
// to versions whose names exist here. One key was used here and one was not, and both are deleted here. EDEKs of the
// unused one are opened by the source. EDEKs of the used one are neither opened nor re-encrypted, until the operator
// says to which key they belong.
func TestDeletedForAConflict(t *testing.T) {
	c := &deletedConflict{t: t, source: numberingSource(t)}
	for _, key := range []string{"fresh", "used"} {
		makeKey(t, c.source.kms, newKey(key, ""))
	}
	dir, site := conflictSite(t, c.source)
	site["claviger.purge.min.unused"] = "0"
	kmstest.WriteSite(t, dir, site)
	kmstest.WriteFile(t, filepath.Join(dir, "kms-acls.xml"),
		kmstest.SiteXML("keytrustee.kms.acl.UNDELETE", "*", "keytrustee.kms.acl.PURGE", "*"))
	wants(t, true, []string{"migrate", "run", "--conf", dir})
	c.here = startNode(t, dir)
	c.madeHere = seal(t, c.here.kms, "used", "used@1")
	c.here.stop()
	for _, key := range []string{"fresh", "used"} {
		rollKey(t, c.source.kms, key)
	}
	c.fresh, c.used = seal(t, c.source.kms, "fresh", "fresh@1"), seal(t, c.source.kms, "used", "used@1")
	c.deleteBoth()
	c.undeleteAndPurge()
	wants(t, false, []string{"migrate", "finish", "--edeks-done", "--conf", dir},
		"set claviger.migration.theirs to used@1")
	site["claviger.migration.theirs"] = "used@1"
	kmstest.WriteSite(t, dir, site)
	c.here.start()
	wantOpen(t, "by the operator's decision", c.here.kms, c.used)
}

// deleteBoth deletes both keys here. A migration takes over the unused one again.
func (c *deletedConflict) deleteBoth() {
	c.t.Helper()
	c.here.start()
	c.refused("in conflict")
	for _, key := range []string{"fresh", "used"} {
		deleteKey(c.t, c.here.kms, key)
	}
	c.refused("deleted")
	wantOpen(c.t, "deleted", c.here.kms, c.fresh)
	c.here.stop()
	wants(c.t, false, []string{"migrate", "run", "--conf", c.here.dir}, "claviger key undelete used")
	c.here.start()
	c.refused("after a restart")
	wantOpen(c.t, "taken over again", c.here.kms, c.fresh)
	again, err := c.here.kms.Reencrypt(c.t.Context(), "fresh", []claviger.EDEK{c.fresh.edek})
	if err != nil || again[0].Version != "fresh@2" {
		c.t.Fatalf("re-encrypted: %v, %v", again, err)
	}
	wantOpen(c.t, "re-encrypted", c.here.kms, sealed{again[0], c.fresh.dek})
}

// undeleteAndPurge brings the used key back, and purges it.
func (c *deletedConflict) undeleteAndPurge() {
	c.t.Helper()
	ctx := c.t.Context()
	if err := c.here.kms.Undelete(ctx, "used", ""); err != nil {
		c.t.Fatal(err)
	}
	c.refused("back")
	_, err := c.here.kms.Reencrypt(ctx, "used", []claviger.EDEK{c.used.edek})
	if !claviger.Is(err, claviger.Invalid) {
		c.t.Errorf("re-encryption of an EDEK in conflict: %v", err)
	}
	deleteKey(c.t, c.here.kms, "used")
	if err := c.here.kms.Purge(ctx, "used", ""); err != nil {
		c.t.Fatal(err)
	}
	c.refused("purged")
	c.here.stop()
}

// refused checks that EDEKs of used@1 are refused, those made here and those of the source.
func (c *deletedConflict) refused(when string) {
	c.t.Helper()
	for what, e := range map[string]claviger.EDEK{"the source's": c.used.edek, "the KMS's own": c.madeHere.edek} {
		if _, err := openEDEK(c.t, c.here.kms, e); !claviger.Is(err, claviger.Unavailable) {
			c.t.Errorf("%s: %s: %v, want a refusal", when, what, err)
		}
	}
}
