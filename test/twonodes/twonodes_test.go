package twonodes

import (
	"fmt"
	"os"
	"os/exec"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"claviger/test/hadoop"
)

// TestTwoNodes runs all parts, once for each way to share data.
func TestTwoNodes(t *testing.T) {
	hadoop.Require(t)
	kdc := startKDC(t)
	t.Run("ZooKeeper", func(t *testing.T) {
		s := newSite(t, kdc, zookeeper(t, kdc))
		shell, job := s.shell(), s.job()
		s.cookies()
		s.keys(shell)
		l := s.load(job)
		l.killNodes(shell)
		l.pauseNode()
		l.end()
		s.tokens(job)
	})
	t.Run("PostgreSQL", func(t *testing.T) {
		s := newSite(t, kdc, hadoop.Conf{
			"hadoop.kms.authentication.signer.secret.provider": "sql",
			"hadoop.kms.authentication.token.validity":         "8", // seconds
		})
		shell, job := s.shell(), s.job()
		s.cookies()
		s.keys(shell)
		l := s.load(job)
		l.killNodes(shell)
		l.upgradeNodes(shell)
		l.waitForExpiry()
		l.end()
		s.tokens(job)
		job.Close()
		s.hdfs(shell)
	})
}

// cookies logs in at each node with curl, and sends a request to the other node with only the cookie.
func (s *site) cookies() {
	s.t.Helper()
	tickets := s.kdc.Login(s.users, "alice")
	curl := func(n *node, args ...string) string {
		s.t.Helper()
		args = append([]string{"-sS", "-i", "--max-time", "30", "--cacert", s.certs.CA, n.base() + "/v1/keys/names"},
			args...)
		for i, n := range s.nodes {
			args = append(args, "--resolve", fmt.Sprintf("%s:%d:%s", n.name, s.port, hosts[i].address))
		}
		cmd := exec.CommandContext(s.t.Context(), "curl", args...)
		cmd.Env = append(s.kdc.Env(), "KRB5CCNAME=FILE:"+tickets)
		out, err := cmd.CombinedOutput()
		if err != nil {
			s.t.Fatalf("curl %s: %v\n%s", strings.Join(args, " "), err, out)
		}
		return string(out)
	}
	for i, n := range s.nodes {
		other := s.nodes[1-i]
		out := curl(n, "--negotiate", "-u", ":")
		m := setCookie.FindStringSubmatch(out)
		if m == nil {
			s.t.Fatalf("%s gives no cookie:\n%s", n.name, out)
		}
		if out := curl(other, "-H", "Cookie: "+m[1]); !strings.HasPrefix(out, "HTTP/1.1 200 ") {
			s.t.Errorf("%s refuses a cookie of %s:\n%s", other.name, n.name, out)
		}
		if out := curl(other); !strings.HasPrefix(out, "HTTP/1.1 401 ") {
			s.t.Errorf("%s accepts a request without a cookie:\n%s", other.name, out)
		}
	}
}

// setCookie matches the Set-Cookie header that answers a login over https.
var setCookie = regexp.MustCompile(`(?m)^Set-Cookie: (hadoop\.auth="u=alice&p=alice@[^;]*); Secure;? ?HttpOnly`)

// keys runs `hadoop key`, which uses one node after the other.
func (s *site) keys(shell *hadoop.Client) {
	s.t.Helper()
	shell.KeyShell("create", "zone", "-size", "128")
	s.versions(shell, 1, s.nodes[0], s.nodes[1])
	shell.KeyShell("roll", "zone")
	s.versions(shell, 2, s.nodes[0], s.nodes[1])
}

