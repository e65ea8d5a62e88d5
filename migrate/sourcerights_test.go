package migrate_test

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"claviger/provider"
)

// TestReadCure: a source that is this server, and one that is no KMS, are not to be looked for in the network. For
// another source, the reason why its hosts do not answer says more than the error.
func TestReadCure(t *testing.T) {
	b := newTestMigration(t)
	failed := errors.New("the source does not answer")
	for _, c := range []struct {
		kms  bool
		err  error
		want string
	}{
		{false, fmt.Errorf("keys: %w", provider.ErrSourceIsSelf), "name the KMS from which keys are to be migrated"},
		{true, fmt.Errorf("keys: %w", provider.ErrSourceIsSelf), "name the KMS from which keys are to be migrated"},
		{false, failed, "names the place of its keys"},
		{true, failed, "see the log of the source, and check host, port and path in "},
	} {
		b.cfg.Source = b.source
		if c.kms {
			b.cfg.Source = &remoteKMS{stub: stub{Source: b.source}}
		}
		if got := b.engine(t).ReadCure(t.Context(), c.err); !strings.Contains(got, c.want) {
			t.Errorf("%v, of a KMS %t: %q, want %q", c.err, c.kms, got, c.want)
		}
	}
}
