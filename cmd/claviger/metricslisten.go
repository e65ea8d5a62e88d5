package main

// metricsListenName is the flag of the address of a server's metrics.
const metricsListenName = "--metrics-listen"

// metricsListenHelp is the help of that flag.
const metricsListenHelp = "serve /metrics, /healthz and /readyz over plain http at this address, as 127.0.0.1:9091; " +
	"every client that can connect may read them (default: not at all)"
