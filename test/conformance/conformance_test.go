package conformance

import (
	"archive/zip"
	"context"
	"flag"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"claviger/test/hadoop"
)

var (
	reference = flag.Bool("reference", false, "run against the real Java KMS instead of claviger")
	zones     = flag.Bool("zones", false, "run HDFS's tests of encryption zones too, which take some minutes")
)

// methods are the tests of TestKMS.
var methods = []string{
	"testACLs",
	"testDelegationTokenAccess",
	"testDelegationTokensOpsHttpKerberized",
	"testDelegationTokensOpsHttpPseudo",
	"testDelegationTokensOpsHttpsKerberized",
	"testDelegationTokensOpsHttpsPseudo",
	"testDelegationTokensUpdatedInUGI",
	"testFilterInitializer",
	"testGetDelegationTokenByProxyUser",
	"testKMSAuthFailureRetry",
	"testKMSBlackList",
	"testKMSHAZooKeeperDelegationToken",
	"testKMSJMX",
	"testKMSProvider",
	"testKMSProviderCaching",
	"testKMSRestartKerberosAuth",
	"testKMSRestartSimpleAuth",
	"testKMSTimeout",
	"testKMSWithZKDTSM",
	"testKMSWithZKSigner",
	"testKMSWithZKSignerAndDTSM",
	"testKeyACLs",
	"testProxyUserKerb",
	"testProxyUserSimple",
	"testServicePrincipalACLs",
	"testSpecialKeyNames",
	"testStartStopHttpKerberos",
	"testStartStopHttpPseudo",
	"testStartStopHttpsKerberos",
	"testStartStopHttpsPseudo",
	"testTGTRenewal",
	"testWebHDFSProxyUserKerb",
	"testWebHDFSProxyUserSimple",
}

// serialFilter lets the JVM read the metadata objects in a JCEKS keystore.
const serialFilter = `-Djceks.key.serialFilter=java.lang.Enum;java.security.KeyRep;java.security.KeyRep$Type;` +
	`javax.crypto.spec.SecretKeySpec;org.apache.hadoop.crypto.key.JavaKeyStoreProvider$KeyMetadata;!*`

// Hadoop asks JDK internals for the default realm, even without Kerberos.
const (
	openKerberos   = "--add-opens=java.security.jgss/sun.security.krb5=ALL-UNNAMED"
	exportKerberos = "--add-exports=java.security.jgss/sun.security.krb5=ALL-UNNAMED"
)

// outcome is the result of one JUnit test.
type outcome struct {
	name    string
	result  string // PASS, FAIL, SKIP
	seconds float64
	trace   string
}

// zookeeperMethods are the tests of TestKMSWithZK: two servers share the secrets of their cookies in a ZooKeeper.
var zookeeperMethods = []string{"testMultipleKMSInstancesWithZKSigner"}

// kmsTests and hdfsTests are the artifacts of the test classes.
const (
	kmsTests  = "hadoop-kms"
	hdfsTests = "hadoop-hdfs"
)

// TestHadoopKMSTests: Hadoop's own tests of its KMS pass with claviger as the KMS.
func TestHadoopKMSTests(t *testing.T) {
	testHadoop(t, kmsTests, "org.apache.hadoop.crypto.key.kms.server.TestKMS", methods)
}

// TestHadoopKMSTestsWithZooKeeper: as TestHadoopKMSTests, with Hadoop's tests of several servers on ZooKeeper.
func TestHadoopKMSTestsWithZooKeeper(t *testing.T) {
	testHadoop(t, kmsTests, "org.apache.hadoop.crypto.key.kms.server.TestKMSWithZK", zookeeperMethods)
}

