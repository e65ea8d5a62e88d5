package bench

import (
	"os/exec"
	"strings"
	"testing"
	"time"
)

// Layers of a request, for people. layerOf gives each sample of a profile to one of them.
const (
	layerSockets  = "kernel: the client's socket"
	layerWorker   = "kernel: the socket to the process of the HSM's library"
	layerOther    = "kernel: files and other calls"
	layerSignal   = "TLS: the signature of a handshake"
	layerTLS      = "TLS: the rest of handshakes, and records"
	layerHTTP     = "net/http"
	layerAuth     = "who the caller is, and what is allowed"
	layerWire     = "JSON and base64"
	layerRequest  = "requests and answers (kmsapi, web, console)"
	layerKeys     = "keys and EDEKs (keyring, eek, metastore)"
	layerAudit    = "audit and log"
	layerToken    = "calls of the HSM (provider, pkcs11)"
	layerGarbage  = "Go: garbage collection"
	layerSchedule = "Go: goroutines, timers and the rest"
)

// layerPackages says which layer the innermost function of such a package belongs to.
var layerPackages = []struct{ prefix, layer string }{
	{"claviger/libcrypto.", layerSignal}, {"claviger/tlskey.", layerSignal},
	{"crypto/rsa.", layerSignal}, {"crypto/ecdsa.", layerSignal},
	{"crypto/internal/fips140/rsa.", layerSignal}, {"crypto/internal/fips140/ecdsa.", layerSignal},
	{"crypto/tls.", layerTLS},
	{"claviger/authn", layerAuth}, {"claviger/authz", layerAuth},
	{"claviger/kmswire.", layerWire},
	{"claviger/audit", layerAudit}, {"log/slog", layerAudit},
	{"claviger/keyring.", layerKeys}, {"claviger/eek.", layerKeys}, {"claviger/metastore", layerKeys},
	{"claviger/provider", layerToken}, {"claviger/pkcs11", layerToken},
	{"claviger/", layerRequest}, {"github.com/prometheus/", layerRequest},
	{"net/http.", layerHTTP},
}

// layerOf returns the layer of one sample. The stack begins with the innermost function.
func layerOf(stack []string) string {
	kernel := len(stack) > 0 && (strings.Contains(stack[0], "syscall") || strings.HasSuffix(stack[0], ".Syscall6"))
	for _, f := range stack {
		switch {
		case strings.HasPrefix(f, "runtime.gcBgMarkWorker"), strings.HasPrefix(f, "runtime.gcAssistAlloc"),
			strings.HasPrefix(f, "runtime.bgsweep"), strings.HasPrefix(f, "runtime.bgscavenge"):
			return layerGarbage
		case kernel && strings.HasPrefix(f, "claviger/pkcs11"):
			return layerWorker
		case kernel && strings.HasPrefix(f, "net.(*conn)"):
			return layerSockets
		}
		for _, p := range layerPackages {
			if strings.HasPrefix(f, p.prefix) {
				if kernel {
					return layerOther
				}
				return p.layer
			}
		}
	}
	return layerSchedule
}

// layersOf returns the share of each layer in a CPU profile, from 0 to 1.
func layersOf(t *testing.T, profile string) map[string]float64 {
	t.Helper()
	text, err := exec.CommandContext(t.Context(), "go", "tool", "pprof", "-traces", profile).Output()
	if err != nil {
		t.Fatal(err)
	}
	shares, err := sharesOf(string(text))
	if err != nil || len(shares) == 0 {
		t.Fatalf("the profile %s has %d layers: %v", profile, len(shares), err)
	}
	return shares
}

// sharesOf reads the output of `go tool pprof -traces`: stacks between lines of dashes. The first line of a stack
// begins with its time.
func sharesOf(traces string) (map[string]float64, error) {
	var total time.Duration
	times := map[string]time.Duration{}
	_, traces, _ = strings.Cut(traces, "\n-----------+") // the head
	for block := range strings.SplitSeq(traces, "\n-----------+") {
		_, block, _ = strings.Cut(block, "\n")
		value, rest, ok := strings.Cut(strings.TrimLeft(block, " "), " ")
		if !ok {
			continue
		}
		took, err := time.ParseDuration(value)
		if err != nil {
			return nil, err
		}
		var stack []string
		for line := range strings.Lines(rest) {
			stack = append(stack, strings.TrimSuffix(strings.TrimSpace(line), " (inline)"))
		}
		times[layerOf(stack)] += took
		total += took
	}
	shares := map[string]float64{}
	for layer, took := range times {
		shares[layer] = took.Seconds() / total.Seconds()
	}
	return shares, nil
}

func TestSharesOf(t *testing.T) {
	const dashes = "-----------+-------------------------------------------------------\n"
	shares, err := sharesOf("File: bench.test\nType: cpu\nDuration: 18s, Total samples = 40ms (1%)\n" + dashes +
		"      10ms   internal/runtime/syscall/linux.Syscall6\n             syscall.write\n" +
		"             net.(*conn).Write (inline)\n             net/http.(*conn).serve\n" + dashes +
		"      10ms   internal/runtime/syscall/linux.Syscall6\n             golang.org/x/sys/unix.writev\n" +
		"             claviger/pkcs11/worker.(*conn).send\n" + dashes +
		"      10ms   runtime.mallocgc\n             claviger/kmswire.ReadOpen\n" +
		"             claviger/kmsapi.openEDEK\n             net/http.(*conn).serve\n" + dashes +
		"      10ms   runtime.scanobject\n             runtime.gcDrain\n             runtime.gcBgMarkWorker.func2\n")
	if err != nil {
		t.Fatal(err)
	}
	const each = 0.25
	for _, layer := range []string{layerSockets, layerWorker, layerWire, layerGarbage} {
		if shares[layer] != each {
			t.Errorf("%s: %v, want %v of %v", layer, shares[layer], each, shares)
		}
	}
}
