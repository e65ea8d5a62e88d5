package fsimage_test

import (
	"bytes"
	"errors"
	"io"
	"math/rand/v2"
	"os"
	"runtime"
	"slices"
	"strings"
	"testing"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zlib"
	"github.com/klauspost/compress/zstd"
	"google.golang.org/protobuf/encoding/protowire"

	"claviger/fsimage"
	"claviger/internal/imagetest"
)

// mustBeDamaged checks that an image is refused, with the section and the byte of the damage.
func mustBeDamaged(t *testing.T, image []byte, what string, parts ...string) {
	t.Helper()
	_, err := readAll(image, 2)
	if e := new(fsimage.Error); !errors.As(err, &e) {
		t.Errorf("%s: %v", what, err)
		return
	}
	for _, part := range append(parts, " byte ") {
		if !strings.Contains(err.Error(), part) {
			t.Errorf("%s: %q does not contain %q", what, err, part)
		}
	}
}

// TestCutOff: an image that ends at the border of a section, or anywhere else, is refused.
func TestCutOff(t *testing.T) {
	for _, codec := range imagetest.Codecs {
		tree := sample()
		tree.Codec = codec
		image, sections := tree.Bytes()
		for _, s := range sections {
			mustBeDamaged(t, image[:s.Offset], "cut before "+s.Name, "index")
			mustBeDamaged(t, image[:s.Offset+s.Length], "cut after "+s.Name, "index")
		}
		for n := 1; n < len(image); n += 7 {
			mustBeDamaged(t, image[:n], "cut anywhere", "index")
		}
	}
}

