package durabletest

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"syscall"

	"claviger/durable"
)

// fault is the kind of an injected fault.
type fault int

const (
	none    fault = iota
	fails         // the step has no effect, and returns an error
	skipped       // the step has no effect, and returns nil, as if the program left it out
)

// errPower is the error of every step after the power cut.
var errPower = errors.New("the power is off")

// errDisk is the error of a step that fails.
var errDisk = fmt.Errorf("injected fault: %w", syscall.EIO)

// disk is a real folder that records which part of it is durable: the content of synced files, and the names in synced
// folders.
type disk struct {
	root string

	mu       sync.Mutex
	faultAt  int // number of the step with the fault, from 1; 0: no step
	fault    fault
	cutAt    int // number of the step before which the power is cut; 0: no step
	steps    []string
	syncs    []int // numbers of the steps that are syncs
	powerOff bool

	inodes map[inode]*node
	open   []*os.File // one file of every inode, so that the kernel does not reuse its number
}

type inode struct{ dev, ino uint64 }

// node is the durable state of a file or folder.
type node struct {
	live  *os.File // the file or folder itself, with its current state
	dir   bool
	mode  fs.FileMode
	data  []byte           // content of a file
	names map[string]*node // content of a folder
}

var _ durable.FS = (*disk)(nil)

// newDisk returns a disk of a folder whose current content is durable.
func newDisk(root string) (*disk, error) {
	d := &disk{root: root, inodes: map[inode]*node{}}
	_, err := d.nodeAt(root, true)
	return d, err
}

func (d *disk) close() {
	for _, f := range d.open {
		_ = f.Close() // the files were only read
	}
}

// nodeAt returns the node of the file or folder at a path. For a new node, durable says whether its content counts as
// durable.
func (d *disk) nodeAt(path string, durable bool) (*node, error) {
	st, err := os.Lstat(path)
	if err != nil {
		return nil, err
	}
	sys := st.Sys().(*syscall.Stat_t) //nolint:forcetypeassert // the type that package os returns
	id := inode{sys.Dev, sys.Ino}
	n, known := d.inodes[id]
	if known && !durable {
		return n, nil
	}
	if !known {
		if !st.IsDir() && !st.Mode().IsRegular() {
			return nil, fmt.Errorf("%s is neither file nor folder", path)
		}
		f, err := os.Open(path)
		if err != nil {
			return nil, err
		}
		d.open = append(d.open, f)
		n = &node{live: f, dir: st.IsDir(), mode: st.Mode().Perm(), names: map[string]*node{}}
		d.inodes[id] = n
	}
	if !durable {
		return n, nil
	}
	if !n.dir {
		n.data, err = content(n.live)
		return n, err
	}
	entries, err := os.ReadDir(path)
	for _, e := range entries {
		var err error
		if n.names[e.Name()], err = d.nodeAt(filepath.Join(path, e.Name()), true); err != nil {
			return nil, err
		}
	}
	return n, err
}

// content reads an open file, which may have no name any more.
func content(f *os.File) ([]byte, error) {
	st, err := f.Stat()
	if err != nil {
		return nil, err
	}
	data := make([]byte, st.Size())
	n, err := f.ReadAt(data, 0)
	if errors.Is(err, io.EOF) {
		err = nil
	}
	return data[:n], err
}

// step counts a step. do is true if the step must be executed; otherwise err is the result of the step.
func (d *disk) step(isSync bool, format string, args ...any) (do bool, err error) {
	if d.powerOff {
		return false, errPower
	}
	d.steps = append(d.steps, fmt.Sprintf(format, args...))
	if isSync {
		d.syncs = append(d.syncs, len(d.steps))
	}
	switch {
	case len(d.steps) == d.cutAt:
		d.powerOff = true
		return false, errPower
	case len(d.steps) != d.faultAt:
		return true, nil
	case d.fault == fails:
		return false, errDisk
	}
	return d.fault != skipped, nil
}

func (d *disk) OpenFile(name string, flag int, mode fs.FileMode) (durable.File, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if do, err := d.step(false, "open %s", d.rel(name)); !do {
		return nil, err
	}
	f, err := os.OpenFile(name, flag, mode)
	if err != nil {
		return nil, err
	}
	n, err := d.nodeAt(name, false)
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return &file{f, d, n}, nil
}

func (d *disk) rel(name string) string {
	rel, err := filepath.Rel(d.root, name)
	if err != nil {
		return name
	}
	return rel
}

// run executes do as one step that is not a sync.
func (d *disk) run(do func() error, format string, args ...any) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if ok, err := d.step(false, format, args...); !ok {
		return err
	}
	return do()
}

