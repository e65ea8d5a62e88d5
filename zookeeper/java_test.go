package zookeeper

import (
	"bufio"
	"bytes"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha1" //nolint:gosec // HMAC-SHA1 is the token format's
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"claviger/internal/zktest"
	"claviger/metastore"
	"claviger/secret"
	"claviger/writable"
)

// peer is a process with Hadoop's own classes, see testdata/java/Peer.java.
type peer struct {
	t   testing.TB
	in  io.Writer
	out *bufio.Reader
	log *bytes.Buffer
}

func startPeer(t testing.TB, connection string, validity time.Duration) *peer {
	t.Helper()
	jars, err := filepath.Glob(filepath.Join(os.Getenv("CLAVIGER_HADOOP_JARS"), "*.jar"))
	if err != nil || len(jars) == 0 {
		t.Fatalf("no jars (%v), though zktest found them", err)
	}
	var classPath []string
	for _, j := range jars {
		if !strings.HasSuffix(j, "-tests.jar") {
			classPath = append(classPath, j)
		}
	}
	log4j := filepath.Join(t.TempDir(), "log4j.properties")
	const log4jConf = `log4j.rootLogger=WARN,e
log4j.appender.e=org.apache.log4j.ConsoleAppender
log4j.appender.e.target=System.err
log4j.appender.e.layout=org.apache.log4j.SimpleLayout
`
	if err := os.WriteFile(log4j, []byte(log4jConf), 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("java", "-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC", "-Xmx192m",
		"-Djava.net.preferIPv4Stack=true", "-Dlog4j.configuration=file:"+log4j,
		"-cp", strings.Join(classPath, ":"), filepath.Join("testdata", "java", "Peer.java"), connection,
		strconv.FormatInt(validity.Milliseconds(), 10))
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	p := &peer{t: t, log: new(bytes.Buffer)}
	cmd.Stderr = p.log
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	p.in, p.out = in, bufio.NewReader(out)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill() // fails if the process has ended
		_ = cmd.Wait()         // the error is the signal
		if t.Failed() {
			t.Logf("log of Hadoop's classes:\n%s", p.log)
		}
	})
	return p
}

// call sends a command to the process, and returns its answer.
func (p *peer) call(words ...string) (string, error) {
	p.t.Helper()
	if _, err := fmt.Fprintln(p.in, strings.Join(words, " ")); err != nil {
		p.t.Fatalf("%v: %v", words, err)
	}
	line, err := p.out.ReadString('\n')
	if err != nil {
		p.t.Fatalf("%v: %v", words, err)
	}
	line = strings.TrimSuffix(line, "\n")
	if result, ok := strings.CutPrefix(line, "ok "); ok {
		return result, nil
	}
	return "", errors.New(strings.TrimPrefix(line, "error "))
}

func (p *peer) must(words ...string) string {
	p.t.Helper()
	result, err := p.call(words...)
	if err != nil {
		p.t.Fatalf("%v: %v", words, err)
	}
	return result
}

// urlToken returns a token in the form that clients send.
func urlToken(d metastore.Delegation) string {
	b := append(writable.AppendLong(nil, int64(len(d.Identifier))), d.Identifier...)
	b = append(writable.AppendLong(b, int64(len(d.Password))), d.Password...)
	return base64.RawURLEncoding.EncodeToString(writable.AppendText(writable.AppendText(b, "kms-dt"), ""))
}

// sequenceOf returns the sequence number in a token.
func sequenceOf(t testing.TB, text string) int32 {
	t.Helper()
	b, err := base64.RawURLEncoding.DecodeString(text)
	if err != nil {
		t.Fatal(err)
	}
	r := &writable.Reader{Rest: b}
	r = &writable.Reader{Rest: r.Take(r.Long())}
	r.Take(1)
	for range 3 {
		_ = r.Text()
	}
	r.Long()
	r.Long()
	return r.Int()
}

// TestJavaTokens: Hadoop's ZKDelegationTokenSecretManager uses the same nodes, and each side accepts, renews and
// cancels the other's tokens.
func TestJavaTokens(t *testing.T) {
	t.Parallel()
	server := zktest.Start(t, zktest.Options{})
	java := startPeer(t, server.Addr, time.Hour)
	java.must("start-tokens")
	c := open(t, server.Addr, nil)
	ours := tokens(t, c)
	d, keys := theirTokens(t, c, ours, java)
	ourTokens(t, ours, java, d.Sequence, keys)
}

