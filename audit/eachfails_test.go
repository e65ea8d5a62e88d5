package audit

import (
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"claviger/durable"
)

// errStep is the error of the one step that fails.
var errStep = errors.New("injected fault")

// stepDisk is a disk whose steps are listed while counts is true. Step number fail, from 1, fails; 0: none.
type stepDisk struct {
	durable.OS
	counts bool
	steps  []string
	fail   int
	open   int // files
}

func (d *stepDisk) step(name string) error {
	if !d.counts {
		return nil
	}
	d.steps = append(d.steps, name)
	if len(d.steps) == d.fail {
		return errStep
	}
	return nil
}

func (d *stepDisk) OpenFile(name string, flag int, mode fs.FileMode) (durable.File, error) {
	if err := d.step("open"); err != nil {
		return nil, err
	}
	f, err := d.OS.OpenFile(name, flag, mode)
	if err != nil {
		return nil, err
	}
	d.open++
	return &stepFile{f, d}, nil
}

func (d *stepDisk) Rename(from, to string) error {
	if err := d.step("rename"); err != nil {
		return err
	}
	return d.OS.Rename(from, to)
}

func (d *stepDisk) Remove(name string) error {
	if err := d.step("remove"); err != nil {
		return err
	}
	return d.OS.Remove(name)
}

func (d *stepDisk) SyncFolder(name string) error {
	if err := d.step("folder"); err != nil {
		return err
	}
	return d.OS.SyncFolder(name)
}

type stepFile struct {
	durable.File
	disk *stepDisk
}

func (f *stepFile) Write(b []byte) (int, error) {
	if err := f.disk.step("write"); err != nil {
		return 0, err
	}
	return f.File.Write(b)
}

func (f *stepFile) Sync() error {
	if err := f.disk.step("sync"); err != nil {
		return err
	}
	return f.File.Sync()
}

func (f *stepFile) Stat() (fs.FileInfo, error) {
	if err := f.disk.step("stat"); err != nil {
		return nil, err
	}
	return f.File.Stat()
}

// Close closes the file even if the step fails.
func (f *stepFile) Close() error {
	if err := f.File.Close(); err != nil {
		return err
	}
	f.disk.open--
	return f.disk.step("close")
}

// stepOperation is an operation of a log that has the files "audit.json", and "audit.json.TIME" of an earlier rotation.
type stepOperation struct {
	name string
	run  func(t *testing.T, f *File) error
	// steps are the steps of run, separated by blanks. A step in parentheses may fail without an error of run.
	steps string
}

// renameFile renames the file, as logrotate does.
func renameFile(t *testing.T, f *File) {
	t.Helper()
	if err := os.Rename(f.Path(), f.Path()+"-1"); err != nil {
		t.Fatal(err)
	}
}

func fileOperations() []stepOperation {
	later := time.Now().Add(time.Hour)
	rotate := func(_ *testing.T, f *File) error { _, err := f.RotateIfNeeded(later); return err }
	// The last stat is for the age of the file, which is 0 without it.
	const reopen = "open folder (stat) sync close"
	return []stepOperation{
		{"open", func(_ *testing.T, f *File) error {
			again, err := OpenFile(f.Path(), Rotation{})
			if err == nil {
				err = again.Close()
			}
			return err
		}, "open folder (stat) close"},
		{"write", func(_ *testing.T, f *File) error { _, err := f.Write([]byte("b\n")); return err }, "write"},
		{"sync", func(_ *testing.T, f *File) error { return f.Sync() }, "sync"},
		{"rotation", rotate, "stat rename folder " + reopen + " remove folder"},
		{"turn to a new file", func(t *testing.T, f *File) error {
			renameFile(t, f)
			return rotate(t, f)
		}, "stat " + reopen},
		{"reopen", func(t *testing.T, f *File) error { renameFile(t, f); return f.Reopen() }, reopen},
		{"reopen the same", func(_ *testing.T, f *File) error { return f.Reopen() }, "(stat)"},
		{"Hadoop's reopen", func(t *testing.T, f *File) error {
			renameFile(t, f)
			return newHadoop(f, 0, time.Now).Reopen()
		}, reopen},
		{"Hadoop's close", func(t *testing.T, f *File) error {
			h := newHadoop(f, 0, time.Now)
			h.Log(t.Context(), event("k"))
			return h.Close()
		}, "(write) close"}, // Close writes the line again
		{"chain's start and close", func(t *testing.T, f *File) error {
			c, err := OpenChain(t.Context(), ChainConfig{Node: "n", File: f, HeadEvery: time.Hour})
			if err == nil {
				err = c.Close()
			}
			return err
			// The first steps make the file of UnwrittenFileOf; without it the log is written too.
		}, "(open) (write) (sync) (close) (remove) (folder) write sync close"},
		{"chain's reopen", func(t *testing.T, f *File) error {
			renameFile(t, f)
			return (&Chain{cfg: ChainConfig{File: f}, urgent: make(chan struct{}, 1)}).Reopen()
		}, reopen},
	}
}

// TestEachStepFails: if a step of an operation on a log fails, the operation returns its error, and leaves no file open
// after Close.
func TestEachStepFails(t *testing.T) {
	for _, o := range fileOperations() {
		t.Run(o.name, func(t *testing.T) {
			steps, err := tryStep(t, o, 0)
			all := strings.Join(steps, " ")
			if err != nil || all != strings.NewReplacer("(", "", ")", "").Replace(o.steps) {
				t.Fatalf("without a fault: %v; steps %s, want %s", err, all, o.steps)
			}
			for i, step := range strings.Fields(o.steps) {
				_, err := tryStep(t, o, i+1)
				optional := step[0] == '('
				if !optional && !errors.Is(err, errStep) || optional && err != nil {
					t.Errorf("step %d, %s, fails: %v", i+1, step, err)
				}
			}
		})
	}
}

// tryStep runs an operation on new files. Step number fail fails.
func tryStep(t *testing.T, o stepOperation, fail int) (steps []string, err error) {
	t.Helper()
	dir := t.TempDir()
	disk := &stepDisk{fail: fail}
	defer durable.Mount(dir, disk)()
	path := filepath.Join(dir, "audit.json")
	old := path + "." + time.Unix(1, 0).UTC().Format(rotatedLayout)
	if err := os.WriteFile(old, []byte("old\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := OpenFile(path, Rotation{Size: 1, Keep: 1})
	if err != nil {
		t.Fatal(err)
	}
	if o.name != "chain's start and close" {
		_, err = io.WriteString(f, "a\n")
	} else {
		err = os.Remove(old)
	}
	if err != nil {
		t.Fatal(err)
	}
	disk.counts = true
	err = o.run(t, f)
	disk.counts = false
	_ = f.Close()
	if disk.open != 0 {
		t.Errorf("step %d fails: %d files are left open", fail, disk.open)
	}
	return disk.steps, err
}
