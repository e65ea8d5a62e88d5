package keyring

import (
	"log/slog"
	"strings"
	"testing"
	"time"
)

// TestRolledAtAnOpaqueSource: a source with opaque ids, such as a Key Trustee KMS, has rolled a migrated key. The key
// is reported, once in the log, and the source opens EDEKs of its old and new versions.
func TestRolledAtAnOpaqueSource(t *testing.T) {
	s := newShadowRing(t, migrated, "present", "payroll", false)
	s.record(func(o *Origin) { o.Counted = 1 }) // and Numbered is false
	var logged strings.Builder
	s.log = slog.New(slog.NewTextHandler(&logged, nil))
	check := func(when string, want bool) {
		t.Helper()
		s.origins.forget()
		_ = s.CompareSources(t.Context()) // another check reports a source that does not answer
		err := s.CheckRolled(t.Context())
		if (err != nil) != want || want &&
			!strings.Contains(err.Error(), "key payroll of "+farURI+" (1 versions when it was migrated, 1 more now)") {
			t.Errorf("%s: %v", when, err)
		}
		if s.Conflicts() != 0 {
			t.Errorf("%s: in conflict: %v", when, s.conflictsNow())
		}
	}
	check("as it was", false)
	s.rollThere(t)
	check("rolled", true)
	s.silence()
	check("rolled, and then the source does not answer", true)
	if n := strings.Count(logged.String(), "a key was rolled at its source"); n != 1 {
		t.Errorf("logged %d times: %s", n, logged.String())
	}
	s.record(func(o *Origin) { o.Finished = time.Now() })
	s.far.setFail(nil)
	check("after the end of the migration", false)
}
