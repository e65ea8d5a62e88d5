package pgtest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"claviger/internal/porttest"
)

const (
	// startTimeout bounds one start, which takes two seconds on an idle machine.
	startTimeout = 60 * time.Second
	// Superuser needs no password.
	Superuser = "postgres"
)

// settings make a server fast and small. Tests kill processes, not machines: the kernel
// keeps written data, so fsync is not needed. synchronous_commit stays on: a confirmed
// commit survives a kill. With mmap, shared memory is in files of the
// data folder, so it is removed with the folder, even if the server was killed.
var settings = []string{
	"fsync=off", "full_page_writes=off", "shared_buffers=16MB", "max_connections=100",
	"listen_addresses=127.0.0.1", "unix_socket_directories=", "log_min_messages=warning", "log_line_prefix=%m [%p] %d ",
	"jit=off", "timezone=UTC", "dynamic_shared_memory_type=mmap",
}

// alone and replicated are more settings, without and with replication.
var (
	alone      = []string{"wal_level=minimal", "max_wal_senders=0"}
	replicated = []string{"wal_level=replica", "max_wal_senders=4"}
)

// Server is one PostgreSQL. Its methods are for one goroutine.
type Server struct {
	// Addr is its address, "127.0.0.1:PORT". Restarts do not change it.
	Addr string
	// Log is the path of its log.
	Log string

	dir, data string
	programs  string
	settings  []string
	as        *syscall.Credential // nil: as this process
	cmd       *exec.Cmd
	exited    chan struct{} // closed once cmd.Wait returned
	running   bool
	databases int
}

// Start starts a server for one test. The end of the test stops it.
func Start(t testing.TB) *Server {
	t.Helper()
	bin := programs(t)
	s, err := newServer(bin, alone)
	return stopAtEnd(t, s, err)
}

// StartReplicated is Start for a server that can have a standby.
func StartReplicated(t testing.TB) *Server {
	t.Helper()
	bin := programs(t)
	s, err := newServer(bin, replicated)
	return stopAtEnd(t, s, err)
}

// stopAtEnd stops a server at the end of the test.
func stopAtEnd(t testing.TB, s *Server, err error) *Server {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			s.tail(t)
		}
		if err := s.remove(); err != nil {
			t.Error(err)
		}
	})
	return s
}

// tail writes the end of the server's log into the log of the test.
func (s *Server) tail(t testing.TB) {
	if b, err := os.ReadFile(s.Log); err == nil {
		t.Logf("end of the log of the PostgreSQL server:\n%s", b[max(0, len(b)-8<<10):])
	}
}

// programs returns the folder of initdb and postgres.
func programs(t testing.TB) string {
	t.Helper()
	if testing.Short() {
		t.Skip("starts a PostgreSQL server: left out by -short")
	}
	bin, err := findPrograms()
	if err == nil {
		return bin
	}
	if os.Getenv("CLAVIGER_REQUIRE_POSTGRES") == "1" {
		t.Fatalf("%v: run `make setup`, or install PostgreSQL (on Debian and Ubuntu: apt-get install postgresql)", err)
	}
	t.Skipf("%v: tests with a real PostgreSQL are left out; `make test` runs them", err)
	return ""
}

func findPrograms() (string, error) {
	found, err := filepath.Glob("/usr/lib/postgresql/*/bin/initdb") // Debian's folder, which is not in PATH
	if err != nil {
		return "", err
	}
	if path, err := exec.LookPath("initdb"); err == nil {
		path, err = filepath.EvalSymlinks(path) // the other programs are in the folder of the real file
		return filepath.Dir(path), err
	}
	if len(found) == 0 {
		return "", errors.New("initdb of PostgreSQL is neither in PATH nor in /usr/lib/postgresql/*/bin")
	}
	return filepath.Dir(slices.Max(found)), nil
}

