package evidence

import (
	"archive/zip"
	"bytes"
	"crypto/ed25519"
	"encoding/binary"
	"encoding/json"
	"slices"
	"strings"
	"testing"

	"claviger/migrate"
)

// packed packs members as a report is packed.
func packed(t *testing.T, files []file) []byte {
	t.Helper()
	var b bytes.Buffer
	if err := pack(&b, files); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// signed makes a manifest for changed members, and signs it: the holder of the key lies, or somebody else signs.
func signed(t *testing.T, private ed25519.PrivateKey, files []file, change ...func(*Manifest)) []byte {
	t.Helper()
	m := new(Manifest)
	if err := json.Unmarshal(files[0].data, m); err != nil {
		t.Fatal(err)
	}
	m.Members, m.Signer = nil, fingerprintOf(private)
	for _, f := range files[2:] {
		m.Members = append(m.Members, Member{f.name, digest(f.data), len(f.data)})
	}
	for _, c := range change {
		c(m)
	}
	text, err := encode(m)
	if err != nil {
		t.Fatal(err)
	}
	files = slices.Clone(files)
	files[0], files[1] = file{manifestName, text}, file{signatureName, ed25519.Sign(private, text)}
	return packed(t, files)
}

// edited returns the members with other content of one of them.
func edited(files []file, name string, change func([]byte) []byte) []file {
	files = slices.Clone(files)
	for i, f := range files {
		if f.name == name {
			files[i].data = change(bytes.Clone(f.data))
		}
	}
	return files
}

func without(files []file, name string) []file {
	return slices.DeleteFunc(slices.Clone(files), func(f file) bool { return f.name == name })
}

// replaced replaces a text that must be there.
func replaced(old, with string) func([]byte) []byte {
	return func(data []byte) []byte {
		if !bytes.Contains(data, []byte(old)) {
			panic("the text " + old + " is not there")
		}
		return bytes.Replace(data, []byte(old), []byte(with), 1)
	}
}

func halved(data []byte) []byte { return data[:len(data)/2] }

func flipped(data []byte) []byte {
	data[len(data)/2] ^= 1
	return data
}

// forgery is a file that somebody made from a report.
type forgery struct {
	want string // part of a finding
	data []byte
}

// forgeries returns a file for each kind of tampering.
func forgeries(t *testing.T, data []byte) map[string]forgery {
	t.Helper()
	files := filesOf(t, data)
	_, other := testKeys(2)
	add := func(names ...string) []file {
		all := slices.Clone(files)
		for _, name := range names {
			all = append(all, file{name, []byte("{}\n")})
		}
		return all
	}
	edit := func(name string, change func([]byte) []byte) []byte { return packed(t, edited(files, name, change)) }
	renamed := slices.Clone(files)
	renamed[3].name = "About.json"
	swapped := slices.Clone(files)
	swapped[4], swapped[5] = swapped[5], swapped[4]
	all := map[string]forgery{
		"no signature":        {"nothing shows who made", packed(t, without(files, signatureName))},
		"no manifest":         {"manifest.json is missing", packed(t, without(files, manifestName))},
		"no page":             {`"index.html" of the manifest is missing`, packed(t, without(files, pageName))},
		"added":               {`"notes.txt" is not a member`, packed(t, add("notes.txt"))},
		"doubled":             {"keys.json is there twice", packed(t, add("keys.json"))},
		"doubled manifest":    {"manifest.json is there twice", packed(t, add(manifestName))},
		"renamed":             {`"About.json" is not a member`, packed(t, renamed)},
		"other order":         {"not in the order", packed(t, swapped)},
		"up":                  {"do not unpack", packed(t, add("../about.json"))},
		"absolute":            {"do not unpack", packed(t, add("/etc/passwd"))},
		"Windows":             {"do not unpack", packed(t, add(`..\about.json`))},
		"drive":               {"do not unpack", packed(t, add("c:about.json"))},
		"manifest":            {"the signature is not that", edit(manifestName, replaced(`"kms1"`, `"kms2"`))},
		"manifest and digest": {"the signature is not that", redigested(t, files)},
		"broken manifest":     {"is not the JSON", edit(manifestName, func(b []byte) []byte { return b[1:] })},
		"signature":           {"the signature is not that", edit(signatureName, flipped)},
		"short signature":     {"the signature is not that", edit(signatureName, halved)},
		"empty signature":     {"the signature is not that", edit(signatureName, func([]byte) []byte { return nil })},
		"another key":         {"the report names another key, sha256:", signed(t, other, files)},
		"trailing":            {"1 bytes follow the end", append(bytes.Clone(data), 0)},
		"trailing zip":        {"before the beginning", append(bytes.Clone(data), data...)},
		"leading":             {"7 bytes are before", append([]byte("#!/bin/"), data...)},
		"cut":                 {"its end is missing", data[:len(data)-1]},
		"no member":           {"manifest.json is missing", packed(t, nil)},
		"empty":               {"its end is missing", nil},
		"text":                {"its end is missing", []byte("hello")},
	}
	bit := bytes.Clone(data)
	bit[bytes.Index(bit, []byte(`"edeks": 7`))] ^= 1
	all["one bit"] = forgery{"counters.json differs from its checksum", bit}
	for _, f := range files[2:] { // each member
		all["changed "+f.name] = forgery{"member " + f.name + " was changed", packed(t, edited(files, f.name, flipped))}
		all["without "+f.name] = forgery{`member "` + f.name + `" of the manifest is missing`,
			packed(t, without(files, f.name))}
	}
	return all
}

// redigested changes a member and its digest in the manifest, without the key.
func redigested(t *testing.T, files []file) []byte {
	t.Helper()
	before := digest(content(files, "counters.json"))
	files = edited(files, "counters.json", replaced(`"edeks": 7`, `"edeks": 0`))
	return packed(t, edited(files, manifestName, replaced(before, digest(content(files, "counters.json")))))
}

// TestTampering: each kind of tampering is found, and the result says what was found. Nothing that the file says is
// shown.
func TestTampering(t *testing.T) {
	public, _ := testKeys(1)
	_, data := write(t, full())
	for name, f := range forgeries(t, data) {
		v, err := Verify(save(t, f.data), public)
		if err != nil || v.Verified || v.Host != "" || !strings.Contains(strings.Join(v.Findings, "\n"), f.want) {
			t.Errorf("%s: want %q: %+v, %v", name, f.want, v, err)
			continue
		}
		var text strings.Builder
		if v.Text(&text); !strings.HasPrefix(text.String(), "NOT VERIFIED") || strings.Contains(text.String(), "kms1") {
			t.Errorf("%s:\n%s", name, text.String())
		}
	}
}

// TestContradiction: a report is not verified if its verdict is granted and names EDEKs that need the source, also if
// the holder of the key has signed it.
func TestContradiction(t *testing.T) {
	public, _ := testKeys(1)
	r := full()
	r.Verdict.Outcome = migrate.Granted
	_, data := write(t, r)
	v, err := Verify(save(t, data), public)
	if err != nil || v.Verified || !strings.Contains(strings.Join(v.Findings, "\n"), "verdict.json: the verdict says "+
		"that no EDEK needs what it judged, and contradicts itself") {
		t.Errorf("%+v, %v", v, err)
	}
}

// TestEachByte: no byte of the file can be changed, inserted or removed.
func TestEachByte(t *testing.T) {
	public, _ := testKeys(1)
	_, data := write(t, full())
	step := 1
	if len(data) > 250 {
		step = len(data)/250 + 1 // the headers have other bytes in each step
	}
	try := func(what string, at int, changed []byte) {
		if v, err := verify(changed, public); err != nil || v.Verified || len(v.Findings) == 0 {
			t.Errorf("byte %d %s is not found: %v", at, what, err)
		}
	}
	for at := 0; at < len(data); at += step {
		changed := bytes.Clone(data)
		changed[at] ^= 0x20
		try("changed", at, changed)
	}
	for at := 0; at <= len(data); at += len(data)/25 + 1 {
		try("inserted", at, slices.Insert(bytes.Clone(data), at, 'x'))
	}
	for at := 0; at < len(data); at += len(data)/25 + 1 {
		try("removed", at, slices.Delete(bytes.Clone(data), at, at+1))
	}
	for at := len(data) - 900; at < len(data); at += 3 { // the directory
		changed := bytes.Clone(data)
		changed[at] ^= 1
		try("changed", at, changed)
	}
}

// TestHiddenInHeaders: bytes that package zip does not show are found: comments, extra fields, times, compression.
func TestHiddenInHeaders(t *testing.T) {
	public, _ := testKeys(1)
	_, data := write(t, full())
	files := filesOf(t, data)
	for name, change := range map[string]func(*zip.Writer, *zip.FileHeader){
		"comment":           func(z *zip.Writer, _ *zip.FileHeader) { _ = z.SetComment("hidden") },
		"comment of member": func(_ *zip.Writer, h *zip.FileHeader) { h.Comment = "hidden" },
		"extra field":       func(_ *zip.Writer, h *zip.FileHeader) { h.Extra = []byte{0, 1, 2, 0, 'h', 'i'} },
		"time":              func(_ *zip.Writer, h *zip.FileHeader) { h.Modified = noon },
		"mode":              func(_ *zip.Writer, h *zip.FileHeader) { h.SetMode(0o4755) },
		"flags":             func(_ *zip.Writer, h *zip.FileHeader) { h.Flags |= 0x800 },
		"compressed":        func(_ *zip.Writer, h *zip.FileHeader) { h.Method = zip.Deflate },
	} {
		var b bytes.Buffer
		z := zip.NewWriter(&b)
		for _, f := range files {
			h := &zip.FileHeader{Name: f.name, Method: zip.Store, ReaderVersion: 10}
			h.ModifiedDate = zipDay //nolint:staticcheck // as pack does
			h.SetMode(0o644)
			change(z, h)
			to, err := z.CreateHeader(h)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := to.Write(f.data); err != nil {
				t.Fatal(err)
			}
		}
		if err := z.Close(); err != nil {
			t.Fatal(err)
		}
		if v, err := Verify(save(t, b.Bytes()), public); err != nil || v.Verified || len(v.Findings) == 0 {
			t.Errorf("%s: %+v, %v", name, v, err)
		}
	}
}

// TestBombs: a small file with large sizes or many members is refused, without much memory or time.
func TestBombs(t *testing.T) {
	public, _ := testKeys(1)
	_, data := write(t, full())
	end := len(data) - endSize
	many := bytes.Clone(data)
	binary.LittleEndian.PutUint16(many[end+10:], 0xffff)
	large := bytes.Clone(data)
	entry := int(binary.LittleEndian.Uint32(large[end+16:]))
	binary.LittleEndian.PutUint32(large[entry+20:], 0xfffffffe)
	binary.LittleEndian.PutUint32(large[entry+24:], 0xfffffffe)
	overlapping := bytes.Clone(data) // all members are the first one
	for at := entry; at < end; {
		binary.LittleEndian.PutUint32(overlapping[at+42:], 0)
		name, extra := overlapping[at+28:], overlapping[at+30:]
		at += 46 + int(binary.LittleEndian.Uint16(name)) + int(binary.LittleEndian.Uint16(extra))
	}
	var bomb bytes.Buffer
	z := zip.NewWriter(&bomb)
	to, err := z.Create(pageName)
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if _, err := to.Write(make([]byte, 1<<20)); err != nil {
			t.Fatal(err)
		}
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	for want, data := range map[string][]byte{"65535 members": many, "ends outside of the file": large,
		"is compressed": bomb.Bytes(), "manifest.sig differs from its checksum": overlapping} {
		v, err := Verify(save(t, data), public)
		if err != nil || v.Verified || !strings.Contains(strings.Join(v.Findings, "\n"), want) {
			t.Errorf("want %q: %+v, %v", want, v, err)
		}
	}
}

// TestSizes: a report that could not be verified is not written, and a file that is too large is not read.
func TestSizes(t *testing.T) {
	public, private := testKeys(1)
	path, data := write(t, full())
	limit := maxContent
	defer func() { maxContent = limit }()
	maxContent = 1000
	var b bytes.Buffer
	if _, err := full().Write(&b, private); err == nil || !strings.Contains(err.Error(), "--paths 0") || b.Len() > 0 {
		t.Errorf("a large report: %v", err)
	}
	maxContent = len(data) - maxHeaders - 1
	if v, err := Verify(path, public); err == nil || !strings.Contains(err.Error(), "it is not a report") {
		t.Errorf("a large file: %+v, %v", v, err)
	}
	if v, err := Verify(t.TempDir(), public); err == nil || !strings.Contains(err.Error(), "is not a regular file") {
		t.Errorf("a folder: %+v, %v", v, err)
	}
}

// TestUnlisted: a member that a report may have, and that this report does not have, is found.
func TestUnlisted(t *testing.T) {
	public, _ := testKeys(1)
	r := full()
	r.Audit = nil
	r.RecordMissing(&r.Audit, "there is none")
	_, data := write(t, r)
	added := append(filesOf(t, data), file{"audit.json", []byte("[]\n")})
	v, err := Verify(save(t, packed(t, added)), public)
	if err != nil || v.Verified || !strings.Contains(strings.Join(v.Findings, "\n"), "audit.json is not in the") {
		t.Errorf("%+v, %v", v, err)
	}
}

// TestLies: the holder of the key cannot sign a page that shows something else than the JSON files, or JSON that two
// readers read in two ways.
func TestLies(t *testing.T) {
	public, private := testKeys(1)
	_, data := write(t, full())
	files := filesOf(t, data)
	lie := func(name, old, with string) []byte {
		return signed(t, private, edited(files, name, replaced(old, with)))
	}
	for name, f := range map[string]forgery{
		"page":          {"does not show what the JSON files say", lie(pageName, "not retirable", "retirable")},
		"script":        {"does not show what the JSON files say", lie(pageName, "</body>", "<script></script>")},
		"JSON":          {"does not show what the JSON files say", lie("counters.json", `"edeks": 7`, `"edeks": 8`)},
		"twice a field": {"is not the JSON", lie("counters.json", `"edeks": 7`, "\"edeks\": 8,\n    \"edeks\": 7")},
		"other case":    {"is not the JSON", lie("counters.json", `"edeks": 7`, `"Edeks": 7`)},
		"field added":   {"is not the JSON", lie("counters.json", `"edeks": 7`, "\"edeks\": 7,\n    \"more\": 1")},
		"blanks":        {"is not the JSON", lie("counters.json", `"edeks": 7`, `"edeks":  7`)},
		"two values":    {"is not the JSON", lie("counters.json", "]\n", "]\n[]\n")},
		"about":         {"name another time, host or key", lie(aboutName, `"host": "kms1"`, `"host": "kms2"`)},
		"part hidden":   {"does not name the parts", lie(aboutName, `"made": true`, `"made": false`)},
		"part left out": {"does not name the parts", signed(t, private, without(files, "verdict.json"))},
		"no page":       {"the manifest does not name index.html", signed(t, private, without(files, pageName))},
		"named twice": {"names \"index.html\" twice", signed(t, private, files, func(m *Manifest) {
			m.Members = append(m.Members, m.Members[0])
		})},
		"other order": {"in their order", signed(t, private, files, func(m *Manifest) { slices.Reverse(m.Members) })},
		"another key": {"and names another key", signed(t, private, files, func(m *Manifest) {
			m.Signer = "sha256:00"
		})},
	} {
		v, err := Verify(save(t, f.data), public)
		if err != nil || v.Verified || !strings.Contains(strings.Join(v.Findings, "\n"), f.want) {
			t.Errorf("%s: want %q: %+v, %v", name, f.want, v, err)
		}
	}
	doubled := func(m []byte) []byte {
		return bytes.Replace(m, []byte(`  "host": "kms1"`), []byte("  \"host\": \"kms2\",\n  \"host\": \"kms1\""), 1)
	}
	twice := edited(files, manifestName, doubled)
	twice[1].data = ed25519.Sign(private, twice[0].data)
	v, err := Verify(save(t, packed(t, twice)), public)
	if err != nil || v.Verified || !strings.Contains(strings.Join(v.Findings, "\n"), "manifest.json is not the JSON") {
		t.Errorf("twice a field of the manifest: %+v, %v", v, err)
	}
	for name, data := range map[string][]byte{
		"manifest": signed(t, private, files, func(m *Manifest) { m.Format = "claviger migrate report manifest 2" }),
		"about":    lie(aboutName, format, "claviger migrate report 2")} {
		if v, err := Verify(save(t, data), public); err == nil || !strings.Contains(err.Error(), "a newer one") {
			t.Errorf("another format of the %s: %+v, %v", name, v, err)
		}
	}
}
