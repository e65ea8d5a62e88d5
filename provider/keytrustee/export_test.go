package keytrustee

import "time"

// TryAgain has the next CheckWrites make a change, as if its pause were over.
func TryAgain(p *Provider) {
	p.written.mu.Lock()
	defer p.written.mu.Unlock()
	p.written.probed = time.Time{}
}
