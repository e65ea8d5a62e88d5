package keytrustee

import "time"

// ProbeAtOnce makes the next CheckWrites probe at once.
func ProbeAtOnce(p *Provider) {
	p.box.mu.Lock()
	defer p.box.mu.Unlock()
	p.box.probed = time.Time{}
}