func (d *disk) Mkdir(name string, mode fs.FileMode) error {
	return d.run(func() error { return os.Mkdir(name, mode) }, "mkdir %s", d.rel(name))
}

func (d *disk) Link(from, to string) error {
	return d.run(func() error { return os.Link(from, to) }, "link %s to %s", d.rel(from), d.rel(to))
}

func (d *disk) Rename(from, to string) error {
	return d.run(func() error { return os.Rename(from, to) }, "rename %s to %s", d.rel(from), d.rel(to))
}

func (d *disk) Remove(name string) error {
	return d.run(func() error { return os.Remove(name) }, "remove %s", d.rel(name))
}

func (d *disk) SyncFolder(name string) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if do, err := d.step(true, "sync folder %s", d.rel(name)); !do {
		return err
	}
	n, err := d.nodeAt(name, false)
	if err != nil {
		return err
	}
	entries, err := os.ReadDir(name)
	if err != nil {
		return err
	}
	clear(n.names)
	for _, e := range entries {
		if n.names[e.Name()], err = d.nodeAt(filepath.Join(name, e.Name()), false); err != nil {
			return err
		}
	}
	return nil
}

// file is an open file of a disk.
type file struct {
	*os.File
	d *disk
	n *node
}

func (f *file) Write(b []byte) (int, error) {
	f.d.mu.Lock()
	defer f.d.mu.Unlock()
	if do, err := f.d.step(false, "write %d bytes", len(b)); !do {
		return 0, err
	}
	return f.File.Write(b)
}

func (f *file) Truncate(size int64) error {
	return f.d.run(func() error { return f.File.Truncate(size) }, "truncate")
}

func (f *file) Sync() error {
	f.d.mu.Lock()
	defer f.d.mu.Unlock()
	if do, err := f.d.step(true, "sync file %s", f.d.rel(f.Name())); !do {
		return err
	}
	data, err := content(f.File)
	if errors.Is(err, syscall.EBADF) { // the file was opened only for writing
		data, err = content(f.n.live)
	}
	if err == nil {
		f.n.data = data
	}
	return err
}

func (f *file) Close() error {
	f.d.mu.Lock()
	defer f.d.mu.Unlock()
	do, err := f.d.step(false, "close")
	if cerr := f.File.Close(); do {
		err = cerr
	}
	return err
}

// survival says which changes that were not synced survive a power cut. A kernel may write names and contents to the
// disk at any time and in any order.
type survival struct {
	names, data bool
	text        string
}

var survivals = []survival{
	{false, false, "nothing unsynced survives"},
	{true, false, "names survive, contents do not"},
	{false, true, "contents survive, names do not"},
	{true, true, "all survives"},
}

// cutPower changes the folder to the state that a machine finds after a power cut.
func (d *disk) cutPower(s survival) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.powerOff = true
	root, err := d.nodeAt(d.root, false)
	if err != nil {
		return err
	}
	tree, err := d.image(d.root, root, s)
	if err != nil {
		return err
	}
	entries, err := os.ReadDir(d.root)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if err := os.RemoveAll(filepath.Join(d.root, e.Name())); err != nil {
			return err
		}
	}
	return tree.write(d.root)
}

// image returns the tree that survives. path is "" for a file or folder that has no name any more.
func (d *disk) image(path string, n *node, s survival) (*node, error) {
	out := &node{dir: n.dir, mode: n.mode, data: n.data, names: map[string]*node{}}
	if !n.dir {
		var err error
		if s.data {
			out.data, err = content(n.live)
		}
		return out, err
	}
	names := n.names
	if s.names && path != "" {
		names = map[string]*node{}
		entries, err := os.ReadDir(path)
		if err != nil {
			return nil, err
		}
		for _, e := range entries {
			if names[e.Name()], err = d.nodeAt(filepath.Join(path, e.Name()), false); err != nil {
				return nil, err
			}
		}
	}
	for name, child := range names {
		childPath := ""
		if s.names && path != "" {
			childPath = filepath.Join(path, name)
		}
		var err error
		if out.names[name], err = d.image(childPath, child, s); err != nil {
			return nil, err
		}
	}
	return out, nil
}

func (n *node) write(path string) error {
	for name, child := range n.names {
		childPath := filepath.Join(path, name)
		if !child.dir {
			if err := os.WriteFile(childPath, child.data, child.mode); err != nil {
				return err
			}
			continue
		}
		if err := os.Mkdir(childPath, 0o700); err != nil {
			return err
		}
		if err := child.write(childPath); err != nil {
			return err
		}
		if err := os.Chmod(childPath, child.mode); err != nil {
			return err
		}
	}
	return nil
}