// versions requests the metadata of the key until each of the nodes has answered. Hadoop's client begins with any
// node.
func (s *site) versions(shell *hadoop.Client, n int, nodes ...*node) {
	s.t.Helper()
	begin := make(map[*node]int)
	for _, node := range nodes {
		begin[node] = len(node.auditLog())
	}
	answered := func(node *node) bool {
		return strings.Contains(node.auditLog()[begin[node]:], "op=GET_KEYS_METADATA, user=keyadmin")
	}
	for range 100 {
		out := shell.KeyShell("list", "-metadata")
		if !strings.Contains(out, "zone : cipher: AES/CTR/NoPadding, length: 128") ||
			!strings.Contains(out, fmt.Sprintf(", version: %d, ", n)) {
			s.t.Errorf("hadoop key list -metadata, want %d versions of zone:\n%s", n, out)
		}
		if nodes = slices.DeleteFunc(nodes, answered); len(nodes) == 0 {
			return
		}
	}
	s.t.Errorf("Hadoop's client has sent no request to %s", nodes[0].name)
}

func (n *node) auditLog() string {
	n.s.t.Helper()
	b, err := os.ReadFile(n.audit)
	if err != nil {
		n.s.t.Fatal(err)
	}
	return string(b)
}

// load is a Java program (Job.java): threads that generate and decrypt EDEKs of the key "zone", and a job that has only
// a delegation token.
type load struct {
	*site
	job *hadoop.Program
}

func (s *site) load(job *hadoop.Program) load {
	s.t.Helper()
	s.must(job.Send("job-get", "alice", s.uri(), "yarn"), "kms-dt "+s.uri())
	s.must(job.Send("load", "alice", s.uri(), "zone", "4"), "begun")
	l := load{s, job}
	l.waitForMore(50)
	return l
}

// end ends the load. Each node refuses a cancelled token after a second at most.
func (l load) end() {
	l.t.Helper()
	l.t.Logf("%d EDEKs were opened", l.opened("stop"))
	l.must(l.job.Send("job-cancel", "alice"), "cancelled")
	cancelled := time.Now()
	for strings.HasPrefix(l.job.Send("job-use", l.uri(), "zone"), "opened") && time.Since(cancelled) < time.Second {
		time.Sleep(10 * time.Millisecond)
	}
	for range l.nodes {
		l.refused(l.job.Send("job-use", l.uri(), "zone"),
			"SecretManager$InvalidToken: Token for real user: , can't be found in cache")
	}
}

// opened sends "count" or "stop", and returns how many EDEKs were decrypted. It fails the test if the client saw an
// error.
func (l load) opened(command string) int {
	l.t.Helper()
	answer := l.job.Send(command)
	n, errors, _ := strings.Cut(answer, " ")
	opened, err := strconv.Atoi(n)
	if err != nil || !strings.HasPrefix(errors+" ", "0 ") {
		l.t.Fatalf("the client saw an error (opened, errors, the first): %s", answer)
	}
	return opened
}

// waitForMore waits until n more EDEKs were decrypted.
func (l load) waitForMore(n int) {
	l.t.Helper()
	begin := l.opened("count")
	for deadline := time.Now().Add(time.Minute); l.opened("count") < begin+n; time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			l.t.Fatalf("the client opened %d EDEKs in a minute", l.opened("count")-begin)
		}
	}
}

// useWithOneNode continues the load and the job while one node does not run.
func (l load) useWithOneNode() {
	l.t.Helper()
	l.waitForMore(50)
	l.must(l.job.Send("job-use", l.uri(), "zone"), "opened 16")
	l.until(l.job.Send("job-renew", "yarn"))
}

// waitForLoad waits until a node has served the load again. begin is an earlier size of the node's audit log, and only
// later lines count.
func (l load) waitForLoad(n *node, begin int) {
	l.t.Helper()
	n.WaitFor("a generate and a decrypt of the load", func() bool {
		log := n.auditLog()[begin:]
		return strings.Contains(log, "op=GENERATE_EEK, key=zone, user=alice") &&
			strings.Contains(log, "op=DECRYPT_EEK, key=zone, user=alice")
	})
	l.waitForMore(50)
}

// restart starts a node that has ended.
func (l load) restart(n *node) {
	l.t.Helper()
	begin := len(n.auditLog())
	n.start()
	l.waitForLoad(n, begin)
}

