package imagetest

import (
	"encoding/binary"
	"fmt"
	"io"
	"math/rand/v2"
)

// Large describes a large namespace: zones with three snapshots each. In each zone every 20th inode is a folder. Of the
// other inodes, which are files with an EDEK, every 20th is deleted, and a snapshot holds it with a copy of its record.
// Every 100th folder is deleted with its files.
type Large struct {
	INodes      int
	Codec       string
	SubSections int    // how many parts the section INODE has; 0 or 1 for one part
	IDStep      uint64 // from one inode id to the next, as on a cluster where most files were deleted; 0 is 1
}

const (
	largeZones    = 50
	largeVersions = 4
	perFolder     = 20
)

// largeFolder is a folder while the image is written. Its files are those after it, until the next folder.
type largeFolder struct {
	id, zone uint64
	dead     bool // it or a folder above was deleted
	gone     bool // it was deleted
	children []uint64
	deleted  []uint64
}

// largeWriter writes a Large.
type largeWriter struct {
	*Writer
	Large
	random  *rand.Rand
	folders []*largeFolder // 0 is the root, then the zones
	message []byte
	truth   map[string]*LargeCount
	wait    int // inodes until the next sub-section
}

// LargeCount has the numbers of EDEKs of a key version in an image.
type LargeCount struct{ Live, SnapshotOnly uint64 }

// Write writes the image, and returns the numbers of EDEKs of each key version.
func (l Large) Write(to io.Writer) (map[string]*LargeCount, error) {
	l.IDStep = max(l.IDStep, 1)
	w := &largeWriter{Writer: NewWriter(to, l.Codec), Large: l,
		random: rand.New(rand.NewPCG(1, 2)), //nolint:gosec // no secret
		truth:  map[string]*LargeCount{}}
	w.start(4711, uint64(l.INodes)) //nolint:gosec // not negative
	w.Begin("INODE")
	last := w.id(l.INodes - 1)
	w.Message(number(number(nil, 1, last), 2, uint64(l.INodes))) //nolint:gosec // not negative
	w.wait = l.INodes / max(1, l.SubSections)
	for i := range l.INodes {
		w.inode(i)
		if w.wait--; w.wait <= 0 {
			w.Sub()
			w.wait = l.INodes / max(1, l.SubSections)
		}
	}
	w.End()
	w.Begin("INODE_DIR")
	for _, f := range w.folders {
		if len(f.children) > 0 {
			w.Message(packed(number(nil, 1, f.id), 2, f.children))
		}
	}
	w.End()
	w.empty("FILES_UNDERCONSTRUCTION")
	w.largeSnapshots()
	w.empty("INODE_REFERENCE")
	w.finish(false)
	return w.truth, w.Close()
}

// id returns the id of the i-th inode.
func (w *largeWriter) id(i int) uint64 { return Root + uint64(i)*w.IDStep } //nolint:gosec // not negative

// inode writes the i-th inode.
func (w *largeWriter) inode(i int) {
	id := w.id(i)
	switch {
	case i == 0:
		w.folders = append(w.folders, &largeFolder{id: id})
		w.Message((&Node{ID: id, Folder: true}).message(""))
	case i <= largeZones:
		w.folders[0].children = append(w.folders[0].children, id)
		w.folders = append(w.folders, &largeFolder{id: id, zone: id})
		w.Message((&Node{ID: id, Folder: true, Zone: fmt.Sprintf("key%02d", i)}).message(fmt.Sprintf("zone%02d", i)))
	case i%perFolder == 0:
		w.largeFolder(id)
	default:
		w.largeFile(i, id, w.folders[len(w.folders)-1])
	}
}

func (w *largeWriter) largeFolder(id uint64) {
	// Most folders lie in one of the last thousand, as on a cluster where jobs write trees. Few lie in deleted ones.
	n := len(w.folders)
	above := w.folders[max(1, n-1-w.random.IntN(1000))]
	if w.random.IntN(8) == 0 || above.dead && w.random.IntN(4) > 0 {
		above = w.folders[1+w.random.IntN(largeZones)]
	}
	f := &largeFolder{id: id, zone: above.zone, gone: n%100 == 99, dead: above.dead || n%100 == 99}
	w.folders = append(w.folders, f)
	if f.gone {
		above.deleted = append(above.deleted, id)
	} else {
		above.children = append(above.children, id)
	}
	w.Message((&Node{ID: id, Folder: true}).message(fmt.Sprintf("sub-%012d", id)))
}

