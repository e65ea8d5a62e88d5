package replica

import (
	"context"

	"claviger"
	"claviger/trustee/server"
)

// Check returns an error if this server is the active one and the two servers are not synchronized, so that it
// refuses changes.
func (r *Replica) Check(ctx context.Context) error {
	st, synced, err := r.State(ctx)
	if err != nil || st.Role != server.RoleActive || synced {
		return err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.syncErr == nil {
		return nil // the server has just started, or the two servers are synchronized again
	}
	return claviger.Errorf("replica.Check", claviger.Unavailable, "",
		"the two Key Trustee Servers are not synchronized: %w",
		r.syncErr)
}

// peerFault returns an error if the store of the passive server accepts no changes.
func peerFault(op string, p *Position) error {
	if p.Fault == "" {
		return nil
	}
	return claviger.Errorf(op, claviger.Unavailable, "", "the store of the passive Key Trustee Server takes no "+
		"changes: %s", p.Fault)
}
