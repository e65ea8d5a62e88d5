package migrate_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"claviger/internal/pagetest"
	"claviger/migrate"
	"claviger/migrate/report"
	"claviger/migrate/shred"
)

// page has the pages of docs/migration.
type page string

func readPage(t *testing.T) page {
	t.Helper()
	return page(pagetest.Topic(t, "migration"))
}

// shows checks that a page has the output of a command. The pages fold long lines at a space, so all white space
// counts as one space.
func (p page) shows(t *testing.T, command, text string) {
	t.Helper()
	if !strings.Contains(pagetest.OneLine(string(p)), pagetest.OneLine(text)) {
		t.Errorf("docs/migration does not show this of %s:\n%s", command, text)
	}
}

func clock(t *testing.T, text string) time.Time {
	t.Helper()
	when, err := time.Parse("2006-01-02T15:04:05.999Z", text)
	must(t, err)
	return when
}

func ptr(when time.Time) *time.Time { return &when }

// The source and target on the page.
const (
	pageSource = "kms://http@127.0.0.1:46057/kms"
	pageTarget = "cloudera.hsmkp://file@/var/lib/claviger/luna.keystore"
)

// TestPage: the output of status, verify and plan in docs/migration is what these commands print.
func TestPage(t *testing.T) {
	p := readPage(t)
	run := migrate.Run{Name: "migration-20261128T225813.394Z", State: migrate.Complete, Source: pageSource,
		Host: "kms-2", Started: clock(t, "2026-11-28T22:58:13.394Z"), Ended: ptr(clock(t, "2026-11-28T22:58:14Z"))}
	last := ptr(clock(t, "2026-11-28T22:58:28Z"))
	used := func(version string, n int64) migrate.VersionMapping {
		return migrate.VersionMapping{Source: version, LastUse: last, Decrypted: n, Reencrypted: n}
	}
	const (
		f1 = "finance@3e9240dcdce2685152e7727f50428285"
		f2 = "finance@c7d6226a7411528c1ecb5bf856ff8da2"
		w1 = "web-logs@084d11d9659e4ed2455b5f3a504830a6"
	)
	status := migrate.StatusReport{Runs: []migrate.Run{run}, Counts: migrate.Counts{Total: 2, Done: 2}, LastUse: last,
		Keys: []migrate.KeyStatus{
			{Key: "finance", State: migrate.Done, Versions: []migrate.VersionMapping{{Target: "finance@0"},
				{Target: "finance@1"}, used(f1, 200), used(f2, 200)}},
			{Key: "web-logs", State: migrate.Done, Versions: []migrate.VersionMapping{{Target: "web-logs@0"},
				used(w1, 400)}},
		}}
	p.shows(t, "status", textOf(report.Status, &status))
	verified := migrate.Verification{At: clock(t, "2026-11-28T22:58:29Z"), Source: pageSource, Target: pageTarget,
		Same: 2, Keys: []migrate.KeyDiff{{Key: "finance", Same: true}, {Key: "web-logs", Same: true}}}
	p.shows(t, "verify", textOf(report.Verification, &verified))

	// A plan of two keys: its head, its table and its end.
	plan := migrate.Plan{At: clock(t, "2026-11-28T22:58:12Z"), Source: pageSource, Target: pageTarget, Read: true,
		Counts: migrate.Counts{Total: 2, Planned: 2, NewVersions: 3}}
	for i, key := range []string{"finance", "web-logs"} {
		fields := migrate.Fields{Cipher: "AES/CTR/NoPadding", Length: 256 / (i + 1),
			Created: clock(t, "2026-11-28T22:58:10Z")}
		plan.Keys = append(plan.Keys, migrate.KeyLine{Key: key, State: migrate.Planned, Versions: 2 - i,
			Source: &fields})
	}
	head, rest, _ := strings.Cut(textOf(report.Plan, &plan), "Checks\n")
	p.shows(t, "plan", head+"Checks")
	p.shows(t, "plan", rest)
	p.shows(t, "plan", fmt.Sprintf("  %-9s  %s", migrate.OK, "rights at the source: all 2 keys are readable"))
}

// TestPageOfTheEnd: the same of finish and free. The refusal and the end come from the journal of a real migration.
func TestPageOfTheEnd(t *testing.T) {
	p := readPage(t)
	b := newTestMigration(t)
	b.add(t, "k", 1)
	b.run(t)
	refused, err := b.engine(t).Finish(t.Context(), migrate.FinishOptions{Since: noon})
	must(t, err)
	if n := len(refused.Refusals); n != 1 {
		t.Fatalf("%d refusals: %q", n, refused.Refusals)
	}
	p.shows(t, "finish", "  - "+refused.Refusals[0])
	finished, err := b.engine(t).Finish(t.Context(), migrate.FinishOptions{Since: clock(t, "2026-11-29T23:10:31Z"),
		EDEKsDone: true, Get: func(name string) (string, string, bool) {
			if name != "hadoop.kms.key.provider.uri" {
				return "", "", false
			}
			return pageTarget, "", true
		}})
	must(t, err)
	finished.Compared = ptr(clock(t, "2026-11-30T23:05:30Z"))
	finished.Leftovers = []migrate.Leftover{
		{Path: "/var/lib/kms-keytrustee/keytrustee/.keytrustee",
			What: "a copy of the Key Trustee KMS's .keytrustee folder, with its private OpenPGP keys", Secret: true},
		{Path: "/etc/claviger/kts-site.xml", What: "a copy of kts-site.xml, with the organization's auth secret",
			Secret: true},
	}
	p.shows(t, "finish", textOf(report.Ending, finished))
	freed := migrate.FreedNames{Freed: []migrate.Freed{{Key: "web-logs"}}}
	p.shows(t, "free", textOf(report.Freed, &freed))
	p.shows(t, "finish --shred", shred.Overwriting+".")
}