func (w *largeWriter) largeFile(i int, id uint64, f *largeFolder) {
	version := fmt.Sprintf("key%02d@%d", (f.zone-Root)/w.IDStep, f.id/w.IDStep/perFolder%largeVersions)
	t := w.truth[version]
	if t == nil {
		t = new(LargeCount)
		w.truth[version] = t
	}
	// A file that is deleted after its folder was deleted cannot be.
	if i%perFolder == 10 && !f.dead {
		f.deleted = append(f.deleted, id)
		t.SnapshotOnly++
	} else {
		f.children = append(f.children, id)
		if f.dead {
			t.SnapshotOnly++
		} else {
			t.Live++
		}
	}
	m := number(number(w.message[:0], 1, 1), 2, id)
	m = text(m, 3, fmt.Sprintf("part-%012d", id))
	w.message = message(m, 4, largeRecord(id, version))
	w.Message(w.message)
}

// largeRecord returns the INodeFile of a file with one block.
func largeRecord(id uint64, version string) []byte {
	r := rand.NewPCG(id, 3)
	var secret [32]byte
	for i := 0; i < len(secret); i += 8 {
		binary.LittleEndian.PutUint64(secret[i:], r.Uint64())
	}
	f := number(number(number(number(nil, 1, 3), 2, modified+id%1e9), 3, modified), 4, 128<<20)
	f = fixed64(f, 5, permission)
	f = message(f, 6, number(number(number(nil, 1, 1<<30+id), 2, 1000+id), 3, 1<<20+id%1000))
	e := message(message(nil, 1, secret[:16]), 2, secret[16:])
	return message(f, 9, message(nil, 1, xattr(4, fileAttrID, text(e, 3, version))))
}

// largeSnapshots writes the snapshots s1 to s3 of each zone, and what was deleted after s3.
func (w *largeWriter) largeSnapshots() {
	w.Begin("SNAPSHOT")
	zones := w.folders[1 : largeZones+1]
	var roots []uint64
	for _, z := range zones {
		roots = append(roots, z.id)
	}
	w.Message(number(packed(number(nil, 1, 3*largeZones), 2, roots), 3, 3*largeZones))
	for i, z := range zones {
		for s := range 3 {
			root := (&Node{ID: z.id, Folder: true}).message(fmt.Sprintf("s%d", s+1))
			w.Message(message(number(nil, 1, uint64(3*i+s)), 2, root)) //nolint:gosec // not negative
		}
	}
	w.End()
	w.Begin("SNAPSHOT_DIFF")
	for n, f := range w.folders {
		if len(f.deleted) == 0 && (n == 0 || n > largeZones) {
			continue
		}
		newest := 3*((f.zone-Root)/w.IDStep-1) + 2
		w.Message(number(number(number(nil, 1, 2), 2, f.id), 3, 1))
		isRoot := uint64(0)
		if n <= largeZones {
			isRoot = 1
		}
		d := number(number(number(nil, 1, newest), 2, uint64(len(f.children)+len(f.deleted))), 3, isRoot)
		w.Message(packed(number(d, 6, 0), 7, f.deleted))
		for _, id := range f.deleted {
			if (id-Root)/w.IDStep%perFolder != 0 {
				w.largeCopy(id, newest, f)
			}
		}
	}
	w.End()
}

func (w *largeWriter) largeCopy(id, snapshot uint64, f *largeFolder) {
	version := fmt.Sprintf("key%02d@%d", (f.zone-Root)/w.IDStep, f.id/w.IDStep/perFolder%largeVersions)
	w.Message(number(number(number(nil, 1, 1), 2, id), 3, 1))
	d := number(number(nil, 1, snapshot), 2, 1<<20)
	d = message(d, 3, []byte(fmt.Sprintf("part-%012d", id)))
	w.Message(message(d, 4, largeRecord(id, version)))
}
