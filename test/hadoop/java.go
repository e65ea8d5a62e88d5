package hadoop

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"sort"
	"strings"
	"sync"
	"testing"
	"time"

	"claviger/internal/modroot"
)

// Require skips the test under -short, and fails the test if there is no JDK.
func Require(t testing.TB) {
	t.Helper()
	if testing.Short() {
		t.Skip("starts Java processes: left out by -short")
	}
	for _, tool := range []string{"java", "javac"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Fatalf("%s is not installed: run `make setup`, or `go test -short` to leave these tests out", tool)
		}
	}
}

// Root returns the top folder of the project.
func Root() string { return modroot.Path() }

var jarFolder = sync.OnceValues(func() (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Minute)
	defer cancel()
	out, err := exec.CommandContext(ctx, filepath.Join(Root(), "scripts", "hadoop-jars")).Output()
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		err = errors.New(strings.TrimSpace(string(exit.Stderr)))
	}
	return strings.TrimSpace(string(out)), err
})

// cacheDir returns the folder that scripts/cache-dir prints.
func cacheDir(t testing.TB) string {
	t.Helper()
	dir, err := os.UserCacheDir()
	if err != nil {
		t.Fatal(err)
	}
	dir = filepath.Join(dir, "claviger")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	return dir
}

// Jars returns the folder with Hadoop's jars. The first call on a machine fetches the jars.
func Jars(t testing.TB) string {
	t.Helper()
	dir, err := jarFolder()
	if err != nil {
		t.Fatalf("the jars of Hadoop: %v", err)
	}
	return dir
}

// RuntimeClassPath returns the class path of Hadoop's processes and clients. It leaves out the jars of Hadoop's
// tests, because their configuration files would replace Hadoop's own.
func RuntimeClassPath(t testing.TB) string {
	t.Helper()
	jars, err := filepath.Glob(filepath.Join(Jars(t), "*.jar"))
	if err != nil || len(jars) == 0 {
		t.Fatalf("no jars in %s: remove the folder and run `make setup` (%v)", Jars(t), err)
	}
	sort.Strings(jars)
	var keep []string
	for _, j := range jars {
		base := filepath.Base(j)
		if !strings.HasSuffix(base, "-tests.jar") && !strings.HasPrefix(base, "mockito-") {
			keep = append(keep, j)
		}
	}
	return strings.Join(keep, string(os.PathListSeparator))
}

// Javac compiles every .java file in the source folders with classPath, and returns the folder of the classes. The
// folder stays in the cache, and is used again if the sources and the class path have not changed.
func Javac(t testing.TB, classPath string, sources ...string) string {
	t.Helper()
	sum := sha256.New()
	fmt.Fprintln(sum, "release 8", classPath)
	var files []string
	for _, dir := range sources {
		err := filepath.WalkDir(dir, func(path string, _ os.DirEntry, err error) error {
			if err != nil || !strings.HasSuffix(path, ".java") {
				return err
			}
			b, err := os.ReadFile(path)
			fmt.Fprintf(sum, "%s %d\n%s\n", path, len(b), b)
			files = append(files, path)
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	cache := cacheDir(t)
	done := filepath.Join(cache, fmt.Sprintf("classes-%x", sum.Sum(nil)[:6]))
	if _, err := os.Stat(done); err == nil {
		return done
	}
	part, err := os.MkdirTemp(cache, "classes-part-")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(part)
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	// Jersey 1, in the KMS, reads class files itself. It reads the format of Java 8, and no newer one.
	args := append([]string{"--release", "8", "-nowarn", "-proc:none", "-J-XX:TieredStopAtLevel=1",
		"-J-XX:+UseSerialGC", "-d", part, "-cp", classPath}, files...)
	if msg, err := exec.CommandContext(ctx, "javac", args...).CombinedOutput(); err != nil {
		t.Fatalf("javac: %v\n%s", err, msg)
	}
	// Another process may have made the same folder meanwhile.
	if err := os.Rename(part, done); err != nil && !errors.Is(err, fs.ErrExist) {
		t.Fatal(err)
	}
	return done
}

// fastJVM are flags that make short-lived JVMs start quickly and stay small. The bytecode of Hadoop's jars is not
// verified, which takes a sixth of the processor time of a client.
var fastJVM = []string{"-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC", "-XX:+UnlockDiagnosticVMOptions",
	"-XX:-BytecodeVerificationRemote", "-Xshare:auto", "-Xmx256m"}

// java describes a JVM. The conf folder comes first on its class path.
type java struct {
	name      string   // of the process, for logs and messages
	conf      string   // folder with *-site.xml and log4j.properties
	classPath []string // after conf, before the jars
	flags     []string
	main      string
	args      []string
	user      string // HADOOP_USER_NAME: the user, with simple authentication
	env       []string
	long      bool // it serves for long, so it has the flags of a site in place of fastJVM
}

// siteJVM are the flags of a KMS's JVM at a site: HotSpot's own choice of compiler and collector.
var siteJVM = []string{"-Xmx1g"}

func (j java) command(ctx context.Context, t testing.TB) *exec.Cmd {
	t.Helper()
	cp := append(append([]string{j.conf}, j.classPath...), RuntimeClassPath(t))
	jvm := fastJVM
	if j.long {
		jvm = siteJVM
	}
	args := append(append([]string{}, jvm...), j.flags...)
	args = append(args,
		"-Dlog4j.configuration=file:"+filepath.Join(j.conf, "log4j.properties"),
		"-Djava.net.preferIPv4Stack=true",
		"-cp", strings.Join(cp, string(os.PathListSeparator)), j.main)
	cmd := exec.CommandContext(ctx, "java", append(args, j.args...)...)
	cmd.Env = append(cleanEnv(), j.env...)
	if j.user != "" {
		cmd.Env = append(cmd.Env, "HADOOP_USER_NAME="+j.user)
	}
	return cmd
}

// cleanEnv returns the environment without variables that change Hadoop's behaviour.
func cleanEnv() []string {
	var env []string
	for _, kv := range os.Environ() {
		name, _, _ := strings.Cut(kv, "=")
		if !strings.HasPrefix(name, "HADOOP_") && !strings.HasPrefix(name, "KMS_") && name != "JAVA_TOOL_OPTIONS" &&
			name != "CLASSPATH" {
			env = append(env, kv)
		}
	}
	return env
}