// credential returns the user of a server if this process is root.
func credential() (*syscall.Credential, error) {
	if os.Geteuid() != 0 {
		return nil, nil
	}
	var errs []error
	for _, name := range []string{"postgres", "nobody"} {
		u, err := user.Lookup(name)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		uid, err := strconv.ParseUint(u.Uid, 10, 32)
		if err != nil {
			return nil, err
		}
		gid, err := strconv.ParseUint(u.Gid, 10, 32)
		if err != nil {
			return nil, err
		}
		return &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}, nil
	}
	return nil, fmt.Errorf("PostgreSQL does not run as root: %w", errors.Join(errs...))
}

// newServer makes a server and starts it.
func newServer(bin string, extra []string) (*Server, error) {
	return makeServer(bin, extra, func(s *Server) error {
		if err := s.run("initdb", "-D", s.data, "-U", Superuser, "-A", "trust", "-E", "UTF8", "--locale=C", "--no-sync",
			"--no-instructions"); err != nil {
			return err
		}
		// The role "guarded" needs a password.
		hba := "host all guarded 127.0.0.1/32 scram-sha-256\nhost all,replication all 127.0.0.1/32 trust\n"
		return os.WriteFile(filepath.Join(s.data, "pg_hba.conf"), []byte(hba), 0o600) // it exists, so its owner stays
	})
}

// Standby starts a second server that replicates this one, which StartReplicated has made.
// The end of the test stops it.
func (s *Server) Standby(t testing.TB) *Server {
	t.Helper()
	standby, err := makeServer(s.programs, replicated, func(made *Server) error {
		uri := s.URI(Superuser, "postgres")
		return made.run("pg_basebackup", "-D", made.data, "-d", uri, "-R", "-X", "stream", "--checkpoint=fast",
			"--no-sync")
	})
	return stopAtEnd(t, standby, err)
}

// makeServer starts a server with the data folder that fill makes.
func makeServer(bin string, extra []string, fill func(*Server) error) (_ *Server, err error) {
	s := &Server{programs: bin, settings: append(slices.Clone(settings), extra...)}
	if s.as, err = credential(); err != nil {
		return nil, err
	}
	if s.dir, err = os.MkdirTemp("", "pgtest"); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, s.remove())
		}
	}()
	if s.as != nil {
		if err := os.Chown(s.dir, int(s.as.Uid), int(s.as.Gid)); err != nil {
			return nil, err
		}
	}
	s.data, s.Log = filepath.Join(s.dir, "data"), filepath.Join(s.dir, "log")
	if err := fill(s); err != nil {
		return nil, err
	}
	port, err := porttest.Free()
	if err != nil {
		return nil, err
	}
	s.Addr = fmt.Sprintf("127.0.0.1:%d", port)
	return s, s.start()
}

// run runs one of PostgreSQL's programs to its end.
func (s *Server) run(program string, args ...string) error {
	ctx, cancel := context.WithTimeout(context.Background(), startTimeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, filepath.Join(s.programs, program), args...)
	cmd.Dir, cmd.SysProcAttr = s.dir, s.attributes()
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%s: %w\n%s", program, err, out)
	}
	return nil
}

// attributes returns the attributes of a child process. Pdeathsig ends it even if the test
// binary is killed and no cleanup runs. The postmaster's children notice its end themselves.
func (s *Server) attributes() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL, Credential: s.as}
}

// Start starts a server that was stopped or killed, and waits until it serves.
func (s *Server) Start(t testing.TB) {
	t.Helper()
	if err := s.start(); err != nil {
		s.tail(t)
		t.Fatal(err)
	}
}

// start starts the server. It tries again while processes of a killed server still hold its
// shared memory.
func (s *Server) start() error {
	for deadline := time.Now().Add(startTimeout); ; time.Sleep(20 * time.Millisecond) {
		err := s.startOnce()
		if err == nil || !strings.Contains(err.Error(), "is still in use") || time.Now().After(deadline) {
			return err
		}
	}
}

