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

// fault is what happens at one step.
type fault int

const (
	none  fault = iota
	fails       // the step has no effect, and returns an error
	lies        // the step has no effect, and returns nil: the call was left out
)

// errPower is what every step after the power cut returns.
var errPower = errors.New("the power is off")

// errDisk is what a step that fails returns.
var errDisk = fmt.Errorf("injected fault: %w", syscall.EIO)

// disk is a real folder that knows which part of it is on the platter: content
// that was synced, and names whose folder was synced.
type disk struct {
	root string

	mu    sync.Mutex
	at    int // the step that is faulty, from 1; 0: none
	fault fault
	end   int // the step before which the power goes; 0: none
	steps []string
	syncs []int // steps that are syncs
	off   bool

	inodes map[inode]*node
	open   []*os.File // of every inode, so that no number is used twice
}

type inode struct{ dev, ino uint64 }

// node is a file or folder as it is on the platter.
type node struct {
	live  *os.File
	dir   bool
	mode  fs.FileMode
	data  []byte           // of a file
	names map[string]*node // of a folder
}

var _ durable.FS = (*disk)(nil)

// newDisk takes all that is in a folder for durable.
func newDisk(root string) (*disk, error) {
	d := &disk{root: root, inodes: map[inode]*node{}}
	_, err := d.adopt(root, true)
	return d, err
}

func (d *disk) close() {
	for _, f := range d.open {
		_ = f.Close() // they were read
	}
}

// adopt returns the node of what is at a path. A new one has nothing on the
// platter, unless all says that all is.
func (d *disk) adopt(path string, all bool) (*node, error) {
	st, err := os.Lstat(path)
	if err != nil {
		return nil, err
	}
	sys := st.Sys().(*syscall.Stat_t) //nolint:forcetypeassert // of package os
	id := inode{sys.Dev, sys.Ino}
	n, known := d.inodes[id]
	if known && !all {
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
	if !all {
		return n, nil
	}
	if !n.dir {
		n.data, err = content(n.live)
		return n, err
	}
	entries, err := os.ReadDir(path)
	for _, e := range entries {
		var err error
		if n.names[e.Name()], err = d.adopt(filepath.Join(path, e.Name()), true); err != nil {
			return nil, err
		}
	}
	return n, err
}

// content reads a file that may have no name any more.
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

// step counts a step, and says whether it is to be done.
func (d *disk) step(isSync bool, format string, args ...any) (do bool, err error) {
	if d.off {
		return false, errPower
	}
	d.steps = append(d.steps, fmt.Sprintf(format, args...))
	if isSync {
		d.syncs = append(d.syncs, len(d.steps))
	}
	switch {
	case len(d.steps) == d.end:
		d.off = true
		return false, errPower
	case len(d.steps) != d.at:
		return true, nil
	case d.fault == fails:
		return false, errDisk
	}
	return d.fault != lies, nil
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
	n, err := d.adopt(name, false)
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

// names does a step that changes names.
func (d *disk) names(do func() error, format string, args ...any) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if ok, err := d.step(false, format, args...); !ok {
		return err
	}
	return do()
}

func (d *disk) Mkdir(name string, mode fs.FileMode) error {
	return d.names(func() error { return os.Mkdir(name, mode) }, "mkdir %s", d.rel(name))
}

func (d *disk) Link(from, to string) error {
	return d.names(func() error { return os.Link(from, to) }, "link %s to %s", d.rel(from), d.rel(to))
}

func (d *disk) Rename(from, to string) error {
	return d.names(func() error { return os.Rename(from, to) }, "rename %s to %s", d.rel(from), d.rel(to))
}

func (d *disk) Remove(name string) error {
	return d.names(func() error { return os.Remove(name) }, "remove %s", d.rel(name))
}

func (d *disk) SyncFolder(name string) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if do, err := d.step(true, "sync folder %s", d.rel(name)); !do {
		return err
	}
	n, err := d.adopt(name, false)
	if err != nil {
		return err
	}
	entries, err := os.ReadDir(name)
	if err != nil {
		return err
	}
	clear(n.names)
	for _, e := range entries {
		if n.names[e.Name()], err = d.adopt(filepath.Join(name, e.Name()), false); err != nil {
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
	return f.d.names(func() error { return f.File.Truncate(size) }, "truncate")
}

func (f *file) Sync() error {
	f.d.mu.Lock()
	defer f.d.mu.Unlock()
	if do, err := f.d.step(true, "sync file %s", f.d.rel(f.Name())); !do {
		return err
	}
	data, err := content(f.File)
	if errors.Is(err, syscall.EBADF) { // it was opened for writing alone
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

// survival is what of the unsynced a power cut leaves. A kernel writes names and
// contents back when it likes, in any order.
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

// cut makes the folder what a machine finds when it has power again.
func (d *disk) cut(s survival) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.off = true
	root, err := d.adopt(d.root, false)
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

// image is the tree that survives. path is "" for what has lost its name.
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
			if names[e.Name()], err = d.adopt(filepath.Join(path, e.Name()), false); err != nil {
				return nil, err
			}
		}
	}
	for name, child := range names {
		at := ""
		if s.names && path != "" {
			at = filepath.Join(path, name)
		}
		var err error
		if out.names[name], err = d.image(at, child, s); err != nil {
			return nil, err
		}
	}
	return out, nil
}

func (n *node) write(path string) error {
	for name, child := range n.names {
		at := filepath.Join(path, name)
		if !child.dir {
			if err := os.WriteFile(at, child.data, child.mode); err != nil {
				return err
			}
			continue
		}
		if err := os.Mkdir(at, 0o700); err != nil {
			return err
		}
		if err := child.write(at); err != nil {
			return err
		}
		if err := os.Chmod(at, child.mode); err != nil {
			return err
		}
	}
	return nil
}
