package hadoop

import (
	"encoding/hex"
	"encoding/xml"
	"io"
	"os"
	"regexp"
	"slices"
	"strconv"
	"testing"

	"google.golang.org/protobuf/encoding/protowire"
)

// This file counts EDEKs in the XML that `hdfs oiv -p XML` makes of an image. It shares nothing with package census: it
// builds the tree of the current state and of each snapshot, and walks each of them.

type xmlXAttr struct {
	NS     string `xml:"ns"`
	Name   string `xml:"name"`
	Val    string `xml:"val"`
	ValHex string `xml:"valHex"`
}

type xmlINode struct {
	ID     uint64     `xml:"id"`
	Type   string     `xml:"type"`
	Name   string     `xml:"name"`
	XAttrs []xmlXAttr `xml:"xattrs>xattr"`
}

type xmlDirectory struct {
	Parent   uint64   `xml:"parent"`
	Children []uint64 `xml:"child"`
	Refs     []int    `xml:"refChild"`
}

type xmlDirDiff struct {
	Snapshot uint32 `xml:"snapshotId"`
	Created  []struct {
		Name string `xml:"name"`
	} `xml:"created"`
	Deleted []uint64 `xml:"deletedInode"`
	Refs    []int    `xml:"deletedInoderef"`
}

type xmlFileDiff struct {
	Snapshot uint32    `xml:"snapshotId"`
	Size     int       `xml:"size"`
	Copy     *xmlINode `xml:"snapshotCopy"`
}

type xmlImage struct {
	INodes []xmlINode `xml:"INodeSection>inode"`
	Refs   []struct {
		ID   uint64  `xml:"referredId"`
		Name *string `xml:"name"`
	} `xml:"INodeReferenceSection>ref"`
	Snapshots []struct {
		ID   uint32   `xml:"id"`
		Root xmlINode `xml:"root"`
	} `xml:"SnapshotSection>snapshot"`
	Directories []xmlDirectory `xml:"INodeDirectorySection>directory"`
	FileDiffs   []struct {
		ID    uint64        `xml:"inodeId"`
		Diffs []xmlFileDiff `xml:"fileDiff"`
	} `xml:"SnapshotDiffSection>fileDiffEntry"`
	DirDiffs []struct {
		ID    uint64       `xml:"inodeId"`
		Diffs []xmlDirDiff `xml:"dirDiff"`
	} `xml:"SnapshotDiffSection>dirDiffEntry"`
}

// edek returns "VERSION HEX" of a record, or "".
func (n *xmlINode) edek(t testing.TB) string {
	t.Helper()
	for _, x := range n.XAttrs {
		if x.NS != "RAW" || x.Name != "hdfs.crypto.file.encryption.info" {
			continue
		}
		value, err := hex.DecodeString(x.ValHex)
		if err != nil {
			t.Fatal(err)
		}
		if x.ValHex == "" {
			value = unescapeXML(t, x.Val)
		}
		var key, version []byte
		for b := value; len(b) > 0; {
			num, _, k := protowire.ConsumeTag(b)
			data, m := protowire.ConsumeBytes(b[max(k, 0):])
			if k < 0 || m < 0 {
				t.Fatalf("the EDEK of %d: %x", n.ID, value)
			}
			switch num {
			case 1:
				key = data
			case 3:
				version = data
			}
			b = b[k+m:]
		}
		return string(version) + " " + hex.EncodeToString(key)
	}
	return ""
}

var escaped = regexp.MustCompile(`\\([0-9a-f]{4});`)

// unescapeXML reads a value that oiv prints as text, with \0008; for characters that XML cannot hold.
func unescapeXML(t testing.TB, text string) []byte {
	t.Helper()
	return []byte(escaped.ReplaceAllStringFunc(text, func(m string) string {
		n, err := strconv.ParseUint(m[1:5], 16, 16)
		if err != nil {
			t.Fatal(err)
		}
		return string(rune(n))
	}))
}