func (s *Server) startOnce() error {
	log, err := os.OpenFile(s.Log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer func() { _ = log.Close() }() // the child has its own
	begin, err := log.Seek(0, io.SeekEnd)
	if err != nil {
		return err
	}
	_, port, err := net.SplitHostPort(s.Addr)
	if err != nil {
		return err
	}
	args := []string{"-D", s.data, "-p", port}
	for _, setting := range s.settings {
		args = append(args, "-c", setting)
	}
	cmd := exec.CommandContext(context.Background(), filepath.Join(s.programs, "postgres"), args...)
	cmd.Dir, cmd.Stdout, cmd.Stderr, cmd.SysProcAttr = s.dir, log, log, s.attributes()
	exited, started := make(chan struct{}), make(chan error)
	go func() {
		// Pdeathsig ends the server also when the thread ends that has started it, so the goroutine keeps its thread.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := cmd.Start()
		started <- err
		if err == nil {
			_ = cmd.Wait() // the status is in cmd.ProcessState
		}
		close(exited)
	}()
	if err := <-started; err != nil {
		return fmt.Errorf("postgres: %w", err)
	}
	s.cmd, s.exited, s.running = cmd, exited, true
	for deadline := time.Now().Add(startTimeout); ; time.Sleep(20 * time.Millisecond) {
		err := s.ping()
		if err == nil {
			return nil
		}
		select {
		case <-exited:
			s.running = false
			text, _ := os.ReadFile(s.Log) // the error has the status in any case
			return fmt.Errorf("the PostgreSQL server ended (%v) before it served: %s", cmd.ProcessState,
				text[min(int(begin), len(text)):])
		default:
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("the PostgreSQL server did not serve within %v: %w", startTimeout, err)
		}
	}
}

// ping returns an error if the server does not serve, or if another server has taken the
// port.
func (s *Server) ping() error {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	conn, err := pgx.Connect(ctx, s.URI(Superuser, "postgres"))
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close(ctx) }() // the connection is not used again
	var data string
	if err := conn.QueryRow(ctx, `SHOW data_directory`).Scan(&data); err != nil {
		return err
	}
	if data != s.data {
		return fmt.Errorf("at %s is the server of %s, not that of %s", s.Addr, data, s.data)
	}
	return nil
}

// URI returns the URI of a database for a role.
func (s *Server) URI(role, database string) string {
	return fmt.Sprintf("postgresql://%s@%s/%s?sslmode=disable", role, s.Addr, database)
}

// Database makes an empty database and returns its URI, for the superuser.
func (s *Server) Database(t testing.TB) string {
	t.Helper()
	s.databases++
	name := fmt.Sprintf("test%d", s.databases)
	s.Exec(t, "postgres", "CREATE DATABASE "+name)
	return s.URI(Superuser, name)
}

// Copy makes a copy of a database and returns its URI, for the superuser. PostgreSQL waits some seconds for the end of
// sessions in the database, and then refuses.
func (s *Server) Copy(t testing.TB, database string) string {
	t.Helper()
	s.databases++
	name := fmt.Sprintf("test%d", s.databases)
	s.Exec(t, "postgres", "CREATE DATABASE "+name+" TEMPLATE "+database)
	return s.URI(Superuser, name)
}

// Dump writes a database to a file with the program that operators use.
func (s *Server) Dump(t testing.TB, database string) (file string) {
	t.Helper()
	file = filepath.Join(s.dir, database+".dump")
	if err := s.run("pg_dump", "--format=custom", "--file="+file, s.URI(Superuser, database)); err != nil {
		t.Fatal(err)
	}
	return file
}

// Restore replaces the content of a database by a dump. Connections stay open.
func (s *Server) Restore(t testing.TB, database, file string) {
	t.Helper()
	if err := s.run("pg_restore", "--clean", "--if-exists", "--single-transaction",
		"--dbname="+s.URI(Superuser, database), file); err != nil {
		t.Fatal(err)
	}
}

