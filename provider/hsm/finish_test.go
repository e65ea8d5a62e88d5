package hsm_test

import (
	"bufio"
	"bytes"
	"context"
	"encoding/hex"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"claviger"
	"claviger/internal/logtest"
	"claviger/internal/pgtest"
	"claviger/metastore"
	"claviger/pkcs11"
	"claviger/provider"
	"claviger/provider/hsm"
)

// envCreate makes this binary create the key k at the site whose keystore file it names, and then wait to be killed.
// envStore is the URI or the file of the site's store.
const envCreate, envStore = "CLAVIGER_TEST_CREATE", "CLAVIGER_TEST_STORE"

// cutStore is a store that says when a creation is about to end, and goes on when it gets a line.
type cutStore struct{ metastore.Store }

func (s cutStore) FinishCreate(ctx context.Context, i metastore.Intent, k metastore.Key) error {
	fmt.Println("about to end")
	_, _ = bufio.NewReader(os.Stdin).ReadString('\n')
	return s.Store.FinishCreate(ctx, i, k)
}

// createInChild does what envCreate says.
func createInChild() {
	if os.Getenv(envCreate) == "" {
		return
	}
	b := &testSite{file: os.Getenv(envCreate), around: func(s metastore.Store) metastore.Store { return cutStore{s} }}
	if uri := os.Getenv(envStore); strings.HasPrefix(uri, "postgresql:") {
		b.pg = uri
	} else {
		b.db = uri
	}
	p, err := b.open(context.Background())
	if err == nil {
		text := "of the child"
		_, err = p.Create(context.Background(), provider.Spec{Name: "k", Cipher: claviger.DefaultCipher,
			BitLength: 128, Description: &text, Attributes: map[string]string{"a": "b"}})
	}
	fmt.Println("ended:", err)
	select {}
}

// killCreation runs a process that creates the key k. before is called before the creation ends; then the process goes
// on, or, if before returns false, is killed at once. In the end the process is killed in any case.
func (b *testSite) killCreation(t *testing.T, before func() (goOn bool)) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), os.Args[0])
	store := b.db
	if b.pg != "" {
		store = b.pg
	}
	cmd.Env = append(os.Environ(), envCreate+"="+b.file, envStore+"="+store)
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewScanner(out)
	if !lines.Scan() || lines.Text() != "about to end" {
		t.Errorf("the process says %q", lines.Text())
	} else if before() {
		_, _ = io.WriteString(in, "\n")
		if !lines.Scan() || !strings.HasPrefix(lines.Text(), "ended:") || strings.HasSuffix(lines.Text(), "<nil>") {
			t.Errorf("the process says %q", lines.Text())
		}
	}
	_ = cmd.Process.Kill()
	_ = cmd.Wait()
}

// sweepLeft opens a site as a server does after a restart, sweeps, and returns the provider.
func (b *testSite) sweepLeft(t *testing.T, later time.Duration) *hsm.Provider {
	t.Helper()
	p := b.mustOpen(t)
	if err := p.Sweep(t.Context(), later); err != nil {
		t.Fatal(err)
	}
	return p
}

// TestFinishKilledCreation: the metastore stops in front of the end of a creation, and the process is killed. After a
// restart a server finishes the creation by itself, ten minutes after it began. The key is as the client wanted it.
func TestFinishKilledCreation(t *testing.T) {
	for _, store := range []string{"SQLite", "PostgreSQL"} {
		t.Run(store, func(t *testing.T) {
			b := newSite(t)
			var text logtest.Buffer
			b.log = slog.New(slog.NewTextHandler(&text, nil))
			cut := func() bool { return false }
			restart := func() {}
			if store == "PostgreSQL" {
				s := pgtest.Start(t)
				b.pg = s.Database(t)
				cut, restart = func() bool { s.Stop(t); return true }, func() { s.Start(t) }
			}
			p := b.mustOpen(t)
			create(t, p, "used")
			mustClose(t, p)
			b.closeStores(t)
			b.killCreation(t, cut)
			restart()
			p = b.sweepLeft(t, time.Minute)
			if list := pendingSteps(t, b); len(list) != 1 || list[0].Key != "k" {
				t.Errorf("after a minute: %+v", list)
			}
			mustClose(t, p)
			p = b.sweepLeft(t, time.Hour)
			m, err := p.Metadata(t.Context(), "k")
			if err != nil || m[0] == nil || m[0].BitLength != 128 || *m[0].Description != "of the child" ||
				m[0].Attributes["a"] != "b" || time.Since(m[0].Created) > time.Hour {
				t.Errorf("%+v, %v", m, err)
			}
			keystream(t, p, "k@0")
			if list := pendingSteps(t, b); len(list) != 0 {
				t.Errorf("%+v", list)
			}
			wantMarks(t, p, map[string]hsm.Mark{"used@0": hsm.InUse, "k@0": hsm.InUse})
			if !strings.Contains(text.String(), "a step that was interrupted was finished") {
				t.Error(text.String())
			}
			mustClose(t, p)
			b.closeStores(t)
		})
	}
}

