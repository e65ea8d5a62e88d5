package bench

import (
	"bytes"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"claviger/bench"
	"claviger/test/hadoop"
)

var (
	compareKMS = flag.Bool("compare", false, "compare a KMS with a warmed Java KMS, for a quarter of an hour")
	writePage  = flag.Bool("write", false, "write the results of -compare into docs/performance.md")
	seconds    = flag.Int("seconds", 4, "length of a round of -compare")
	loadRounds = flag.Int("rounds", 4, "rounds of each load of -compare")
	rows       = flag.String("rows", "", "compare only the loads whose name matches this pattern")
)

// row is a load of the comparison.
type row struct {
	name string // in the table
	kind string // http, or https with a certificate for a key of that kind: rsa, ecdsa
	args []string
}

// kinds has the values of row.kind, in the order of the comparison.
var kinds = []string{"http", "rsa", "ecdsa"}

var comparison = []row{
	{"http, decrypt, 256 connections", "http", []string{"--load", "decrypt", "--connections", "256"}},
	{"http, generate 350, 4 connections", "http", []string{"--load", "generate", "--connections", "4"}},
	{"http, batch of 1,000, 4 connections", "http", []string{"--load", "batch", "--connections", "4"}},
	{"https, decrypt, delegation token, 16 connections", "rsa",
		[]string{"--load", "decrypt", "--connections", "16", "--auth", "token"}},
	{"https, decrypt, new connection, token, RSA-2048", "rsa",
		[]string{"--load", "decrypt", "--connections", "16", "--auth", "token", "--connect", "new"}},
	{"https, batch of 1,000, 4 connections", "rsa", []string{"--load", "batch", "--connections", "4"}},
	{"https, decrypt, new connection, token, ECDSA P-256", "ecdsa",
		[]string{"--load", "decrypt", "--connections", "16", "--auth", "token", "--connect", "new"}},
	{"https, decrypt, resumed connection, token, ECDSA P-256", "ecdsa",
		[]string{"--load", "decrypt", "--connections", "16", "--auth", "token", "--connect", "resume"}},
}

// keyPair makes a keystore with a self-signed certificate for localhost by Java's keytool, and a truststore of it.
func keyPair(t *testing.T, kind string) (server, client hadoop.Conf) {
	t.Helper()
	dir := t.TempDir()
	const password = "changeit"
	key := []string{"-keyalg", "RSA", "-keysize", "2048"}
	if kind == "ecdsa" {
		key = []string{"-keyalg", "EC", "-groupname", "secp256r1"}
	}
	in := func(name string) string { return filepath.Join(dir, name) }
	store, cert, trust := in("server.p12"), in("cert.pem"), in("trust.jks")
	keytool(t, append(key, "-genkeypair", "-alias", "server", "-dname", "CN=localhost", "-ext",
		"san=dns:localhost,ip:127.0.0.1", "-validity", "30", "-storetype", "PKCS12", "-keystore", store, "-storepass",
		password)...)
	keytool(t, "-exportcert", "-rfc", "-alias", "server", "-keystore", store, "-storepass", password, "-file", cert)
	keytool(t, "-importcert", "-noprompt", "-alias", "server", "-file", cert, "-storetype", "JKS", "-keystore", trust,
		"-storepass", password)
	if err := os.Chmod(store, 0o600); err != nil {
		t.Fatal(err)
	}
	return hadoop.Conf{"ssl.server.keystore.location": store, "ssl.server.keystore.type": "pkcs12",
			"ssl.server.keystore.password": password, "ssl.server.keystore.keypassword": password},
		hadoop.Conf{"ssl.client.truststore.location": trust, "ssl.client.truststore.type": "jks",
			"ssl.client.truststore.password": password}
}

func keytool(t *testing.T, args ...string) {
	t.Helper()
	if out, err := exec.CommandContext(t.Context(), "keytool", args...).CombinedOutput(); err != nil {
		t.Fatalf("keytool %q: %v\n%s", args, err, out)
	}
}

// startBoth starts our KMS and the Java KMS, with the transport of that kind. conf is the folder of client settings.
func startBoth(t *testing.T, kind string) (urls []string, conf string) {
	t.Helper()
	conf = t.TempDir()
	// The client's folder must name a provider, although the client uses none.
	hadoop.Conf{"hadoop.kms.key.provider.uri": "memory://"}.Write(t, filepath.Join(conf, "kms-site.xml"))
	var server hadoop.Conf
	if kind != "http" {
		var client hadoop.Conf
		server, client = keyPair(t, kind)
		client.Write(t, filepath.Join(conf, "ssl-client.xml"))
	}
	java := hadoop.StartJavaKMS(t, hadoop.KMSOptions{SSLServer: server, Long: true})
	ours := hadoop.StartClaviger(t, options(t, true, nil, server)) // with the default settings
	return []string{ours.URL, java.URL}, conf
}