// TestHDFSZones runs HDFS's own tests of encryption zones, with a NameNode and DataNodes in the JVM and our server
// as their KMS. It leaves out some methods of two classes, which no server in a separate process can pass, not
// even a Java KMS: they need rules for proxy users that the NameNode sets in the same JVM.
func TestHDFSZones(t *testing.T) {
	if !*zones {
		t.Skip("takes some minutes: run with -zones, as `make conformance` does")
	}
	for _, c := range []struct {
		class   string
		methods []string // nil: all
		atLeast int
	}{
		{"org.apache.hadoop.hdfs.TestEncryptionZonesWithKMS", nil, 46},
		{"org.apache.hadoop.hdfs.server.namenode.TestReencryptionWithKMS", nil, 33},
		{"org.apache.hadoop.hdfs.TestSecureEncryptionZoneWithKMS", []string{"testCreateZoneAfterAuthTokenExpiry"}, 1},
		{"org.apache.hadoop.hdfs.TestAclsEndToEnd",
			[]string{"testCreateKey", "testDeleteKey", "testCreateEncryptionZone", "testCreateFileInEncryptionZone",
				"testReadFileInEncryptionZone"}, 5},
	} {
		t.Run(c.class[strings.LastIndexByte(c.class, '.')+1:], func(t *testing.T) {
			if n := testHadoop(t, hdfsTests, c.class, c.methods); n < c.atLeast {
				t.Errorf("%d tests, there should be %d", n, c.atLeast)
			}
		})
	}
}

// testHadoop runs a test class of Hadoop, from the test jar of an artifact, against our server, and returns how
// many tests passed. If methods is nil, it runs all tests.
func testHadoop(t *testing.T, artifact, class string, methods []string) (passed int) {
	hadoop.Require(t)
	log := filepath.Join(t.TempDir(), "kms-server.log")
	outcomes, output := runJUnit(t, artifact, class, log, methods)
	if len(methods) == 0 {
		for _, o := range outcomes {
			methods = append(methods, o.name)
		}
	}
	for _, m := range methods {
		t.Run(m, func(t *testing.T) {
			i := slices.IndexFunc(outcomes, func(o outcome) bool { return o.name == m })
			if i < 0 {
				t.Fatalf("the test did not run; the JVM's output:\n%s", output)
			}
			o := outcomes[i]
			t.Logf("%.2f s in JUnit", o.seconds)
			if o.result != "PASS" {
				t.Errorf("%s\n%s", o.result, o.trace)
				return
			}
			passed++
		})
	}
	if t.Failed() {
		t.Logf("end of the server's log:\n%s", tail(log, 60<<10))
	}
	if b, err := os.ReadFile(log); err != nil {
		t.Errorf("the server left no log: %v", err)
	} else if strings.Contains(string(b), "DATA RACE") {
		t.Errorf("the race detector found a data race in the server:\n%s", tail(log, 60<<10))
	}
	return passed
}

// runJUnit runs the methods, and returns their results and the whole output.
func runJUnit(t *testing.T, artifact, class, serverLog string, methods []string) ([]outcome, string) {
	t.Helper()
	jars := hadoop.Jars(t)
	all := filepath.Join(jars, "*")
	runner := hadoop.Javac(t, all, "java/runner")
	shim := hadoop.Javac(t, all, "java/shim")
	work := t.TempDir()
	classes := filepath.Join(work, "target", "test-classes")
	unpackTests(t, jars, artifact, classes)
	log4j, err := filepath.Abs("log4j.properties")
	if err != nil {
		t.Fatal(err)
	}

	args := []string{
		"-Xmx1g", "-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC", "-Xshare:auto",
		"--add-opens=java.base/java.lang=ALL-UNNAMED", "--add-opens=java.base/java.util=ALL-UNNAMED",
		"--add-opens=java.base/java.lang.reflect=ALL-UNNAMED", "--add-opens=java.base/java.net=ALL-UNNAMED",
		openKerberos, exportKerberos,
		"-Dtest.build.dir=" + filepath.Join(work, "target", "test-dir"),
		"-Dtest.build.data=" + filepath.Join(work, "target", "test", "data"),
		"-Dbuild.test.dir=" + filepath.Join(work, "target"),
		"-Djava.io.tmpdir=" + work,
		"-Dkms.server.cmd=" + strings.Join(serverCommand(t, all, log4j), "\n"),
		"-Dkms.server.log=" + serverLog,
		"-Dlog4j.configuration=file:" + log4j,
		serialFilter,
		"-cp", strings.Join([]string{runner, shim, classes, all}, string(os.PathListSeparator)),
		"RunTests", class,
	}
	cmd := exec.CommandContext(context.Background(), "java", append(args, methods...)...)
	cmd.Dir = work
	var output strings.Builder
	cmd.Stdout = &output
	p := hadoop.Start(t, "junit", cmd)
	if !p.Wait(12 * time.Minute) { // a third of that on an idle machine
		t.Errorf("the JVM did not end within 12 minutes")
		p.Kill()
	}
	return parse(output.String()), output.String()
}