// theirTokens tests how we read and renew a token of Hadoop. It returns the token and Hadoop's keys.
func theirTokens(t *testing.T, c *Client, ours *Tokens, java *peer) (metastore.Delegation, []metastore.MasterKey) {
	t.Helper()
	ctx := t.Context()
	text := java.must("new", "alice", "yarn")
	d, ok, err := ours.Delegation(ctx, sequenceOf(t, text))
	if err != nil || !ok || urlToken(d) != text {
		t.Fatalf("Hadoop's token %s is %s here (%v, %v)", text, urlToken(d), ok, err)
	}
	keys, err := ours.MasterKeys(ctx)
	if err != nil || len(keys) == 0 {
		t.Fatalf("Hadoop's keys: %v, %v", keys, err)
	}
	made := false
	for _, k := range keys {
		mac := hmac.New(sha1.New, k.Key)
		mac.Write(d.Identifier)
		made = made || bytes.Equal(mac.Sum(nil), d.Password)
		if back, err := c.get(ctx, "test", ours.key(k.ID)); err != nil || !bytes.Equal(back.data, appendMasterKey(k)) {
			t.Errorf("Hadoop wrote key %d as %x, we as %x (%v)", k.ID, back.data, appendMasterKey(k), err)
		}
	}
	if !made {
		t.Error("none of the keys made the token's password")
	}
	if back, err := c.get(ctx, "test", ours.token(d.Sequence)); err != nil ||
		!bytes.Equal(back.data, appendDelegation(d)) {
		t.Errorf("Hadoop wrote the token as %x, we as %x (%v)", back.data, appendDelegation(d), err)
	}
	later := time.UnixMilli(time.Now().Add(time.Hour).UnixMilli())
	if ok, err := ours.RenewDelegation(ctx, d.Sequence, later); err != nil || !ok {
		t.Errorf("renewing Hadoop's token: %v, %v", ok, err)
	}
	until, err := strconv.ParseInt(java.must("renew", text, "yarn"), 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	if d, ok, err = ours.Delegation(ctx, d.Sequence); err != nil || !ok || d.Renew.UnixMilli() != until {
		t.Errorf("Hadoop renewed until %d, we see %v (%v, %v)", until, d.Renew, ok, err)
	}
	java.must("cancel", text, "alice")
	if _, ok, err := ours.Delegation(ctx, d.Sequence); err != nil || ok {
		t.Errorf("Hadoop cancelled its token, but we still find it (%v)", err)
	}
	return d, keys
}

// tokenOfBob returns a token of bob in Hadoop's form. Its renewer is yarn.
func tokenOfBob(sequence, keyID int32, key secret.Bytes, renew time.Time) metastore.Delegation {
	id := []byte{0}
	for _, s := range []string{"bob", "yarn", ""} {
		id = writable.AppendText(id, s)
	}
	now := time.Now()
	for _, n := range []int64{now.UnixMilli(), now.Add(24 * time.Hour).UnixMilli(), int64(sequence), int64(keyID)} {
		id = writable.AppendLong(id, n)
	}
	mac := hmac.New(sha1.New, key)
	mac.Write(id)
	return metastore.Delegation{Sequence: sequence, Identifier: id, Password: mac.Sum(nil), Renew: renew}
}

// ourTokens tests how Hadoop reads, renews and cancels tokens that we made with our own key. last is the sequence
// number of Hadoop's token.
func ourTokens(t *testing.T, ours *Tokens, java *peer, last int32, keys []metastore.MasterKey) {
	t.Helper()
	ctx := t.Context()
	later := time.UnixMilli(time.Now().Add(time.Hour).UnixMilli())
	keyID, err := ours.NextKeyID(ctx)
	if err != nil {
		t.Fatal(err)
	}
	for _, k := range keys {
		if k.ID >= keyID {
			t.Errorf("key id %d is not above Hadoop's %d", keyID, k.ID)
		}
	}
	key := random()
	if err := ours.PutMasterKey(ctx, metastore.MasterKey{ID: keyID, Expires: later, Key: key}); err != nil {
		t.Fatal(err)
	}
	first, err := ours.NextSequences(ctx, 100)
	if err != nil || first <= last {
		t.Fatalf("sequence %d after Hadoop's %d (%v)", first, last, err)
	}
	makeToken := func(sequence int32) metastore.Delegation {
		d := tokenOfBob(sequence, keyID, key, later)
		if err := ours.PutDelegation(ctx, d); err != nil {
			t.Fatal(err)
		}
		return d
	}
	d := makeToken(first)
	if user := java.must("verify", urlToken(d)); user != "bob" {
		t.Errorf("for Hadoop, bob's token is a token of %s", user)
	}
	until, err := strconv.ParseInt(java.must("renew", urlToken(d), "yarn"), 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	if got, ok, err := ours.Delegation(ctx, first); err != nil || !ok || got.Renew.UnixMilli() != until {
		t.Errorf("Hadoop renewed our token until %d, we see %v (%v, %v)", until, got.Renew, ok, err)
	}
	java.must("cancel", urlToken(d), "bob")
	if _, ok, err := ours.Delegation(ctx, first); err != nil || ok {
		t.Errorf("Hadoop cancelled our token, but we still find it (%v)", err)
	}
	d = makeToken(first + 1)
	if ok, err := ours.RemoveDelegation(ctx, first+1); err != nil || !ok {
		t.Fatalf("cancelling our token: %v, %v", ok, err)
	}
	// Hadoop gets the removal from a watch, some time later.
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		if _, err := java.call("verify", urlToken(d)); err != nil &&
			strings.Contains(err.Error(), "can't be found in cache") {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("Hadoop still accepts a token that we cancelled")
		}
	}
	text := java.must("new", "carol", "yarn")
	if n := sequenceOf(t, text); n >= first && n < first+100 {
		t.Errorf("Hadoop uses sequence number %d, which is one of ours", n)
	}
}

func random() secret.Bytes {
	b := make(secret.Bytes, 32)
	_, _ = rand.Read(b) // never fails
	return b
}

// TestJavaSecrets: Hadoop's ZKSignerSecretProvider signs and verifies with the same node, while both sides roll the
// secrets.
func TestJavaSecrets(t *testing.T) {
	t.Parallel()
	server := zktest.Start(t, zktest.Options{})
	const validity = time.Second
	java := startPeer(t, server.Addr, validity)
	if _, err := java.call("no-such-command"); err == nil { // waits for the start, which takes seconds
		t.Fatal("Peer accepts an unknown command")
	}
	c := open(t, server.Addr, nil)
	ours := signers(t, c)
	ctx := t.Context()
	signed := func(text string, key secret.Bytes) string {
		mac := hmac.New(sha256.New, key)
		mac.Write([]byte(text))
		return text + "&s=" + base64.StdEncoding.EncodeToString(mac.Sum(nil))
	}

	// We write the secrets first; Hadoop uses them.
	if ok, err := ours.SwapSignerSecrets(ctx, metastore.SignerSecrets{Next: random(), Current: random(),
		Rollover: time.Now().Add(4 * time.Second).Truncate(time.Millisecond)}); err != nil || !ok {
		t.Fatalf("%v, %v", ok, err)
	}
	java.must("start-signer")
	s, _, err := ours.SignerSecrets(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if got, want := java.must("sign", "u=alice&p=alice&t=simple-dt&e=1"),
		signed("u=alice&p=alice&t=simple-dt&e=1", s.Current); got != want {
		t.Errorf("Hadoop's signature is %s, ours is %s", got, want)
	}
	if got := java.must("verify-signed", signed("u=bob", s.Current)); got != "u=bob" {
		t.Errorf("Hadoop reads %q in our cookie", got)
	}

	// We roll before Hadoop does; Hadoop then does not roll again.
	rolled := metastore.SignerSecrets{Next: random(), Current: s.Next, Previous: s.Current,
		Rollover: s.Rollover.Add(validity), Version: s.Version}
	if ok, err := ours.SwapSignerSecrets(ctx, rolled); err != nil || !ok {
		t.Fatalf("%v, %v", ok, err)
	}
	time.Sleep(time.Until(s.Rollover)) // Hadoop's clock cannot be set
	for deadline := time.Now().Add(30 * time.Second); java.must("sign", "u=x") != signed("u=x",
		rolled.Current); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("Hadoop does not sign with the secret that is current after our rollover")
		}
		if now, _, err := ours.SignerSecrets(ctx); err != nil || now.Version > rolled.Version+1 {
			t.Fatalf("Hadoop rolled again after our rollover: version %d (%v)", now.Version, err)
		}
	}
	java.must("verify-signed", signed("u=old", s.Current))

	// From now on only Hadoop rolls; each time we read the secret that it signs with.
	version := rolled.Version + 1
	for range 2 {
		for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(20 * time.Millisecond) {
			if s, _, err = ours.SignerSecrets(ctx); err != nil {
				t.Fatal(err)
			}
			if s.Version > version {
				break
			}
			if time.Now().After(deadline) {
				t.Fatal("Hadoop does not roll")
			}
		}
		version = s.Version
		if got, want := java.must("sign", "u=y"), signed("u=y", s.Current); got != want &&
			java.must("sign", "u=y") == got {
			t.Errorf("after its rollover, Hadoop's signature is %s, ours is %s", got, want)
		}
		if s.Previous == nil || len(s.Next) != 32 {
			t.Errorf("Hadoop wrote %v", s)
		}
	}
}
