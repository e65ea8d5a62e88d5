package zktest

import (
	"context"
	"fmt"
	"io"
	"maps"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"claviger/internal/porttest"
)

// startTimeout bounds one start. A start takes two seconds on an idle machine, and longer
// while other tests run.
const startTimeout = 90 * time.Second

// SASL makes a server authenticate its clients with Kerberos.
type SASL struct {
	Krb5Conf  string // path of a krb5.conf
	Keytab    string // of the server
	Principal string // in it: "zookeeper/localhost@REALM"
	// Enforce makes it refuse clients that do not authenticate. Without Enforce these
	// clients are world:anyone.
	Enforce bool
}

// Options of a server. With the zero value every client may connect, without TLS.
type Options struct {
	// Jars is a folder with ZooKeeper's jars; "" means CLAVIGER_HADOOP_JARS.
	Jars string
	SASL *SASL
	// TLS makes the server accept only TLS, with a certificate of Server's CA. TLSClients
	// makes it require a certificate of its clients, too.
	TLS, TLSClients bool
}

// Server is one ZooKeeper. Its methods are for the test's own goroutine.
type Server struct {
	// Addr is its address, "127.0.0.1:PORT". Restarts do not change it.
	Addr string
	// Certificates are set if Options.TLS is true.
	Certificates *Certificates
	// Log is the path of its log.
	Log string

	t       testing.TB
	conf    map[string]string
	cfg     string // the file that conf is written to
	args    []string
	cmd     *exec.Cmd
	exited  chan struct{} // closed once cmd.Wait returned
	running bool
}

// Start starts a server. The end of the test stops it.
func Start(t testing.TB, o Options) *Server {
	t.Helper()
	s := prepare(t, o, nil)
	s.Start()
	return s
}

// StartEnsemble starts three servers that elect a leader. Two of them are enough to serve.
func StartEnsemble(t testing.TB, o Options) []*Server {
	t.Helper()
	o.Jars = o.jars(t)
	const servers = 3
	peers := make([]string, servers)
	for i := range peers {
		peers[i] = fmt.Sprintf("127.0.0.1:%d:%d", freePort(t), freePort(t))
	}
	all := make([]*Server, servers)
	for i := range all {
		all[i] = prepare(t, o, map[string]string{"initLimit": "20", "syncLimit": "10"})
		for j, p := range peers {
			all[i].conf[fmt.Sprintf("server.%d", j+1)] = p
		}
		if err := os.Mkdir(all[i].conf["dataDir"], 0o700); err != nil {
			t.Fatal(err)
		}
		write(t, all[i].conf["dataDir"], "myid", strconv.Itoa(i+1))
	}
	// No server serves before two have started.
	begin := make([]int64, servers)
	for i, s := range all {
		begin[i] = s.launch()
	}
	for i, s := range all {
		s.await(begin[i])
	}
	return all
}