// states is an image as a tree for the current state and for each snapshot.
type states struct {
	t        testing.TB
	inodes   map[uint64]*xmlINode
	children map[uint64][]entry
	files    map[uint64][]xmlFileDiff
	folders  map[uint64][]xmlDirDiff
	image    *xmlImage
}

// entry is a child by its name.
type entry struct {
	id   uint64
	name string
}

func readXMLImage(t testing.TB, file string) *states {
	t.Helper()
	f, err := os.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	d := xml.NewDecoder(f)
	d.Strict = false
	s := &states{t: t, inodes: map[uint64]*xmlINode{}, children: map[uint64][]entry{},
		files: map[uint64][]xmlFileDiff{}, folders: map[uint64][]xmlDirDiff{}, image: new(xmlImage)}
	if err := d.Decode(s.image); err != nil && err != io.EOF {
		t.Fatal(err)
	}
	for i := range s.image.INodes {
		s.inodes[s.image.INodes[i].ID] = &s.image.INodes[i]
	}
	for _, d := range s.image.Directories {
		s.children[d.Parent] = append(s.entries(d.Children), s.refEntries(d.Refs)...)
	}
	for _, d := range s.image.FileDiffs {
		s.files[d.ID] = d.Diffs
	}
	for _, d := range s.image.DirDiffs {
		s.folders[d.ID] = d.Diffs
	}
	return s
}

func (s *states) entries(ids []uint64) (list []entry) {
	for _, id := range ids {
		list = append(list, entry{id, s.inodes[id].Name})
	}
	return list
}

func (s *states) refEntries(refs []int) (list []entry) {
	for _, i := range refs {
		r := s.image.Refs[i]
		name := s.inodes[r.ID].Name
		if r.Name != nil && *r.Name != "" {
			name = *r.Name
		}
		list = append(list, entry{r.ID, name})
	}
	return list
}

const now = ^uint32(0)

// walk adds the EDEKs of a folder's files as a snapshot shows them.
func (s *states) walk(id uint64, snapshot uint32, found map[string]bool) {
	n := s.inodes[id]
	if n == nil {
		s.t.Fatalf("inode %d is not in the image", id)
	}
	if n.Type == "FILE" {
		if e := s.record(n, snapshot).edek(s.t); e != "" {
			found[strconv.FormatUint(id, 10)+" "+e] = true
		}
		return
	}
	children := slices.Clone(s.children[id])
	for _, d := range s.folders[id] { // the newest first
		if snapshot == now || d.Snapshot < snapshot {
			continue
		}
		for _, c := range d.Created {
			children = slices.DeleteFunc(children, func(e entry) bool { return e.name == c.Name })
		}
		children = append(append(children, s.entries(d.Deleted)...), s.refEntries(d.Refs)...)
	}
	for _, c := range children {
		s.walk(c.id, snapshot, found)
	}
}

// record returns a file's record as a snapshot shows it: the copy of that snapshot, or of the next newer one.
func (s *states) record(n *xmlINode, snapshot uint32) *xmlINode {
	if snapshot == now {
		return n
	}
	diffs := s.files[n.ID]
	for i := len(diffs) - 1; i >= 0; i-- { // the oldest first
		if diffs[i].Snapshot >= snapshot && diffs[i].Copy != nil {
			return diffs[i].Copy
		}
	}
	return n
}

// counts returns by version how many EDEKs are live, and how many only snapshots show.
func (s *states) counts() map[string][2]uint64 {
	live, old := map[string]bool{}, map[string]bool{}
	s.walk(16385, now, live)
	for _, x := range s.image.Snapshots {
		s.walk(x.Root.ID, x.ID, old)
	}
	return countEDEKs(live, old)
}

// copies returns how many copies of records in differences of snapshots are of files with size bytes.
func (s *states) copies(size int) (n int) {
	for _, diffs := range s.files {
		for _, d := range diffs {
			if d.Size == size && d.Copy != nil {
				n++
			}
		}
	}
	return n
}
