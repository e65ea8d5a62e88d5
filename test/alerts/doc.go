// Package alerts provokes the fault of each alert of deploy/prometheus on real servers. It reads their /metrics before,
// during and after the fault, and lets promtool evaluate the rules on what it has read. An alert must fire during its
// fault and at no other time. The pages of docs/runbooks are tried in the same faults.
package alerts
