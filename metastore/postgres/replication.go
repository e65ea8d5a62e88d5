package postgres

import (
	"context"
	"fmt"

	"claviger"
)

// Replication tells what puts acknowledged changes at risk where PostgreSQL has
// standbys: commits that wait for none of them, and hosts that do not agree on which of
// them is the primary.
func (s *Store) Replication(ctx context.Context) error {
	const op = "postgres.Replication"
	if err := s.db.Lineage(); err != nil {
		return err
	}
	names, following, err := s.db.Standbys(ctx, op)
	if err != nil {
		return err
	}
	hosts := s.db.Hosts()
	if names != "" || following == 0 && hosts == 1 {
		return nil
	}
	what := fmt.Sprintf("%d standbys follow its server", following)
	if following == 0 {
		what = fmt.Sprintf("its URI names %d hosts", hosts)
	}
	return claviger.Errorf(op, claviger.Unavailable, "",
		"metastore %s (property %s): %s, and synchronous_standby_names is empty: a commit waits for none of them, so that keys and versions which were acknowledged are lost where a standby that is behind takes over; set synchronous_standby_names on every server, see docs/nodes.md",
		s.db.URI(), s.cfg.Property, what)
}