// prepare makes a server, and does not start it.
func prepare(t testing.TB, o Options, more map[string]string) *Server {
	t.Helper()
	jars := o.jars(t)
	dir := t.TempDir()
	s := &Server{t: t, Addr: fmt.Sprintf("127.0.0.1:%d", freePort(t)), Log: filepath.Join(dir, "zookeeper.log")}
	_, port, _ := net.SplitHostPort(s.Addr) // just made
	conf := map[string]string{
		"dataDir":                filepath.Join(dir, "data"),
		"clientPortAddress":      "127.0.0.1",
		"clientPort":             port,
		"tickTime":               "500", // ms; clients may request sessions of 1 to 60 s
		"maxSessionTimeout":      "60000",
		"maxClientCnxns":         "0",
		"admin.enableServer":     "false",
		"4lw.commands.whitelist": "ruok",
		"forceSync":              "no", // only the crash of a machine could lose data, not that of a process
	}
	// The bytecode of ZooKeeper's jars is not verified: that takes a part of each start.
	s.args = []string{"-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC", "-XX:+UnlockDiagnosticVMOptions",
		"-XX:-BytecodeVerificationRemote", "-Xmx128m", "-Djava.net.preferIPv4Stack=true"}
	if o.SASL != nil {
		o.SASL.configure(t, dir, conf, s)
	}
	if o.TLS {
		s.Certificates = newCertificates(t, dir)
		s.Certificates.configure(conf, o.TLSClients)
	}
	maps.Copy(conf, more)
	s.conf, s.cfg = conf, filepath.Join(dir, "zoo.cfg")
	log4j := write(t, dir, "log4j.properties",
		"log4j.rootLogger=INFO,console\nlog4j.appender.console=org.apache.log4j.ConsoleAppender\n"+
			"log4j.appender.console.target=System.err\nlog4j.appender.console.layout=org.apache.log4j.PatternLayout\n"+
			"log4j.appender.console.layout.ConversionPattern=%d{ISO8601} %p %c{1} - %m%n\n")
	s.args = append(s.args, "-Dlog4j.configuration=file:"+log4j, "-cp", filepath.Join(jars, "*"),
		"org.apache.zookeeper.server.quorum.QuorumPeerMain", s.cfg)
	t.Cleanup(func() {
		s.Kill()
		if b, err := os.ReadFile(s.Log); err == nil && t.Failed() {
			t.Logf("end of the log of the ZooKeeper server:\n%s", b[max(0, len(b)-12<<10):])
		}
	})
	return s
}

func (o Options) jars(t testing.TB) string {
	t.Helper()
	if o.Jars != "" {
		return o.Jars
	}
	if testing.Short() {
		t.Skip("starts a ZooKeeper server, a Java process: left out by -short")
	}
	dir := os.Getenv("CLAVIGER_HADOOP_JARS")
	_, err := exec.LookPath("java")
	// The pattern is correct, so Glob returns no error.
	if found, _ := filepath.Glob(filepath.Join(dir, "zookeeper-3*.jar")); dir != "" && len(found) > 0 && err == nil {
		return dir
	}
	if os.Getenv("CLAVIGER_REQUIRE_HADOOP") == "1" {
		t.Fatalf("CLAVIGER_HADOOP_JARS is %q, which must be a folder with ZooKeeper's jar, and java must be "+
			"installed (%v): run `make setup`", dir, err)
	}
	t.Skip("CLAVIGER_HADOOP_JARS does not name a folder with ZooKeeper's jar: tests with a real ZooKeeper are " +
		"left out; `make test` runs them")
	return ""
}

// configure writes the server's login for Kerberos.
func (o *SASL) configure(t testing.TB, dir string, conf map[string]string, s *Server) {
	jaas := write(t, dir, "jaas.conf", fmt.Sprintf(`Server {
  com.sun.security.auth.module.Krb5LoginModule required
  useKeyTab=true storeKey=true useTicketCache=false isInitiator=false
  keyTab=%q principal=%q;
};
`, o.Keytab, o.Principal))
	s.args = append(s.args, "-Djava.security.auth.login.config="+jaas, "-Djava.security.krb5.conf="+o.Krb5Conf)
	conf["authProvider.1"] = "org.apache.zookeeper.server.auth.SASLAuthenticationProvider"
	// Hadoop's documentation requires this of an ensemble: the nodes of a service are one
	// user, because otherwise no node could read the data of another.
	conf["kerberos.removeHostFromPrincipal"] = "true"
	conf["kerberos.removeRealmFromPrincipal"] = "true"
	if o.Enforce {
		conf["enforce.auth.enabled"] = "true"
		conf["enforce.auth.schemes"] = "sasl"
	}
}

// Start starts a server that was stopped or killed, and waits until it serves.
func (s *Server) Start() {
	s.t.Helper()
	s.await(s.launch())
}

