package packages

import (
	"archive/tar"
	"compress/gzip"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"claviger/internal/pagetest"
	"claviger/test/hadoop"
)

// TestFirstHour runs the commands of docs/first-hour.md, word for word, in a small Debian: from the installation of the
// package to a file in an encryption zone that is read back. Three programs are not Debian's or Hadoop's own:
//
//   - apt-get installs the .deb by dpkg. SoftHSM and curl are in the root already, and Java is mounted into it;
//   - systemctl runs the command of a unit as the unit's user;
//   - hdfs and hadoop start the classes that Hadoop's own scripts start, from Hadoop's jars. With
//     CLAVIGER_HADOOP_RELEASE, a file with the binary release of Hadoop 3.4.2, they are Hadoop's own.
func TestFirstHour(t *testing.T) {
	p := packages(t)
	install := map[string]func(t *testing.T, r *root, script string) string{
		"deb": func(t *testing.T, r *root, script string) string {
			t.Helper()
			output(t, "cp", p.deb, r.path("/home/trial/claviger_1_amd64.deb"))
			return script
		},
		"rpm": func(t *testing.T, r *root, script string) string {
			t.Helper()
			require(t, "rpm")
			command(t, "rpm", "--root", r.dir, "--nodeps", "-U", p.rpm)
			rest := regexp.MustCompile(`(?m)^apt-get install .*\n`).ReplaceAllString(script, "")
			if rest == script {
				t.Fatal("docs/first-hour.md installs nothing by apt-get")
			}
			return rest
		},
	}
	for name, f := range install {
		t.Run(name, func(t *testing.T) {
			r := newRoot(t)
			r.debianForTheFirstHour()
			began := time.Now()
			shown := r.session(f(t, r, firstHour(t)))
			t.Logf("the page took %v, and prints:\n%s", time.Since(began).Round(time.Second), shown)
			checkFirstHour(t, shown)
		})
	}
}

// blockMark is printed before each block of the page, with the number of the block.
const blockMark = "=== block %d\n"

// firstHour returns the blocks of docs/first-hour.md as one script.
func firstHour(t *testing.T) string {
	t.Helper()
	var script strings.Builder
	blocks := regexp.MustCompile("(?s)\n```\n(.*?)```\n").FindAllStringSubmatch(
		pagetest.All(t)["first-hour.md"], -1)
	for i, m := range blocks {
		fmt.Fprintf(&script, "printf '"+strings.ReplaceAll(blockMark, "\n", `\n`)+"'\n%s", i+1, m[1])
	}
	if len(blocks) < 8 {
		t.Fatalf("docs/first-hour.md has only %d blocks", len(blocks))
	}
	return script.String()
}

// checkFirstHour checks what the blocks of the page have printed.
func checkFirstHour(t *testing.T, shown string) {
	t.Helper()
	const secret = "the first secret"
	has := func(what, pattern string) {
		t.Helper()
		if !regexp.MustCompile(`(?m)` + pattern).MatchString(shown) {
			t.Errorf("%s: the page prints no %q", what, pattern)
		}
	}
	has("the doctor", `^no failure, no warning`)
	has("readiness", `"ready": true`)
	has("the file", `^`+secret+`$`)
	has("the superuser", `^refused$`)
	has("the token", `zone1@0`)
	for _, op := range []string{"CREATE_KEY", "GENERATE_EEK", "DECRYPT_EEK"} {
		has("the audit log", `"op":"`+op+`","key":"zone1"`)
	}
	if n := strings.Count(shown, secret+"\n"); n != 1 {
		t.Errorf("the secret is printed %d times, want once: alice alone may read it", n)
	}
	raw := regexp.MustCompile(`(?m)^0000000((?: +\S+)+)$`).FindStringSubmatch(shown)
	if raw == nil || strings.Contains(strings.Join(strings.Fields(raw[1]), ""), "thefirst") {
		t.Errorf("HDFS stores %q", raw)
	}
}