// rewrite returns the image of sample with one section's data replaced.
func rewrite(t *testing.T, name string, change func([]byte) []byte) []byte {
	t.Helper()
	image, sections := sample().Bytes()
	var b bytes.Buffer
	w := imagetest.NewWriter(&b, imagetest.None)
	for _, s := range sections {
		data := image[s.Offset : s.Offset+s.Length]
		w.Begin(s.Name)
		if s.Name == name {
			data = change(bytes.Clone(data))
		}
		if _, err := w.Write(data); err != nil {
			t.Fatal(err)
		}
		w.End()
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// TestDamagedSections: each section that is read names itself and the byte when its last message is cut off, or when
// a message has no sense.
func TestDamagedSections(t *testing.T) {
	for _, name := range []string{"NS_INFO", "INODE", "INODE_DIR", "SNAPSHOT", "SNAPSHOT_DIFF", "INODE_REFERENCE",
		"STRING_TABLE"} {
		image := rewrite(t, name, func(b []byte) []byte { return b[:len(b)-1] })
		mustBeDamaged(t, image, name+" cut", "section "+name+", at byte ", "cut off")
		image = rewrite(t, name, func(b []byte) []byte { return append(b, 2, 0x7f, 0xff) })
		if name != "NS_INFO" { // only its first message is read
			mustBeDamaged(t, image, name+" with a malformed message", "section "+name+", at byte ")
		}
		image = rewrite(t, name, func(b []byte) []byte { return append(b, bytes.Repeat([]byte{0xff}, 20)...) })
		mustBeDamaged(t, image, name+" with a malformed length", "section "+name, "no length")
		huge := protowire.AppendVarint(nil, 1<<40)
		image = rewrite(t, name, func(b []byte) []byte { return append(b, huge...) })
		mustBeDamaged(t, image, name+" with a huge message", "section "+name, "1099511627776 bytes")
	}
	for _, name := range []string{"SNAPSHOT", "STRING_TABLE"} {
		image := rewrite(t, name, func(b []byte) []byte { return b[:1+b[0]] })
		mustBeDamaged(t, image, name+" with a header alone", "section "+name, "its header says")
	}
	image := rewrite(t, "SNAPSHOT_DIFF", func(b []byte) []byte { return append(b, 6, 8, 1, 16, 9, 24, 5) })
	mustBeDamaged(t, image, "missing differences", "section SNAPSHOT_DIFF", "inode 9 are missing")
}

// TestFlippedBits: no flipped bit makes the reader panic, and none changes what is read from data with a checksum.
func TestFlippedBits(t *testing.T) {
	for _, codec := range []string{imagetest.None, imagetest.Gzip, imagetest.LZ4} {
		tree := sample()
		tree.Codec = codec
		image, sections := tree.Bytes()
		for at := 0; at < len(image); at += 5 {
			bit := byte(1) << (at % 8)
			image[at] ^= bit
			got, err := readAll(image, 1)
			image[at] ^= bit
			if codec != imagetest.Gzip || err != nil || slices.Equal(got, want) {
				continue
			}
			for _, s := range sections {
				if at := int64(at); at >= s.Offset && at < s.Offset+s.Length {
					t.Errorf("%s: bit %#x of byte %d of section %s was flipped, which changed\n%s", codec, bit, at,
						s.Name, strings.Join(got, "\n"))
				}
			}
		}
	}
}

// TestOtherFiles: the error for a file that is not an image of this format says what the file is or lacks.
func TestOtherFiles(t *testing.T) {
	for content, want := range map[string]string{
		"\xff\xff\xff\xd1 old":     "layout version -47",
		"<?xml version=\"1.0\"?>":  "oiv -p XML",
		"{\n  \"image\": {":        "as a census prints it",
		"PK\x03\x04 something":     "no fsimage",
		"HDFS":                     "only 4 bytes",
		"":                         "only 0 bytes",
		"HDFSIMG1":                 "only 8 bytes",
		"HDFSIMG1\x00\x00\x00\x00": "not a message",
	} {
		if _, err := readAll([]byte(content), 1); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want %q", content, err, want)
		}
	}
	for layout, want := range map[int32]string{-70: "newer than -67", -67: "", -60: "", -58: "Hadoop 2.5 or earlier"} {
		tree := sample()
		tree.Layout = layout
		image, _ := tree.Bytes()
		m, err := fsimage.Open(bytes.NewReader(image), int64(len(image)))
		if err != nil || m.LayoutVersion() != layout {
			t.Fatalf("layout %d: %v", layout, err)
		}
		if got := strings.Join(m.Warnings(), "\n"); (got == "") != (want == "") || !strings.Contains(got, want) {
			t.Errorf("layout %d: warnings %q, want %q", layout, got, want)
		}
	}
	var b bytes.Buffer
	if err := imagetest.NewWriter(&b, "com.example.Codec").Close(); err != nil {
		t.Fatal(err)
	}
	mustBeDamaged(t, b.Bytes(), "an unknown compression", "com.example.Codec", "dfs.image.compression.codec")
}

// TestIndex: sections that share bytes, that are there twice, or that leave a gap, also between their parts, are
// refused.
func TestIndex(t *testing.T) {
	for _, c := range []struct {
		want     string
		sections []imagetest.Section
	}{
		{"share bytes", []imagetest.Section{{Name: "A", Offset: 8, Length: 2}, {Name: "B", Offset: 9, Length: 1}}},
		{"two sections", []imagetest.Section{{Name: "A", Offset: 8, Length: 1}, {Name: "A", Offset: 9, Length: 1}}},
		{"end at byte 12", []imagetest.Section{{Name: "A", Offset: 8, Length: 5}}},
		{"end at byte 12", []imagetest.Section{{Name: "A", Offset: -1, Length: 5}}},
		{"the bytes 8 to 8 of the file", []imagetest.Section{{Name: "A", Offset: 9, Length: 3}}},
		{"the bytes 9 to 10 of the file", []imagetest.Section{{Name: "A", Offset: 8, Length: 1},
			{Name: "B", Offset: 11, Length: 1}}},
		{"the bytes 11 to 11 of the file", []imagetest.Section{{Name: "A", Offset: 8, Length: 3}}},
		{"no \"A\"", []imagetest.Section{{Name: "A_SUB", Offset: 8, Length: 1}}},
		{"do not cover", []imagetest.Section{{Name: "A_SUB", Offset: 9, Length: 1}, {Name: "A", Offset: 8, Length: 2}}},
		{"at byte 9", []imagetest.Section{{Name: "A_SUB", Offset: 8, Length: 1}, {Name: "A", Offset: 8, Length: 2}}},
	} {
		var b bytes.Buffer
		w := imagetest.NewWriter(&b, imagetest.None)
		if _, err := w.Write(make([]byte, 4)); err != nil {
			t.Fatal(err)
		}
		w.Sections = c.sections
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		mustBeDamaged(t, b.Bytes(), c.want, "index", c.want)
	}
}

// TestEmptySection: a section may be empty. It has no byte, and its offset is that of the next section.
func TestEmptySection(t *testing.T) {
	for _, name := range []string{"A", "Z"} { // the order of the index does not matter
		image := rewrite(t, "SNAPSHOT_DIFF", func(b []byte) []byte { return b })
		var b bytes.Buffer
		w := imagetest.NewWriter(&b, imagetest.None)
		_, sections := sample().Bytes()
		if _, err := w.Write(image[8 : sections[len(sections)-1].Offset+sections[len(sections)-1].Length]); err != nil {
			t.Fatal(err)
		}
		w.Sections = append(slices.Clone(sections), imagetest.Section{Name: name, Offset: sections[3].Offset})
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		if got, err := readAll(b.Bytes(), 2); err != nil || !slices.Equal(got, want) {
			t.Errorf("%v: %q", err, got)
		}
	}
}

// TestEmptyStream: a NameNode writes an empty compressed stream after the last section. Other bytes there are refused.
func TestEmptyStream(t *testing.T) {
	for _, codec := range imagetest.Codecs[1:] {
		for _, data := range [][]byte{nil, []byte("hidden"), bytes.Repeat([]byte("hidden"), 999)} {
			tree := sample()
			tree.Codec = codec
			image, sections := tree.Bytes()
			var b bytes.Buffer
			w := imagetest.NewWriter(&b, codec)
			last := sections[len(sections)-1]
			if _, err := w.Write(image[8 : last.Offset+last.Length]); err != nil {
				t.Fatal(err)
			}
			w.Begin("EMPTY")
			if len(data) > 0 {
				w.Message(data)
			}
			w.End()
			w.Sections = sections
			if err := w.Close(); err != nil {
				t.Fatal(err)
			}
			if data != nil {
				mustBeDamaged(t, b.Bytes(), codec, "belong to no section")
			} else if got, err := readAll(b.Bytes(), 2); err != nil || !slices.Equal(got, want) {
				t.Errorf("%s: %v: %q", codec, err, got)
			}
		}
	}
}

// TestStreamBetween: an empty compressed stream before the last section is refused. NameNodes write none there.
func TestStreamBetween(t *testing.T) {
	tree := sample()
	tree.Codec = imagetest.Gzip
	image, sections := tree.Bytes()
	var b bytes.Buffer
	w := imagetest.NewWriter(&b, imagetest.Gzip)
	last := &sections[len(sections)-1]
	if _, err := w.Write(image[8:last.Offset]); err != nil {
		t.Fatal(err)
	}
	w.Begin("EMPTY")
	w.End()
	moved := image[last.Offset : last.Offset+last.Length]
	last.Offset += w.Sections[0].Length
	if _, err := w.Write(moved); err != nil {
		t.Fatal(err)
	}
	w.Sections = sections
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	mustBeDamaged(t, b.Bytes(), "a stream between sections", "belong to no section")
}

// compressedImage returns an image with two sections whose compressed data are data.
func compressedImage(t *testing.T, codec string, data []byte) []byte {
	t.Helper()
	var b bytes.Buffer
	w := imagetest.NewWriter(&b, imagetest.None)
	w.Codec = codec
	for _, name := range []string{"NS_INFO", "STRING_TABLE"} {
		begun := int64(b.Len())
		if _, err := w.Write(data); err != nil {
			t.Fatal(err)
		}
		w.Sections = append(w.Sections, imagetest.Section{Name: name, Offset: begun, Length: int64(len(data))})
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// TestBombs: a small file that decompresses to very much is refused, for each compression that can do so.
func TestBombs(t *testing.T) {
	message := bytes.Repeat([]byte{5, 8, 1, 0x12, 1, 'x'}, 1<<21)
	compress := func(open func(io.Writer) (io.WriteCloser, error)) []byte {
		var z bytes.Buffer
		w, err := open(&z)
		if err == nil {
			_, err = w.Write(message)
		}
		if err != nil {
			t.Fatal(err)
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		return z.Bytes()
	}
	bzip2, err := os.ReadFile("testdata/bomb.bz2") // message, compressed by bzip2 -9
	if err != nil {
		t.Fatal(err)
	}
	for codec, data := range map[string][]byte{
		imagetest.Deflate: compress(func(w io.Writer) (io.WriteCloser, error) { return zlib.NewWriter(w), nil }),
		imagetest.Gzip:    compress(func(w io.Writer) (io.WriteCloser, error) { return gzip.NewWriter(w), nil }),
		imagetest.Zstd:    compress(func(w io.Writer) (io.WriteCloser, error) { return zstd.NewWriter(w) }),
		"org.apache.hadoop.io.compress.BZip2Codec": bzip2,
	} {
		mustBeDamaged(t, compressedImage(t, codec, data), "a bomb of "+codec, "500 times longer")
	}
}

// TestBlockBombs: Snappy and LZ4 cannot compress by more than 255. Their blocks and chunks have lengths that may lie:
// such a file is refused, and takes no memory for what is not there.
func TestBlockBombs(t *testing.T) {
	long := []byte{4, 0, 0, 0} // 64 MB
	for what, data := range map[string][]byte{
		"a long block without a chunk":    long,
		"a long chunk without data":       slices.Concat(long, long),
		"a block that is too long":        {0x7f, 0, 0, 0},
		"a chunk that is too long":        slices.Concat(long, []byte{0x7f, 0, 0, 0}),
		"chunks without data":             slices.Concat(long, make([]byte, 4000)),
		"a chunk that promises more data": slices.Concat(long, []byte{0, 0, 0, 8}, bytes.Repeat([]byte{0xff}, 8)),
	} {
		for _, codec := range []string{imagetest.Snappy, imagetest.LZ4} {
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			mustBeDamaged(t, compressedImage(t, codec, data), what+" of "+codec, "a compressed ")
			runtime.ReadMemStats(&after)
			if n := after.TotalAlloc - before.TotalAlloc; n > 8<<20 {
				t.Errorf("%s of %s took %d bytes of memory", what, codec, n)
			}
		}
	}
}

// TestLongMessage: a message may be longer than a batch, and messages cross the borders of batches and blocks.
func TestLongMessage(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	for _, codec := range imagetest.Codecs {
		tree := &imagetest.Tree{Codec: codec}
		root := imagetest.Node{ID: imagetest.Root, Folder: true}
		for id := uint64(16386); id < 16386+120_000; id++ {
			root.Children = append(root.Children, id<<20+random.Uint64N(1<<20))
		}
		tree.Nodes = []imagetest.Node{root}
		for i := range 6000 {
			name := strings.Repeat("n", 1+random.IntN(200))
			tree.Nodes = append(tree.Nodes, imagetest.Node{ID: uint64(20_000 + i), Name: name, EDEK: "k@1"})
		}
		image, _ := tree.Bytes()
		lines, err := readAll(image, 2)
		if err != nil {
			t.Fatal(codec, err)
		}
		if n := len(lines); n != 6000+5 {
			t.Errorf("%s: %d records", codec, n)
		}
	}
}

// FuzzImage: no file makes the reader panic, or return records in another number with more workers.
func FuzzImage(f *testing.F) {
	for _, codec := range imagetest.Codecs {
		tree := sample()
		tree.Codec = codec
		image, _ := tree.Bytes()
		f.Add(image)
	}
	f.Fuzz(func(t *testing.T, image []byte) {
		one, err := readAll(image, 1)
		if err != nil && one != nil {
			t.Error("records of a damaged image")
		}
		two, err2 := readAll(image, 3)
		if (err == nil) != (err2 == nil) || len(one) != len(two) {
			t.Errorf("%d records, %v; with more workers %d, %v", len(one), err, len(two), err2)
		}
	})
}
