package postgres

import (
	"errors"
	"testing"

	"github.com/jackc/pgx/v5"

	"claviger/metastore"
)

var errScan = errors.New("cannot scan")

// spoiledRow is a row that cannot be scanned.
type spoiledRow struct{ pgx.Rows }

func (spoiledRow) Scan(...any) error { return errScan }

// TestScanErrors checks that a row which cannot be scanned gives the error of the scan.
func TestScanErrors(t *testing.T) {
	_, change := scanChange(spoiledRow{})
	_, intent := scanIntent(spoiledRow{})
	key := scanKey(spoiledRow{}, map[string]*metastore.Key{})
	for what, err := range map[string]error{"scanChange": change, "scanIntent": intent, "scanKey": key} {
		if !errors.Is(err, errScan) {
			t.Errorf("%s: %v", what, err)
		}
	}
}