// Exec runs statements in a database as the superuser.
func (s *Server) Exec(t testing.TB, database string, statements ...string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	conn, err := pgx.Connect(ctx, s.URI(Superuser, database))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close(ctx) }() // the connection is not used again
	for _, statement := range statements {
		if _, err := conn.Exec(ctx, statement); err != nil {
			t.Fatalf("%s: %v", statement, err)
		}
	}
}

// Stop stops the server like `pg_ctl stop -m fast`: it closes connections.
func (s *Server) Stop(t testing.TB) {
	t.Helper()
	if err := s.end(syscall.SIGINT); err != nil {
		t.Fatal(err)
	}
}

// Kill kills all its processes.
func (s *Server) Kill(t testing.TB) {
	t.Helper()
	if err := s.end(syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
}

func (s *Server) end(signal syscall.Signal) error {
	if !s.running {
		return nil
	}
	s.running = false
	if signal == syscall.SIGKILL {
		s.killChildren()
	}
	_ = s.cmd.Process.Signal(signal) // it may have ended already
	select {
	case <-s.exited:
		return nil
	case <-time.After(20 * time.Second):
		s.killChildren()
		_ = s.cmd.Process.Kill() // it must end in any case
		<-s.exited
		return errors.New("the PostgreSQL server did not end within 20 s")
	}
}

// children returns the server's processes. Each is the leader of its process group.
func (s *Server) children() []int {
	pid := s.cmd.Process.Pid
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", pid, pid))
	if err != nil {
		return nil // it has ended
	}
	var pids []int
	for _, field := range strings.Fields(string(b)) {
		if child, err := strconv.Atoi(field); err == nil {
			pids = append(pids, child)
		}
	}
	return pids
}

func (s *Server) killChildren() {
	_ = s.cmd.Process.Signal(syscall.SIGSTOP) // otherwise it would start new processes
	for _, pid := range s.children() {
		_ = syscall.Kill(pid, syscall.SIGKILL) // it may have ended already
	}
}

// Pause stops all processes until Resume: connections stay open and nothing answers, as if
// the network lost all packets.
func (s *Server) Pause() { s.signalAll(syscall.SIGSTOP) }

// Resume ends a Pause.
func (s *Server) Resume() { s.signalAll(syscall.SIGCONT) }

func (s *Server) signalAll(signal syscall.Signal) {
	for _, pid := range append([]int{s.cmd.Process.Pid}, s.children()...) {
		_ = syscall.Kill(pid, signal) // a child may have ended
	}
}

func (s *Server) remove() error {
	return errors.Join(s.end(syscall.SIGKILL), os.RemoveAll(s.dir))
}

// Promote makes a standby the primary, and waits until it accepts writes.
func (s *Server) Promote(t testing.TB) {
	t.Helper()
	s.Exec(t, "postgres", `SELECT pg_promote(true, 60)`)
}

// CatchUp waits until a standby has replayed all commits of its primary.
func (s *Server) CatchUp(t testing.TB, primary *Server) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), startTimeout)
	defer cancel()
	query := func(from *Server, what string) (answer string) {
		conn, err := pgx.Connect(ctx, from.URI(Superuser, "postgres"))
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = conn.Close(ctx) }() // the connection is not used again
		if err := conn.QueryRow(ctx, what).Scan(&answer); err != nil {
			t.Fatal(err)
		}
		return answer
	}
	to := query(primary, `SELECT pg_current_wal_lsn()::text`)
	replayed := fmt.Sprintf(`SELECT (coalesce(pg_last_wal_replay_lsn(), '0/0') >= '%s'::pg_lsn)::text`, to)
	for query(s, replayed) != "true" {
		if ctx.Err() != nil {
			t.Fatal("the standby does not catch up with its primary")
		}
		time.Sleep(20 * time.Millisecond)
	}
}