// killNodes kills each node, and starts it again.
func (l load) killNodes(shell *hadoop.Client) {
	l.t.Helper()
	for i, victim := range l.nodes {
		victim.Kill()
		l.useWithOneNode()
		made := "made-without-" + victim.name
		shell.KeyShell("create", made, "-size", "128")
		// Hadoop's client rolls at one node, and then makes each node clear its caches. It reports an error about
		// the node that does not run, although the roll has succeeded.
		if out := shell.MustFail("key", "roll", "zone"); !strings.Contains(out,
			victim.base()+"/v1/key/zone/_invalidatecache") {
			l.t.Errorf("hadoop key roll: %s", out)
		}
		l.versions(shell, 3+i, l.nodes[1-i])
		l.restart(victim)
		l.must(l.job.Send("open", "alice", hadoop.ProviderURI(victim.base()), made), "opened 16")
	}
}

// upgradeNodes upgrades one node after the other to a release with another schema of the metastore, as docs/install.md
// says. Keys are made while both releases serve, and both open their EDEKs.
func (l load) upgradeNodes(shell *hadoop.Client) {
	l.t.Helper()
	next, _ := hadoop.NextBinary(l.t)
	for _, n := range l.nodes {
		if status := n.Stop(); status != 0 {
			l.t.Errorf("%s ended with status %d", n.name, status)
		}
		l.useWithOneNode()
		n.binary = next
		l.restart(n)
		made := "made-beside-" + n.name
		shell.KeyShell("create", made, "-size", "128")
		for _, other := range l.nodes {
			l.must(l.job.Send("open", "alice", hadoop.ProviderURI(other.base()), made), "opened 16")
		}
	}
}

// waitForExpiry waits until the cookies of both nodes have expired, and the secret that signs them has changed. The
// client logs in again.
func (l load) waitForExpiry() {
	l.t.Helper()
	begin := []int{len(l.nodes[0].auditLog()), len(l.nodes[1].auditLog())}
	for i, n := range l.nodes {
		n.WaitFor("the end of a cookie", func() bool {
			return strings.Contains(n.auditLog()[begin[i]:], "ErrorMsg:'AuthenticationToken expired'")
		})
	}
	l.waitForMore(50)
}

// pauseNode pauses a node. That delays clients by their timeout, and not longer.
func (l load) pauseNode() {
	l.t.Helper()
	n := l.nodes[0]
	n.Pause()
	l.waitForMore(8)
	begin := len(n.auditLog())
	n.Resume()
	l.waitForLoad(n, begin)
}

func (s *site) must(answer, want string) {
	s.t.Helper()
	if !strings.HasPrefix(answer, want) {
		s.t.Errorf("answer %q, want %q", answer, want)
	}
}

func (s *site) refused(answer, why string) {
	s.t.Helper()
	if !strings.HasPrefix(answer, "ERROR ") || !strings.Contains(answer, why) {
		s.t.Errorf("answer %q, want an error that says %q", answer, why)
	}
}

// until returns the time in the answer to a renewal, in ms.
func (s *site) until(answer string) int64 {
	s.t.Helper()
	n, err := strconv.ParseInt(answer, 10, 64)
	if err != nil {
		s.t.Errorf("renewal: %s", answer)
	}
	return n
}

// tokens uses a delegation token of one node at the other.
func (s *site) tokens(job *hadoop.Program) {
	s.t.Helper()
	one, two := s.nodes[0].base(), s.nodes[1].base()
	s.must(job.Send("get", "alice", one, "yarn"), "kms-dt")
	s.must(job.Send("use", two), "200 ")
	s.must(job.Send("use", one), "200 ")
	first := s.until(job.Send("renew", "yarn", one))
	time.Sleep(10 * time.Millisecond) // the times of two renewals must differ
	if second := s.until(job.Send("renew", "yarn", two)); second <= first {
		s.t.Errorf("renewed until %d, then until %d", first, second)
	}
	s.refused(job.Send("renew", "alice", one), "alice tries to renew a token")
	s.must(job.Send("cancel", two), "cancelled")
	for _, base := range []string{one, two} {
		s.must(job.Send("use", base), "403 ")
		s.refused(job.Send("renew", "yarn", base), "SecretManager$InvalidToken: Renewal request for unknown token")
	}
}
