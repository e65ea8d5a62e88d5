package edeks

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"os"
	"strings"
	"testing"

	"github.com/spf13/cobra"

	"claviger"
	"claviger/audit"
	"claviger/internal/imagetest"
	"claviger/kms"
	"claviger/kms/kmstest"
	"claviger/migrate"
	"claviger/provider"
	"claviger/provider/hsm"
)

// purgeSite is an HSM KMS with the versions k@0, k@1 and k@2.
type purgeSite struct {
	t      *testing.T
	audit  string // file
	svc    *kms.Service
	engine *migrate.Engine
	log    bytes.Buffer
}

func newPurgeSite(t *testing.T, unused string) *purgeSite {
	t.Helper()
	dir, properties := kmstest.HSM(t)
	properties["claviger.purge.min.unused"] = unused
	kmstest.WriteSite(t, dir, properties)
	open := func(access hsm.Access) *kms.Service {
		svc, err := kms.Open(t.Context(), dir, "claviger key version purge", access, slog.New(slog.DiscardHandler))
		if err != nil {
			t.Fatal(err)
		}
		return svc
	}
	svc := open(hsm.Make)
	_, err := svc.Primary.Create(t.Context(), provider.Spec{Name: "k", Cipher: claviger.DefaultCipher, BitLength: 128})
	for range 2 {
		if err == nil {
			_, err = svc.Primary.Roll(t.Context(), "k", nil)
		}
	}
	if err = errors.Join(err, svc.Close()); err != nil {
		t.Fatal(err)
	}
	s := &purgeSite{t: t, audit: properties["claviger.audit.file"], svc: open(hsm.Destroy)}
	t.Cleanup(func() {
		if err := s.svc.Close(); err != nil {
			t.Error(err)
		}
	})
	if s.engine, err = s.svc.Engine(t.Context(), migrate.Config{}); err != nil {
		t.Fatal(err)
	}
	return s
}

// purge runs the command with what a person types.
func (s *purgeSite) purge(version, typed string, tree *imagetest.Tree, args ...string) (*VersionPurge, error) {
	s.t.Helper()
	var o PurgeOptions
	var result *VersionPurge
	cmd := &cobra.Command{RunE: func(cmd *cobra.Command, _ []string) (err error) {
		result, err = o.Purge(cmd, s.svc, s.engine, hdfsConf(s.t), version)
		return err
	}, SilenceErrors: true, SilenceUsage: true}
	o.Define(cmd)
	s.log.Reset()
	cmd.SetArgs(append([]string{"--image", write(s.t, tree)}, args...))
	cmd.SetIn(strings.NewReader(typed + "\n"))
	cmd.SetErr(&s.log)
	return result, cmd.ExecuteContext(s.t.Context())
}

// works returns the versions of k with which the HSM encrypts.
func (s *purgeSite) works() (versions string) {
	s.t.Helper()
	encrypter, _ := s.svc.Primary.(provider.BlockEncrypter)
	for _, v := range []string{"k@0", "k@1", "k@2"} {
		err := encrypter.EncryptBlocks(s.t.Context(), v, make([]byte, claviger.IVSize))
		if err == nil {
			versions += v + " "
		} else if !claviger.Is(err, claviger.VersionNotFound) {
			s.t.Errorf("%s: %v", v, err)
		}
	}
	return versions
}

// TestPurgeVersion: a version is destroyed only if a verdict grants it, and a person types its name. The others stay,
// and the audit log has a record.
func TestPurgeVersion(t *testing.T) {
	s := newPurgeSite(t, "0s")
	const all = "k@0 k@1 k@2 "
	needed := zoneTree()
	needed.Nodes[2].EDEK = "k@1"
	for name, c := range map[string]struct {
		version, typed, want string
		tree                 *imagetest.Tree
	}{
		"needed":         {"k@1", "k@1", "Version k@1 is needed by 1 EDEKs: 1 live", needed},
		"not confirmed":  {"k@1", "k@0", "", zoneTree()},
		"not drained":    {"k@1", "k@1", "was not re-encrypted since the key was rolled", undrained()},
		"another key":    {"k@1", "k@1", "is it an image of another cluster", foreign()},
		"an old version": {"k@0", "", "", zoneTree()},
	} {
		result, err := s.purge(c.version, c.typed, c.tree)
		var text strings.Builder
		if result != nil {
			PurgeText(&text, result)
		}
		if !errors.As(err, new(*claviger.RefusedError)) || result == nil || result.Purged ||
			!strings.Contains(text.String(), c.want) {
			t.Errorf("%s: %v\n%s", name, err, text.String())
		}
	}
	for version, kind := range map[string]claviger.Kind{"k@2": claviger.Invalid, "k@9": claviger.VersionNotFound,
		"none@0": claviger.KeyNotFound} {
		if _, err := s.purge(version, version, zoneTree()); !claviger.Is(err, kind) {
			t.Errorf("%s: %v, want kind %q", version, err, kind)
		}
	}
	if got := s.works(); got != all {
		t.Fatalf("after refusals %q work", got)
	}
	result, err := s.purge("k@1", "k@1", zoneTree())
	if err != nil || !result.Purged || !strings.Contains(s.log.String(), "No EDEK of the images needs version k@1.") {
		t.Fatalf("%v, %+v\n%s", err, result, s.log.String())
	}
	if result, err = s.purge("k@0", "", zoneTree(), "--yes-purge", "k@0"); err != nil || !result.Purged {
		t.Fatalf("%v, %+v", err, result)
	}
	if got := s.works(); got != "k@2 " {
		t.Errorf("after the purges %q work", got)
	}
	lines, err := os.ReadFile(s.audit)
	if err != nil || !strings.Contains(string(lines), "OK[op=PURGE_KEY, key=k, user=") ||
		!strings.Contains(string(lines), "only version k@1, by verdict-") {
		t.Errorf("%v\n%s", err, lines)
	}
	// A verdict on a version says nothing about the source of a migration.
	if f, err := s.engine.Finish(t.Context(), migrate.FinishOptions{Verdict: true}); err != nil || f.EDEKs != nil {
		t.Errorf("%+v, %v", f, err)
	}
}

