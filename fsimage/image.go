package fsimage

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
)

// The names of the sections that this package decodes.
const (
	NSInfo         = "NS_INFO"
	INodes         = "INODE"
	Directories    = "INODE_DIR"
	Snapshots      = "SNAPSHOT"
	SnapshotDiffs  = "SNAPSHOT_DIFF"
	INodeReference = "INODE_REFERENCE"
	StringTable    = "STRING_TABLE"
)

// subSection ends the name of a part of a section: INODE_SUB. The parts lie in the section and cover it.
const subSection = "_SUB"

const (
	magic      = "HDFSIMG1"
	trailer    = 4        // bytes of the index's length
	maxSummary = 16 << 20 // bytes of the index; 100 sections take 4 KB
)

// Layout versions are negative and fall. Those from firstZones to newestLayout were compared with Hadoop's sources.
const (
	firstZones   = -59 // Hadoop 2.6 has -60; builds with encryption zones before it have -59
	newestLayout = -67 // Hadoop 3.4
)

// An Error is damage of an image.
type Error struct {
	Section string // "" for the index
	Offset  int64  // of the damaged message: in the file, or in the section's data if these are compressed
	Start   int64  // of the section in the file, if its data are compressed; otherwise 0
	Err     error
}

func (e *Error) Error() string {
	switch {
	case e.Section == "":
		return fmt.Sprintf("the image is damaged or cut off: its index, at byte %d: %v", e.Offset, e.Err)
	case e.Start > 0:
		return fmt.Sprintf("the image is damaged or cut off: section %s, which begins at byte %d of the file, at byte "+
			"%d of its uncompressed data: %v", e.Section, e.Start, e.Offset, e.Err)
	}
	return fmt.Sprintf("the image is damaged or cut off: section %s, at byte %d of the file: %v", e.Section, e.Offset,
		e.Err)
}

func (e *Error) Unwrap() error { return e.Err }

// span is a part of the file that holds whole messages of a section.
type span struct {
	section        string
	offset, length int64
	codec          codec
	first          bool // it begins with the section's header
}

// Image is an fsimage whose index was read. Several goroutines may use it.
type Image struct {
	file   io.ReaderAt
	layout int32
	codec  string
	spans  map[string][]span // by section, in the order of the file
	names  []string          // of the sections, in the order of the file
}

// Open reads the index of an image of size bytes.
func Open(file io.ReaderAt, size int64) (*Image, error) {
	head := make([]byte, min(size, int64(len(magic))))
	if _, err := file.ReadAt(head, 0); err != nil && !errors.Is(err, io.EOF) {
		return nil, err
	}
	if string(head) != magic {
		return nil, notAnImage(head)
	}
	summary, end, err := readSummary(file, size)
	if err != nil {
		return nil, err
	}
	m := &Image{file: file, layout: summary.layout, codec: summary.codec}
	c, err := codecOf(summary.codec)
	if err != nil {
		return nil, &Error{Offset: end, Err: err}
	}
	if err := m.addSections(summary.sections, end, c); err != nil {
		return nil, &Error{Offset: end, Err: err}
	}
	return m, nil
}

// notAnImage says what a file is, by its first bytes.
func notAnImage(head []byte) error {
	switch {
	case strings.HasPrefix(magic, string(head)):
		return &Error{Err: fmt.Errorf("the file has only %d bytes", len(head))}
	case bytes.HasPrefix(head, []byte("<?xml")):
		return errors.New("this is XML, as 'hdfs oiv -p XML' prints it: give the fsimage itself")
	case bytes.HasPrefix(head, []byte("{")):
		return errors.New("this is JSON, as a census prints it, which anyone can edit: give the fsimage itself")
	case head[0] == 0xff && head[1] == 0xff && len(head) >= 4:
		//nolint:gosec // the layout version is negative
		return fmt.Errorf("this is an fsimage of Hadoop 2.3 or earlier (layout version %d), which has another format: "+
			"save the namespace with Hadoop 2.4 or later", int32(binary.BigEndian.Uint32(head)))
	}
	return fmt.Errorf("this is no fsimage: it does not begin with %s", magic)
}

// LayoutVersion returns the number of the image's layout, for instance -67.
func (m *Image) LayoutVersion() int32 { return m.layout }

// Codec returns the Java class of the image's compression; "" for none.
func (m *Image) Codec() string { return m.codec }

// Sections returns the names of all sections, also of those that this package does not know, in the order of the file.
func (m *Image) Sections() []string { return slices.Clone(m.names) }

// Has reports whether the image has a section.
func (m *Image) Has(section string) bool { return len(m.spans[section]) > 0 }