// launch starts the process. Its lines begin at the offset begin in the log file.
func (s *Server) launch() (begin int64) {
	s.t.Helper()
	var text strings.Builder
	for _, name := range slices.Sorted(maps.Keys(s.conf)) {
		fmt.Fprintf(&text, "%s=%s\n", name, s.conf[name])
	}
	write(s.t, filepath.Dir(s.cfg), filepath.Base(s.cfg), text.String())
	log, err := os.OpenFile(s.Log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		s.t.Fatal(err)
	}
	defer log.Close()
	if begin, err = log.Seek(0, io.SeekEnd); err != nil {
		s.t.Fatal(err)
	}
	cmd := exec.CommandContext(context.Background(), "java", s.args...)
	cmd.Stdout, cmd.Stderr = log, log
	// Pdeathsig ends the server even if the test binary is killed and no cleanup runs.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		s.t.Fatalf("ZooKeeper: %v", err)
	}
	exited := make(chan struct{})
	go func() {
		_ = cmd.Wait() // the status is in cmd.ProcessState
		close(exited)
	}()
	s.cmd, s.exited, s.running = cmd, exited, true
	return begin
}

// await waits until the server serves.
func (s *Server) await(begin int64) {
	s.t.Helper()
	for deadline := time.Now().Add(startTimeout); !s.serves(begin); time.Sleep(25 * time.Millisecond) {
		select {
		case <-s.exited:
			s.t.Fatalf("the ZooKeeper server ended (%v) before it served", s.cmd.ProcessState)
		default:
		}
		if time.Now().After(deadline) {
			s.t.Fatalf("the ZooKeeper server did not serve within %v", startTimeout)
		}
	}
}

// serves reports whether the log after begin says that the start is done, and the port
// accepts a connection.
func (s *Server) serves(begin int64) bool {
	b, err := os.ReadFile(s.Log)
	if err != nil || int64(len(b)) < begin || !strings.Contains(string(b[begin:]),
		"zookeeper.request_throttler.shutdownTimeout") {
		return false
	}
	c, err := (&net.Dialer{Timeout: time.Second}).DialContext(s.t.Context(), "tcp", s.Addr)
	if err != nil {
		return false
	}
	_ = c.Close() // nothing was written
	return true
}

// Stop sends the server SIGTERM, and waits for its end.
func (s *Server) Stop() { s.end(syscall.SIGTERM) }

// Kill kills the server.
func (s *Server) Kill() { s.end(syscall.SIGKILL) }

func (s *Server) end(sig syscall.Signal) {
	s.t.Helper()
	if !s.running {
		return
	}
	s.running = false
	_ = syscall.Kill(-s.cmd.Process.Pid, sig) // it may have ended already
	select {
	case <-s.exited:
	case <-time.After(20 * time.Second):
		s.t.Error("the ZooKeeper server did not end within 20 s of SIGTERM")
		_ = syscall.Kill(-s.cmd.Process.Pid, syscall.SIGKILL)
		<-s.exited
	}
}

// Pause stops the process until Resume: connections stay open and nothing answers, as if the
// network lost all packets.
func (s *Server) Pause() {
	s.t.Helper()
	s.signal(syscall.SIGSTOP)
	// A thread on another core may still answer for a moment.
	for end := time.Now().Add(startTimeout); !s.stopped(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			s.t.Fatal("the ZooKeeper server does not stop on SIGSTOP")
		}
	}
}

// stopped reports whether all threads are in state T: the field behind the name
// in /proc/PID/task/TID/stat, proc(5).
func (s *Server) stopped() bool {
	stats, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/stat", s.cmd.Process.Pid))
	if err != nil || len(stats) == 0 {
		return false
	}
	for _, stat := range stats {
		text, err := os.ReadFile(stat)
		if err != nil {
			return false
		}
		if i := strings.LastIndexByte(string(text), ')'); i < 0 || !strings.HasPrefix(string(text[i+1:]), " T") {
			return false
		}
	}
	return true
}

// Resume ends a Pause.
func (s *Server) Resume() { s.signal(syscall.SIGCONT) }

func (s *Server) signal(sig syscall.Signal) {
	s.t.Helper()
	if err := syscall.Kill(-s.cmd.Process.Pid, sig); err != nil {
		s.t.Fatal(err)
	}
}

func write(t testing.TB, dir, name, text string) string {
	t.Helper()
	path := filepath.Join(dir, name)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func freePort(t testing.TB) int {
	t.Helper()
	port, err := porttest.Free()
	if err != nil {
		t.Fatal(err)
	}
	return port
}