// undrained is zoneTree without a re-encryption.
func undrained() *imagetest.Tree {
	tree := zoneTree()
	tree.Nodes[1].Reencrypted = imagetest.Reencrypted{}
	return tree
}

// foreign is zoneTree of a key that is unknown here.
func foreign() *imagetest.Tree {
	tree := zoneTree()
	tree.Nodes[1].Zone, tree.Nodes[1].Reencrypted, tree.Nodes[2].EDEK = "theirs", imagetest.Reencrypted{}, "theirs@0"
	return tree
}

// TestPurgeOfUsedVersion: a version that may have been used within claviger.purge.min.unused stays.
func TestPurgeOfUsedVersion(t *testing.T) {
	s := newPurgeSite(t, "7d")
	result, err := s.purge("k@1", "k@1", zoneTree())
	if !errors.As(err, new(*claviger.RefusedError)) || !strings.Contains(strings.Join(result.Verdict.Problems, "\n"),
		"claviger.purge.min.unused") {
		t.Errorf("%v, %+v", err, result)
	}
	if got := s.works(); got != "k@0 k@1 k@2 " {
		t.Errorf("%q work", got)
	}
}

// fakeTrail is an audit log that fails if begin is set.
type fakeTrail struct {
	begin  error
	events []audit.Event
}

func (f *fakeTrail) Begin(context.Context, audit.Event) error { return f.begin }
func (f *fakeTrail) Log(_ context.Context, e audit.Event)     { f.events = append(f.events, e) }
func (f *fakeTrail) Err() error                               { return nil }
func (f *fakeTrail) Close() error                             { return nil }

// TestAuditedPurge: nothing is destroyed if the attempt cannot be recorded, and a destruction that fails is recorded.
func TestAuditedPurge(t *testing.T) {
	full := errors.New("the disk is full")
	f := &fakeTrail{begin: full}
	if err := audited(t.Context(), f, audit.Event{}, func() error {
		t.Error("destroyed without a record")
		return nil
	}); !errors.Is(err, full) {
		t.Error(err)
	}
	f = &fakeTrail{}
	broken := errors.New("CKR_DEVICE_REMOVED")
	err := audited(t.Context(), f, audit.Event{Op: audit.PurgeKey}, func() error { return broken })
	if !errors.Is(err, broken) || len(f.events) != 1 || f.events[0].Status != audit.Error ||
		f.events[0].Op != audit.PurgeKey {
		t.Errorf("%v, %+v", err, f.events)
	}
	f = &fakeTrail{}
	if err := audited(t.Context(), f, audit.Event{}, func() error { return nil }); err != nil || len(f.events) != 1 ||
		f.events[0].Status != audit.OK {
		t.Errorf("%v, %+v", err, f.events)
	}
}

// TestPurgeFaults: faults of an image, of the confirmation and of the audit log end the command, and nothing is
// destroyed.
func TestPurgeFaults(t *testing.T) {
	s := newPurgeSite(t, "0s")
	if _, err := s.purge("k@1", "", zoneTree(), "--image", "nothing"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("an image that does not exist: %v", err)
	}
	if err := os.Mkdir(s.audit, 0o700); err != nil {
		t.Fatal(err)
	}
	if result, err := s.purge("k@1", "k@1", zoneTree()); err == nil || result != nil {
		t.Errorf("an audit log that cannot be opened: %v, %+v", err, result)
	}
	if got := s.works(); got != "k@0 k@1 k@2 " {
		t.Errorf("%q work", got)
	}
}