// Bytes returns how many bytes of the file a section takes.
func (m *Image) Bytes(section string) (n int64) {
	for _, s := range m.spans[section] {
		n += s.length
	}
	return n
}

// Warnings says what a reader of the image should know: a layout that this package was not compared with, or that has
// no encryption zones.
func (m *Image) Warnings() []string {
	switch {
	case m.layout < newestLayout:
		return []string{fmt.Sprintf("the layout version %d is newer than %d, the newest that is known: there may be "+
			"holders of EDEKs that are not counted", m.layout, newestLayout)}
	case m.layout > firstZones:
		return []string{fmt.Sprintf("the layout version %d is that of Hadoop 2.5 or earlier, which has no encryption "+
			"zones: take the newest image of the NameNode", m.layout)}
	}
	return nil
}

// addSections checks the index's sections: they lie one after the other from the magic to the index at end, as each
// NameNode writes them. A byte of no section may be one of a section that was made shorter in the index.
func (m *Image) addSections(entries []section, end int64, c codec) error {
	m.spans = map[string][]span{}
	parts := map[string][]span{}
	var whole []span
	for _, e := range entries {
		if e.offset < uint64(len(magic)) || e.offset > uint64(end) || e.length > uint64(end)-e.offset {
			return fmt.Errorf("section %q has %d bytes from byte %d on: the sections end at byte %d", e.name, e.length,
				e.offset, end)
		}
		s := span{section: e.name, offset: int64(e.offset), length: int64(e.length), codec: c} //nolint:gosec // <= end
		if of, ok := strings.CutSuffix(e.name, subSection); ok {
			s.section = of
			parts[of] = append(parts[of], s)
			continue
		}
		if m.Has(e.name) {
			return fmt.Errorf("there are two sections %q", e.name)
		}
		s.first = true
		m.spans[e.name] = []span{s}
		whole = append(whole, s)
	}
	slices.SortFunc(whole, byOffset)
	for i, s := range whole {
		if i > 0 && s.offset < whole[i-1].offset+whole[i-1].length {
			return fmt.Errorf("the sections %q and %q share bytes", whole[i-1].section, s.section)
		}
		m.names = append(m.names, s.section)
	}
	for name, spans := range parts {
		if err := m.split(name, spans); err != nil {
			return err
		}
	}
	return m.noGaps(whole, end, c)
}

// maxEmptyStream is more than an empty stream of each compression has: 20 bytes for gzip.
const maxEmptyStream = 64

// noGaps checks that sections in their order cover the file from the magic to end. If the sections are compressed, a
// NameNode has begun another stream after the last one, which is empty.
func (m *Image) noGaps(whole []span, end int64, c codec) error {
	at := int64(len(magic))
	for _, s := range append(slices.Clone(whole), span{offset: end}) {
		gap := span{offset: at, length: s.offset - at, codec: c}
		if gap.length > 0 && (c == nil || s.offset != end || !m.emptyStream(gap)) {
			return fmt.Errorf("the bytes %d to %d of the file belong to no section", at, s.offset-1)
		}
		at = s.offset + s.length
	}
	return nil
}

// emptyStream reports whether a span is a compressed stream without data.
func (m *Image) emptyStream(s span) bool {
	if s.length > maxEmptyStream {
		return false
	}
	stream, err := m.open(s)
	if err != nil {
		return false
	}
	defer stream.src.Close()
	n, err := io.Copy(io.Discard, io.LimitReader(stream.src, 1))
	return n == 0 && err == nil
}

// byOffset orders spans. Of spans at the same byte, the empty ones are first.
func byOffset(a, b span) int {
	return cmp.Or(cmp.Compare(a.offset, b.offset), cmp.Compare(a.length, b.length))
}

// split replaces a section by its parts, which must cover it exactly.
func (m *Image) split(name string, parts []span) error {
	if !m.Has(name) {
		return fmt.Errorf("there is a section %q and no %q", name+subSection, name)
	}
	whole := m.spans[name][0]
	if whole.codec != nil { // a compressed stream can be read only from its start
		return nil
	}
	slices.SortFunc(parts, byOffset)
	at := whole.offset
	for i := range parts {
		if parts[i].offset != at {
			return fmt.Errorf("the sections %q do not cover %q: one begins at byte %d, the part before it ends at %d",
				name+subSection, name, parts[i].offset, at)
		}
		at += parts[i].length
		parts[i].first = i == 0
	}
	if at != whole.offset+whole.length {
		return fmt.Errorf("the sections %q end at byte %d, and %q at %d", name+subSection, at, name,
			whole.offset+whole.length)
	}
	m.spans[name] = parts
	return nil
}
