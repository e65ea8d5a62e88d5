package audit

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"claviger"
	"claviger/durable/durabletest"
)

// TestAttemptIsOnTheDisk fails each step of Begin, and cuts the power at each step. If Begin returned nil, the record
// of the attempt exists after the power is back. The chain matches its head at each moment.
func TestAttemptIsOnTheDisk(t *testing.T) {
	for _, c := range []struct {
		name     string
		setup    bool
		rotation Rotation
		heads    bool
		unneeded int
	}{
		// unneeded is the number of syncs that may be left out without being noticed.
		// Here: the sync of the start's record, before the attempt, and two syncs of the folder, because making the
		// file of UnwrittenFileOf syncs the folder again.
		{name: "new file", unneeded: 3},
		// Here: the sync of the start's record, and the start syncs the name of an existing file again.
		{name: "file", setup: true, unneeded: 2},
		// In addition, the rotation syncs the names of both files, and the old file was complete.
		{name: "rotation", setup: true, rotation: Rotation{Size: 1}, unneeded: 4},
		// The head is beside the log, and storing it syncs the folder too.
		{name: "head", setup: true, heads: true, unneeded: 3},
	} {
		t.Run(c.name, func(t *testing.T) {
			var open *Chain
			begin := func(dir, key string, r Rotation) error {
				path := filepath.Join(dir, "audit.json")
				f, err := OpenExclusiveFile(path, r)
				if err != nil {
					return err
				}
				f.checked = time.Time{} // a second has passed
				ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
				defer cancel()
				cfg := ChainConfig{Node: "kms1", File: f, HeadEvery: time.Hour}
				if c.heads {
					cfg.Heads = []Heads{HeadFileOf(path)}
				}
				chain, err := OpenChain(ctx, cfg)
				if err != nil {
					return errors.Join(err, f.Close())
				}
				open = chain
				return chain.Begin(ctx, Event{Op: CreateKey, Key: key, Caller: claviger.Caller{}})
			}
			closeChain := func() {
				if open != nil {
					_ = open.Close() // its disk has no power
					open = nil
				}
			}
			suite := durabletest.Case{
				Do:            func(dir string) error { return begin(dir, "new", c.rotation) },
				Close:         closeChain,
				State:         lastAttempt,
				UnneededSyncs: c.unneeded,
			}
			if c.setup {
				suite.Setup = func(dir string) error {
					err := begin(dir, "old", Rotation{})
					closeChain()
					return err
				}
			}
			durabletest.Run(t, suite)
		})
	}
}

// lastAttempt verifies the chain in a folder, and returns the key of the last attempt.
func lastAttempt(dir string) (string, error) {
	path := filepath.Join(dir, "audit.json")
	f := &File{path: path}
	paths, err := f.rotated()
	if err != nil {
		return "", err
	}
	if _, err := os.Stat(path); err == nil {
		paths = append(paths, path)
	}
	var cfg VerifyConfig
	head, ok, err := HeadFileOf(path).Load(context.Background())
	if err != nil {
		return "", err
	}
	if ok {
		cfg.Heads = []Head{head}
	}
	if len(paths) == 0 {
		if ok {
			return "", fmt.Errorf("there is a head, %+v, but no log", head)
		}
		return "no attempt", nil
	}
	var all strings.Builder
	for _, p := range paths {
		text, err := os.ReadFile(p)
		if err != nil {
			return "", err
		}
		all.Write(text)
	}
	if all.Len() > 0 {
		r, err := Verify(paths, cfg)
		if err != nil {
			return "", err
		}
		if len(r.Findings) > 0 {
			return "", fmt.Errorf("the chain has findings: %v", r.Findings)
		}
	}
	for _, key := range []string{"new", "old"} {
		if strings.Contains(all.String(), `"key":"`+key+`"`) {
			return "attempt for " + key, nil
		}
	}
	return "no attempt", nil
}

// TestHeadIsOnTheDisk fails each step of saving the head, and cuts the power at each step.
func TestHeadIsOnTheDisk(t *testing.T) {
	save := func(seq uint64) func(string) error {
		return func(dir string) error {
			return HeadFileOf(filepath.Join(dir, "audit.json")).Save(context.Background(),
				Head{Node: "kms1", Seq: seq, Hash: strings.Repeat("0", 64)})
		}
	}
	durabletest.Run(t, durabletest.Case{
		Setup: save(1),
		Do:    save(2),
		State: func(dir string) (string, error) {
			h, ok, err := HeadFileOf(filepath.Join(dir, "audit.json")).Load(context.Background())
			return fmt.Sprint(h.Seq, ok), err
		},
	})
}