// serverCommand returns the command that the shim starts instead of Hadoop's own server.
func serverCommand(t *testing.T, all, log4j string) []string {
	t.Helper()
	if !*reference {
		return []string{hadoop.Binary(t), "kms"}
	}
	classes := hadoop.Javac(t, all, "java/reference")
	return []string{
		"java", "-Xmx256m", "-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC",
		"--add-opens=java.base/java.lang=ALL-UNNAMED", openKerberos, exportKerberos,
		serialFilter, "-Dlog4j.configuration=file:" + log4j,
		"-cp", classes + string(os.PathListSeparator) + hadoop.RuntimeClassPath(t),
		"org.apache.hadoop.crypto.key.kms.server.ReferenceServer",
	}
}

// unpackTests unpacks Hadoop's test classes into a folder, because they write files beside their class.
func unpackTests(t *testing.T, jars, artifact, dir string) {
	t.Helper()
	found, err := filepath.Glob(filepath.Join(jars, artifact+"-[0-9]*-tests.jar"))
	if err != nil || len(found) != 1 {
		t.Fatalf("want one %s-*-tests.jar in %s, found %q", artifact, jars, found)
	}
	r, err := zip.OpenReader(found[0])
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	for _, f := range r.File {
		if strings.HasSuffix(f.Name, "/") || !filepath.IsLocal(f.Name) || strings.HasPrefix(f.Name, "META-INF/") {
			continue
		}
		unpack(t, f, filepath.Join(dir, f.Name))
	}
}

func unpack(t *testing.T, f *zip.File, file string) {
	t.Helper()
	in, err := f.Open()
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	if err := os.MkdirAll(filepath.Dir(file), 0o700); err != nil {
		t.Fatal(err)
	}
	b, err := io.ReadAll(in)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, b, 0o600); err != nil {
		t.Fatal(err)
	}
}

// parse reads the output of RunTests.
func parse(output string) []outcome {
	var all []outcome
	for _, line := range strings.Split(output, "\n") {
		if rest, ok := strings.CutPrefix(line, "  "); ok && len(all) > 0 {
			all[len(all)-1].trace += rest + "\n"
			continue
		}
		f := strings.Fields(line)
		if len(f) != 3 || !slices.Contains([]string{"PASS", "FAIL", "SKIP"}, f[0]) {
			continue
		}
		seconds, err := strconv.ParseFloat(f[2], 64)
		if err != nil {
			continue
		}
		all = append(all, outcome{name: f[1], result: f[0], seconds: seconds})
	}
	return all
}

// TestParse: the output of Hadoop's test runner becomes outcomes with names, times and failures.
func TestParse(t *testing.T) {
	got := parse("noise\nPASS testA 1.25\nFAIL testB 0.10\n  java.lang.AssertionError: x\n  at y\n1 of 2 passed\n")
	want := []outcome{{"testA", "PASS", 1.25, ""}, {"testB", "FAIL", 0.10, "java.lang.AssertionError: x\nat y\n"}}
	if !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
}

func tail(file string, n int) string {
	b, err := os.ReadFile(file)
	if err != nil {
		return err.Error()
	}
	if len(b) > n {
		b = b[len(b)-n:]
	}
	return string(b)
}