// load runs `claviger bench kms` at both servers.
func load(t *testing.T, urls []string, conf string, args ...string) *bench.Report {
	t.Helper()
	args = slices.Concat([]string{"bench", "kms", "-o", "json", "--quiet", "--conf", conf, "--rounds",
		strconv.Itoa(*loadRounds), "--duration", fmt.Sprintf("%ds", *seconds), "--warm-up", "5s"}, args, urls)
	var r bench.Report
	if err := json.Unmarshal([]byte(hadoop.Claviger(t, []string{"HADOOP_USER_NAME=bench"}, args...)), &r); err != nil {
		t.Fatal(err)
	}
	return &r
}

// equalLoad is the share of the Java KMS's throughput at which both are loaded for the comparison of latencies.
const equalLoad = 0.7

// TestCompare compares our KMS with Hadoop's, both warmed, and writes the tables of docs/performance.md.
func TestCompare(t *testing.T) {
	if !*compareKMS {
		t.Skip("it takes a quarter of an hour; `make bench` runs it")
	}
	var table, latency bytes.Buffer
	var bars []bar
	fmt.Fprintln(&table, "| load | claviger per CPU-second | Java KMS per CPU-second | ratio | memory |")
	fmt.Fprintln(&table, "|---|---|---|---|---|")
	fmt.Fprintln(&latency, "| load | requests due per second | p99 of claviger | p99 of the Java KMS |")
	fmt.Fprintln(&latency, "|---|---|---|---|")
	wanted := regexp.MustCompile(*rows)
	for _, kind := range kinds {
		if !slices.ContainsFunc(comparison, func(r row) bool { return r.kind == kind && wanted.MatchString(r.name) }) {
			continue
		}
		urls, conf := startBoth(t, kind)
		for _, row := range comparison {
			if row.kind != kind || !wanted.MatchString(row.name) {
				continue
			}
			r := load(t, urls, conf, row.args...)
			ours, java, x := r.Measurements[0], r.Measurements[1], r.Ratios[0]
			fmt.Fprintf(&table, "| %s | %s | %s | %.1f (%.1f-%.1f) | %.0f MiB, %.0f MiB |\n", row.name,
				thousands(ours.PerCPUSecond), thousands(java.PerCPUSecond), x.Median, x.Low, x.High, ours.Memory,
				java.Memory)
			bars = append(bars, bar{row.name, []float64{1}, thousands(ours.PerCPUSecond)},
				bar{"Java KMS", []float64{java.PerCPUSecond / ours.PerCPUSecond}, thousands(java.PerCPUSecond)})
			due := equalLoad * java.PerSecond
			q := load(t, urls, conf, append(slices.Clone(row.args), "--warm-up", "0s", "--rate",
				fmt.Sprintf("%.0f", due))...)
			fmt.Fprintf(&latency, "| %s | %s | %.1f ms | %.1f ms |\n", row.name, thousands(due),
				q.Measurements[0].Latency.P99, q.Measurements[1].Latency.P99)
			t.Logf("%s: %s", row.name, x)
		}
	}
	if *writePage {
		replaceBetween(t, filepath.Join(hadoop.Root(), "docs", "performance.md"), "compare", table.String())
		replaceBetween(t, filepath.Join(hadoop.Root(), "docs", "performance.md"), "latency", latency.String())
		writePlot(t, "performance.svg", plot("Requests per CPU-second: claviger, and below it the Java KMS", nil, bars))
		return
	}
	t.Logf("\n%s\n%s", &table, &latency)
}

// thousands formats a count with commas.
func thousands(x float64) string {
	s := strconv.FormatInt(int64(x), 10)
	for i := len(s) - 3; i > 0; i -= 3 {
		s = s[:i] + "," + s[i:]
	}
	return s
}

// replaceBetween writes text between the two comments <!-- name --> and <!-- /name --> of a page.
func replaceBetween(t *testing.T, file, name, text string) {
	t.Helper()
	page, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	begin, end := "<!-- "+name+" -->\n", "<!-- /"+name+" -->"
	before, rest, ok1 := strings.Cut(string(page), begin)
	_, after, ok2 := strings.Cut(rest, end)
	if !ok1 || !ok2 {
		t.Fatalf("%s has no place for the table %s", file, name)
	}
	if err := os.WriteFile(file, []byte(before+begin+text+end+after), 0o644); err != nil { //nolint:gosec // a page
		t.Fatal(err)
	}
}