// TestFinishRoll: a roll that was interrupted is finished after a restart, and no version before it is lost.
func TestFinishRoll(t *testing.T) {
	b := newSite(t)
	b.create(t, "k")
	b.around = func(s metastore.Store) metastore.Store { return rollFails{s} }
	p := b.mustOpen(t)
	before := keystream(t, p, "k@0")
	if _, err := p.Roll(t.Context(), "k", nil); err == nil {
		t.Fatal("rolled")
	}
	mustClose(t, p)
	b.around = nil
	p = b.sweepLeft(t, time.Hour)
	v, err := p.Current(t.Context(), "k")
	if err != nil || v.Name != "k@1" {
		t.Errorf("%+v, %v", v, err)
	}
	keystream(t, p, "k@1")
	if !bytes.Equal(keystream(t, p, "k@0"), before) {
		t.Error("the version before is another one")
	}
	mustClose(t, p)
}

// TestFinishLeavesAlone: a step of another process stays as it is if the token holds several objects of it, or a newer
// version of the name that the metastore does not know. Nothing is destroyed, and the log says it once. An object that
// the token refuses to use is destroyed, and the step ends.
func TestFinishLeavesAlone(t *testing.T) {
	for name, want := range map[string]string{"several": "several objects", "newer": "versions of key",
		"unusable": ""} {
		t.Run(name, func(t *testing.T) {
			b := newSite(t)
			b.create(t, "used")
			b.around = func(s metastore.Store) metastore.Store { return insertFails{s} }
			p := b.mustOpen(t)
			file := b.made(t, func() {
				if err := tryCreate(t, p, "k"); err == nil {
					t.Fatal("created")
				}
			})
			mustClose(t, p)
			b.around = nil
			objectsLeft := 3
			switch name {
			case "several":
				id, err := hex.DecodeString(pendingSteps(t, b)[0].Refs[0].Object)
				if err != nil {
					t.Fatal(err)
				}
				b.double(t, file, id, "k@0", false)
			case "newer":
				b.withToken(t, func(tok *pkcs11.Token) {
					if err := tok.GenerateKey(t.Context(), []byte("12345678"), "k@1", 256); err != nil {
						t.Fatal(err)
					}
				})
			default:
				objectsLeft = 1
				refused, _ := b.refuseKey("k@0")
				refused.Store(1000)
			}
			var text logtest.Buffer
			b.log = slog.New(slog.NewTextHandler(&text, nil))
			p = b.sweepLeft(t, time.Hour)
			if err := p.Sweep(t.Context(), 2*time.Hour); err != nil {
				t.Error(err)
			}
			if n := len(pendingSteps(t, b)); (n == 0) != (want == "") {
				t.Errorf("%d pending steps", n)
			}
			if list := objects(t, p); len(list) != objectsLeft {
				t.Errorf("%+v", list)
			}
			if n := strings.Count(text.String(), "does not finish it"); want != "" && n != 1 ||
				!strings.Contains(text.String(), want) {
				t.Errorf("%d lines: %s", n, text.String())
			}
			mustClose(t, p)
		})
	}
}

// TestSweepAfterClockWasSetBack: a step of another process began an hour later than now, by a clock that was set back
// since. It is swept ten minutes after a sweep has first found it.
func TestSweepAfterClockWasSetBack(t *testing.T) {
	b := newSite(t)
	b.create(t, "used")
	p := b.mustOpen(t)
	b.withStore(t, func(s metastore.Store) {
		if _, err := s.Begin(t.Context(), metastore.Intent{Key: "k", Op: "create", Begun: time.Now().Add(time.Hour),
			Refs: []metastore.Ref{{Object: "00112233aabbccdd"}}, Payload: []byte(`{"bits":256}`)}); err != nil {
			t.Fatal(err)
		}
	})
	for _, c := range []struct {
		later time.Duration
		left  int
	}{{0, 1}, {9 * time.Minute, 1}, {11 * time.Minute, 0}} {
		if err := p.Sweep(t.Context(), c.later); err != nil {
			t.Error(err)
		}
		if list := pendingSteps(t, b); len(list) != c.left {
			t.Errorf("after %v: %+v", c.later, list)
		}
	}
	mustClose(t, p)
}