// debianForTheFirstHour adds to a root what a machine has that the page names: programs, Hadoop's release, and hosts.
func (r *root) debianForTheFirstHour() {
	r.t.Helper()
	if err := os.MkdirAll(r.path("/home/trial"), 0o755); err != nil {
		r.t.Fatal(err)
	}
	r.write("/etc/hosts", "127.0.0.1 localhost debian\n", 0o644)
	r.write("/usr/bin/apt-get", `#!/bin/sh
set -eu
for package; do
  case $package in
  *.deb) dpkg -i "$package" ;;
  install|-y) ;;
  openjdk-*) command -v java ;;
  *) dpkg -s "$package" >/dev/null ;;
  esac
done
`, 0o755)
	r.write("/usr/bin/systemctl", `#!/bin/sh
set -eu
for unit; do :; done
file=/usr/lib/systemd/system/$unit.service
case "$*" in
"enable --now "*)
  command=$(sed -n 's/^ExecStart=//p' "$file")
  setsid runuser -u "$(sed -n 's/^User=//p' "$file")" -- sh -c "echo \$\$ >/tmp/$unit.pid; exec $command" \
    >"/var/log/$unit" 2>&1 </dev/null & ;;
"disable --now "*) kill "$(cat "/tmp/$unit.pid")" ;;
esac
`, 0o755)
	const release = "/home/trial/hadoop-3.4.2.tar.gz"
	r.write("/usr/bin/ps", "#!/bin/sh\n[ \"$1\" = -p ] && [ -d \"/proc/$2\" ]\n", 0o755) // for Hadoop's own scripts
	if real := os.Getenv("CLAVIGER_HADOOP_RELEASE"); real != "" {
		output(r.t, "cp", real, r.path(release))
		return
	}
	file, err := os.Create(r.path(release))
	if err != nil {
		r.t.Fatal(err)
	}
	defer file.Close()
	hadoopRelease(r.t, file)
}

// hadoopScript does what Hadoop's own scripts bin/hadoop and bin/hdfs do with the commands of the page.
const hadoopScript = `#!/bin/sh
set -eu
home=$(dirname "$(dirname "$(readlink -f "$0")")")
daemon=
if [ "$1" = --daemon ]; then daemon=$2; shift 2; fi
command=$1; shift
case $command in
namenode) class=org.apache.hadoop.hdfs.server.namenode.NameNode ;;
datanode) class=org.apache.hadoop.hdfs.server.datanode.DataNode ;;
dfs) class=org.apache.hadoop.fs.FsShell ;;
dfsadmin) class=org.apache.hadoop.hdfs.tools.DFSAdmin ;;
crypto) class=org.apache.hadoop.hdfs.tools.CryptoAdmin ;;
key) class=org.apache.hadoop.crypto.key.KeyShell ;;
*) echo "no command $command" >&2; exit 1 ;;
esac
pid=$HADOOP_PID_DIR/hadoop-$command.pid
if [ "$daemon" = stop ]; then kill "$(cat "$pid")"; exit; fi
set -- "$JAVA_HOME/bin/java" -XX:TieredStopAtLevel=1 -XX:+UseSerialGC -Xmx256m -Djava.net.preferIPv4Stack=true \
  -cp "$home/etc/hadoop:$home/share/hadoop/hdfs:$home/share/hadoop/lib/*" "$class" "$@"
if [ "$daemon" = start ]; then
  setsid "$@" >"$HADOOP_LOG_DIR/hadoop-$command.out" 2>&1 </dev/null &
  echo $! >"$pid"
  exit
fi
exec "$@"
`

