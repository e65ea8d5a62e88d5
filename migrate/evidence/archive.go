package evidence

import (
	"archive/zip"
	"bytes"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"io"
	"io/fs"
	"slices"
	"strings"
)

// The members that each file has.
const (
	manifestName  = "manifest.json"
	signatureName = "manifest.sig"
	pageName      = "index.html"
	aboutName     = "about.json"
)

// maxContent is the greatest size of all members together. Members are not compressed, so a small file cannot become a
// large one. Tests lower it.
var maxContent = 256 << 20

// maxHeaders is more than the size of all headers.
const maxHeaders = 64 << 10

// memberNames returns the names that members may have, in their order.
func memberNames() []string {
	names := []string{manifestName, signatureName, pageName, aboutName}
	for _, p := range new(Report).parts() {
		names = append(names, p.member)
	}
	return names
}

// file is a member.
type file struct {
	name string
	data []byte
}

// zipDay is 1980-01-01, the first day that a zip file can have. The time of the report is in about.json.
const zipDay = 1<<5 | 1

// pack writes a zip file. It has one form only: unpack makes it again to compare.
func pack(w io.Writer, files []file) error {
	z := zip.NewWriter(w)
	for _, f := range files {
		size := uint64(len(f.data))
		h := &zip.FileHeader{Name: f.name, Method: zip.Store, CRC32: crc32.ChecksumIEEE(f.data), ReaderVersion: 10,
			CompressedSize64: size, UncompressedSize64: size}
		h.ModifiedDate = zipDay //nolint:staticcheck // CreateRaw writes this field, and does not read Modified
		h.SetMode(fs.FileMode(0o644))
		to, err := z.CreateRaw(h)
		if err != nil {
			return err
		}
		if _, err := to.Write(f.data); err != nil {
			return err
		}
	}
	return z.Close()
}

// The record at the end of a zip file (APPNOTE.TXT 4.3.16), without a comment.
const (
	endSize      = 22
	endSignature = "PK\x05\x06"
)

// directoryFault checks the record at the end of a zip file, before package zip reads what it points to. It returns
// what is wrong.
func directoryFault(data []byte) string {
	at := bytes.LastIndex(data, []byte(endSignature))
	switch {
	case at < 0 || len(data)-at < endSize:
		return "it is not a complete zip file: its end is missing"
	case len(data)-at > endSize:
		return fmt.Sprintf("%d bytes follow the end of the zip file", len(data)-at-endSize)
	}
	end := data[at:]
	count := int(binary.LittleEndian.Uint16(end[10:]))
	size, offset := int64(binary.LittleEndian.Uint32(end[12:])), int64(binary.LittleEndian.Uint32(end[16:]))
	most := len(memberNames())
	switch {
	case count > 2*most:
		return fmt.Sprintf("it has %d members, and a report has at most %d", count, most)
	case size+offset < int64(at):
		return fmt.Sprintf("%d bytes are before the beginning of the zip file, or between its parts",
			int64(at)-size-offset)
	case size+offset > int64(at):
		return "it is not a complete zip file: its directory points outside of it"
	}
	return ""
}

// unpack reads a zip file. It returns each member once, and what is wrong with the file. The members point into data.
func unpack(data []byte) (files []file, faults []string) {
	if fault := directoryFault(data); fault != "" {
		return nil, []string{fault}
	}
	z, err := zip.NewReader(bytes.NewReader(data), int64(len(data)))
	if err != nil {
		return nil, []string{fmt.Sprintf("it cannot be read as a zip file: %v", err)}
	}
	allowed := memberNames()
	for _, f := range z.File {
		has := func(m file) bool { return m.name == f.Name }
		switch {
		case !slices.Contains(allowed, f.Name):
			faults = append(faults, strangeName(f.Name))
			continue
		case slices.ContainsFunc(files, has):
			faults = append(faults, fmt.Sprintf("member %s is there twice", f.Name))
			continue
		}
		content, fault := stored(f, data)
		if fault != "" {
			faults = append(faults, fmt.Sprintf("member %s %s", f.Name, fault))
			continue
		}
		files = append(files, file{f.Name, content})
		if crc32.ChecksumIEEE(content) != f.CRC32 {
			faults = append(faults, fmt.Sprintf("member %s differs from its checksum in the zip file", f.Name))
		}
	}
	if len(faults) > 0 {
		return files, faults
	}
	place := func(f file) int { return slices.Index(allowed, f.name) }
	if !slices.IsSortedFunc(files, func(a, b file) int { return place(a) - place(b) }) {
		return files, []string{"the members are not in the order of a report"}
	}
	var again bytes.Buffer
	switch err := pack(&again, files); {
	case err != nil:
		return files, []string{fmt.Sprintf("it cannot be made again: %v", err)}
	case !bytes.Equal(again.Bytes(), data):
		return files, []string{"it has bytes that belong to no member, or headers that claviger does not write"}
	}
	return files, nil
}

// strangeName says what is wrong with the name of a member.
func strangeName(name string) string {
	if !fs.ValidPath(name) || strings.Contains(name, `\`) || strings.Contains(name, ":") {
		return fmt.Sprintf("member %q would be written outside of the folder to which the file is unpacked: do not "+
			"unpack the file", name)
	}
	return fmt.Sprintf("member %q is not a member of a report", name)
}

// stored returns the content of a member, which must be stored without compression.
func stored(f *zip.File, data []byte) (content []byte, fault string) {
	if f.Method != zip.Store || f.CompressedSize64 != f.UncompressedSize64 {
		return nil, "is compressed, and members of a report are not"
	}
	at, err := f.DataOffset()
	if err != nil {
		return nil, fmt.Sprintf("cannot be read: %v", err)
	}
	if at < 0 || at > int64(len(data)) || f.UncompressedSize64 > uint64(int64(len(data))-at) {
		return nil, "ends outside of the file"
	}
	return data[at : at+int64(f.UncompressedSize64)], "" //nolint:gosec // it is at most the length of data
}