// leaveCreation begins a creation of the key k, which is interrupted once its object is on the token.
func (b *testSite) leaveCreation(t *testing.T) {
	t.Helper()
	b.around = func(s metastore.Store) metastore.Store { return insertFails{s} }
	p := b.mustOpen(t)
	if err := tryCreate(t, p, "k"); err == nil {
		t.Fatal("created")
	}
	mustClose(t, p)
	b.around = nil
}

// TestFinishIsAChange: a step that a server finished is a change, after which the token gets a new incarnation of the
// metastore when the server ends. So a copy of the metastore from before it, which lacks the key, is noticed.
func TestFinishIsAChange(t *testing.T) {
	b := newSite(t)
	b.create(t, "used")
	b.leaveCreation(t)
	incarnation := func() (text string) {
		b.withToken(t, func(tok *pkcs11.Token) {
			list, err := tok.ListData(t.Context(), "claviger")
			if err != nil || len(list) == 0 {
				t.Fatalf("%v, %v", list, err)
			}
			for _, d := range list {
				text += fmt.Sprintf("%s %s\n", d.Label, d.Value)
			}
		})
		return text
	}
	for what, later := range map[string]time.Duration{"a sweep that finishes nothing": 0, "a finish": time.Hour} {
		p := b.mustOpen(t)
		if err := p.Watch(t.Context()); err != nil {
			t.Fatal(err)
		}
		before := incarnation()
		if err := p.Sweep(t.Context(), later); err != nil {
			t.Error(err)
		}
		mustClose(t, p)
		if renewed := incarnation() != before; renewed != (later > 0) {
			t.Errorf("after %s there is a new incarnation: %t", what, renewed)
		}
	}
}

// TestFinishedKeyIsInUse: a key whose creation a server has finished counts as in use, as after a notice of another
// node. So searches for its missing versions are not limited: it may be lost, and then clients ask for its versions.
func TestFinishedKeyIsInUse(t *testing.T) {
	b := newSite(t)
	b.create(t, "used")
	p := b.mustOpen(t)
	if err := p.SurveyNow(t.Context()); err != nil { // the step begins later
		t.Fatal(err)
	}
	b.leaveCreation(t)
	searches := func(version string) int {
		before := p.Searches().Used
		if _, err := p.Version(t.Context(), version); !claviger.Is(err, claviger.VersionNotFound) {
			t.Errorf("%s: %v", version, err)
		}
		return p.Searches().Used - before
	}
	if n := searches("k@7"); n != 1 {
		t.Errorf("before the finish, %d searches are counted, want 1", n)
	}
	if err := p.Sweep(t.Context(), time.Hour); err != nil {
		t.Fatal(err)
	}
	keystream(t, p, "k@0")
	if n := searches("k@8"); n != 0 {
		t.Errorf("after the finish, %d searches are counted", n)
	}
	mustClose(t, p)
}

// TestSweepOfALaterStep: if the step that a sweep has found has ended, and another one of the same key has begun since,
// the ten minutes begin again.
func TestSweepOfALaterStep(t *testing.T) {
	b := newSite(t)
	b.create(t, "used")
	p := b.mustOpen(t)
	begin := func(later time.Duration) { // by a clock that was ahead
		b.withStore(t, func(s metastore.Store) {
			if err := s.Drop(t.Context(), "k"); err != nil {
				t.Fatal(err)
			}
			if _, err := s.Begin(t.Context(), metastore.Intent{Key: "k", Op: "create", Begun: time.Now().Add(later),
				Refs: []metastore.Ref{{Object: "00112233aabbccdd"}}, Payload: []byte(`{"bits":256}`)}); err != nil {
				t.Fatal(err)
			}
		})
	}
	begin(time.Hour)
	for _, c := range []struct {
		later time.Duration
		left  int
	}{{0, 1}, {11 * time.Minute, 1}, {20 * time.Minute, 1}, {22 * time.Minute, 0}} {
		if c.later == 11*time.Minute {
			begin(2 * time.Hour)
		}
		if err := p.Sweep(t.Context(), c.later); err != nil {
			t.Error(err)
		}
		if list := pendingSteps(t, b); len(list) != c.left {
			t.Errorf("after %v: %+v", c.later, list)
		}
	}
	mustClose(t, p)
}