// hadoopRelease writes an archive with the folders of a release of Hadoop: its jars, and the scripts above.
func hadoopRelease(t *testing.T, file io.Writer) {
	t.Helper()
	compressed, err := gzip.NewWriterLevel(file, gzip.NoCompression)
	if err != nil {
		t.Fatal(err)
	}
	archive := tar.NewWriter(compressed)
	add := func(name string, mode int64, text []byte) {
		t.Helper()
		head := &tar.Header{Name: "hadoop-3.4.2/" + name, Mode: mode, Size: int64(len(text))}
		if strings.HasSuffix(name, "/") {
			head.Typeflag = tar.TypeDir
		}
		if err := archive.WriteHeader(head); err != nil {
			t.Fatal(err)
		}
		if _, err := archive.Write(text); err != nil {
			t.Fatal(err)
		}
	}
	for _, script := range []string{"bin/hadoop", "bin/hdfs"} {
		add(script, 0o755, []byte(hadoopScript))
	}
	add("etc/hadoop/log4j.properties", 0o644, []byte("log4j.rootLogger=ERROR, stderr\n"+
		"log4j.appender.stderr=org.apache.log4j.ConsoleAppender\nlog4j.appender.stderr.target=System.err\n"+
		"log4j.appender.stderr.layout=org.apache.log4j.PatternLayout\n"+
		"log4j.appender.stderr.layout.ConversionPattern=%p %c: %m%n\n"))
	for _, dir := range []string{"hdfs", "datanode"} { // pages that the servers look for
		add("share/hadoop/hdfs/webapps/"+dir+"/", 0o755, nil)
	}
	for _, jar := range strings.Split(hadoop.RuntimeClassPath(t), string(os.PathListSeparator)) {
		text, err := os.ReadFile(jar)
		if err != nil {
			t.Fatal(err)
		}
		add("share/hadoop/lib/"+filepath.Base(jar), 0o644, text)
	}
	if err := archive.Close(); err != nil {
		t.Fatal(err)
	}
	if err := compressed.Close(); err != nil {
		t.Fatal(err)
	}
}

// session runs a script as root in the root's folder /home/trial, with Java, and with network, processes and mounts of
// its own: the ports of the page are free, and no process is left. It returns what the script prints.
func (r *root) session(script string) string {
	r.t.Helper()
	require(r.t, "ip", "java")
	java, err := exec.LookPath("java")
	if err == nil {
		java, err = filepath.EvalSymlinks(java)
	}
	if err != nil {
		r.t.Fatal(err)
	}
	home := filepath.Dir(filepath.Dir(java))
	mounts := []string{home}
	security, err := filepath.EvalSymlinks(filepath.Join(home, "conf/security/java.security"))
	if err == nil && !strings.HasPrefix(security, home) {
		mounts = append(mounts, filepath.Dir(filepath.Dir(security))) // Debian keeps Java's settings in /etc
	}
	for _, dir := range mounts {
		if err := os.MkdirAll(r.path(dir), 0o755); err != nil {
			r.t.Fatal(err)
		}
	}
	if err := os.Symlink(java, r.path("/usr/bin/java")); err != nil {
		r.t.Fatal(err)
	}
	r.write("/home/trial/script", "set -eu\ncd /home/trial\n"+script, 0o644)
	const inside = `root=$1; shift
		ip link set lo up && hostname debian || exit
		mount -t proc proc "$root/proc" && mount --rbind /dev "$root/dev" || exit
		for dir; do mount --rbind "$dir" "$root$dir" || exit; done
		exec chroot "$root" /bin/bash /home/trial/script`
	args := append([]string{"--mount", "--net", "--uts", "--pid", "--fork", "--kill-child", "sh", "-c", inside, "sh",
		r.dir}, mounts...)
	cmd := exec.Command("unshare", args...) //nolint:noctx // see runs
	cmd.Env = []string{"PATH=/usr/sbin:/usr/bin", "HOME=/root", "GORACE=atexit_sleep_ms=0"}
	out, err := runs(r.t.Context(), cmd)
	if err != nil {
		for _, log := range []string{"/var/log/claviger-kms", "/var/lib/hdfs/hadoop-namenode.out"} {
			text, _ := os.ReadFile(r.path(log))
			r.t.Logf("%s:\n%s", log, text)
		}
		r.t.Fatal(err)
	}
	return out
}
