package audit

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"slices"

	"claviger/secret"
)

// Finding is one thing that Verify found.
type Finding struct {
	File string `json:"file,omitempty"`
	Line int    `json:"line,omitempty"` // from 1; 0: of the file as a whole, or of the end
	Seq  uint64 `json:"seq,omitempty"`  // of the record in that line
	What string `json:"what"`
}

func (f Finding) String() string {
	switch {
	case f.File == "":
		return f.What
	case f.Line == 0:
		return f.File + ": " + f.What
	}
	return fmt.Sprintf("%s:%d: %s", f.File, f.Line, f.What)
}

// Report is what Verify says.
type Report struct {
	Files   []string `json:"files"` // in the order of their records
	Records uint64   `json:"records"`
	First   uint64   `json:"first"` // seq of the first and the last record
	Last    uint64   `json:"last"`
	Node    string   `json:"node"`
	Keyed   bool     `json:"keyed"` // the hashes were made, and checked, with a key
	// Findings are what must not be: removed, changed, reordered records.
	Findings []Finding `json:"findings"`
	// Notes are what a reader should know: where a chain began, what a crash left.
	Notes []Finding `json:"notes"`
	// More counts findings beyond the first 1,000.
	More int `json:"more,omitempty"`
}

const maxFindings = 1000

// VerifyConfig says what to verify against.
type VerifyConfig struct {
	// Key is that of the chain's hashes; nil where it has none. A chain without a
	// key does not pass where one is given.
	Key secret.Bytes
	// Heads are what was noted of the chain's end outside of it: a chain that ends
	// before one of them, or has another record there, was cut or replaced.
	Heads []Head
}

// Verify reads the files of one node's chain, in whatever order they are named, those that
// gzip has compressed too, and finds what was removed, changed or reordered. The error is of reading; what
// was found is in the report.
func Verify(paths []string, cfg VerifyConfig) (*Report, error) {
	files, err := inOrder(paths)
	if err != nil {
		return nil, err
	}
	v := &verifier{cfg: cfg, seal: newSealer(cfg.Key), at: map[uint64][]int{}}
	v.report.Keyed = len(cfg.Key) > 0
	v.report.Files, v.report.Findings, v.report.Notes = []string{}, []Finding{}, []Finding{}
	for i, h := range cfg.Heads {
		v.at[h.Seq] = append(v.at[h.Seq], i)
	}
	for _, f := range files {
		v.report.Files = append(v.report.Files, f)
		if err := v.file(f); err != nil {
			return nil, err
		}
	}
	v.end()
	return &v.report, nil
}

// inOrder sorts files by the number of their first record.
func inOrder(paths []string) ([]string, error) {
	first := make(map[string]uint64, len(paths))
	for _, p := range paths {
		f, err := openLog(p)
		if err != nil {
			return nil, err
		}
		in := newLines(f)
		for {
			line, _, err := in.next()
			if errors.Is(err, io.EOF) {
				break
			}
			if err != nil {
				_ = f.Close()
				return nil, err
			}
			if r, err := ParseRecord(line); err == nil {
				first[p] = r.Seq
				break
			}
		}
		if err := f.Close(); err != nil {
			return nil, err
		}
	}
	files := slices.Clone(paths)
	slices.SortStableFunc(files, func(a, b string) int {
		switch x, y := first[a], first[b]; {
		case x < y:
			return -1
		case x > y:
			return 1
		}
		return 0
	})
	return slices.Compact(files), nil
}

// lines reads lines of bounded length.
type lines struct{ r *bufio.Reader }

func newLines(r io.Reader) *lines { return &lines{bufio.NewReaderSize(r, maxRecord+1)} }

// next returns a line without its newline; whole is false for the last one where
// it has none, and for one that is too long, of which the beginning is returned.
func (l *lines) next() (line []byte, whole bool, err error) {
	line, err = l.r.ReadSlice('\n')
	switch {
	case err == nil:
		return line[:len(line)-1], true, nil
	case errors.Is(err, bufio.ErrBufferFull):
		head := bytes.Clone(line[:200])
		for errors.Is(err, bufio.ErrBufferFull) {
			_, err = l.r.ReadSlice('\n')
		}
		if err != nil && !errors.Is(err, io.EOF) {
			return nil, false, err
		}
		return head, false, nil
	case errors.Is(err, io.EOF) && len(line) > 0:
		return line, false, nil
	}
	return nil, false, err
}

// verifier is a Verify under way.
type verifier struct {
	cfg    VerifyConfig
	seal   sealer
	report Report
	at     map[uint64][]int // indexes of cfg.Heads by seq

	seq  uint64 // of the last record
	last digest
	any  bool
	// broken: the line before was none; what it was is told when the next record
	// is known.
	broken *Finding
	length int // of that line
}

func (v *verifier) find(f Finding) {
	if len(v.report.Findings) == maxFindings {
		v.report.More++
		return
	}
	v.report.Findings = append(v.report.Findings, f)
}

func (v *verifier) note(f Finding) {
	if len(v.report.Notes) < maxFindings {
		v.report.Notes = append(v.report.Notes, f)
	}
}

func (v *verifier) file(path string) error {
	f, err := openLog(path)
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }()
	in := newLines(f)
	for n := 1; ; n++ {
		line, whole, err := in.next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return err
		}
		v.line(Finding{File: path, Line: n}, line, whole)
	}
	v.settle(nil)
	return nil
}

// settle says what the broken line before a record was: a begin record accounts
// for what a crash has left unfinished.
func (v *verifier) settle(next *Record) {
	if v.broken == nil {
		return
	}
	if next != nil && next.Kind == BeginRecord && next.Torn == v.length {
		v.broken.What = fmt.Sprintf("%d bytes of a record that was not written to its end, as the start of the "+
			"server after it has recorded", v.length)
		v.note(*v.broken)
	} else {
		v.find(*v.broken)
	}
	v.broken = nil
}

func (v *verifier) line(at Finding, line []byte, whole bool) {
	r, err := ParseRecord(line)
	if err == nil && !whole {
		err = errors.New("the line has no end")
	}
	if err != nil {
		v.settle(nil)
		at.What = err.Error()
		v.broken, v.length = &at, len(line)
		return
	}
	v.settle(&r)
	at.Seq = r.Seq
	say := func(format string, args ...any) {
		f := at
		f.What = fmt.Sprintf(format, args...)
		v.find(f)
	}
	prev, _ := parseDigest(r.Prev) // ParseRecord has looked
	hashed, sum, _ := split(line)
	v.links(at, &r, prev, say)
	if large := r.Kind == LargeRecord; large || v.seal.sum(prev, hashed) != sum {
		switch {
		case large:
			say("record %d, of %d bytes, is not here: a short one stands in its place, as streams of datagrams have "+
				"it; the log's file must have it whole", r.Seq, r.Bytes)
		case r.Kind == BeginRecord && r.MAC == "hmac-sha256" && len(v.cfg.Key) == 0:
			say("the hashes were made with a key, which was not given; nothing can be said of this chain without it")
		case r.Kind == BeginRecord && r.MAC == "sha256" && len(v.cfg.Key) > 0:
			say("the hashes were made without a key, though one was given")
		case v.report.Keyed:
			say("record %d was changed (or the key is another): its hash is not that of its content under the key",
				r.Seq)
		default:
			say("record %d was changed: its hash is not that of its content", r.Seq)
		}
	}
	for _, i := range v.at[r.Seq] {
		if v.cfg.Heads[i].Hash != sum.String() {
			say("record %d is not the one that was noted as the end of the log at %s", r.Seq, v.cfg.Heads[i].Time)
		}
	}
	v.tell(at, &r)
	v.seq, v.last, v.any = r.Seq, sum, true
	v.report.Records++
	v.report.Last, v.report.Node = r.Seq, r.Node
}

// links compares a record with the one before it.
func (v *verifier) links(at Finding, r *Record, prev digest, say func(string, ...any)) {
	switch {
	case !v.any:
		v.report.First = r.Seq
		if r.Seq == 1 && prev == (digest{}) {
			return
		}
		if r.Seq == 1 || prev == (digest{}) {
			say("record %d says that it follows %s: a chain begins with record 1, which follows nothing", r.Seq, r.Prev)
			return
		}
		at.What = fmt.Sprintf("the chain goes on here from record %d, in an earlier file that was not given", r.Seq-1)
		v.note(at)
	case r.Seq == v.seq+1 && prev == v.last:
		if r.Node != v.report.Node {
			say("record %d is of node %q, those before of %q; verify the files of each node by themselves", r.Seq,
				r.Node, v.report.Node)
		}
	case r.Seq == 1 && prev == (digest{}):
		say("another chain begins here: what was written between record %d and this one, if anything, is missing",
			v.seq)
	case r.Seq == v.seq+1:
		say("record %d does not follow the record before it, which was changed or put in the place of another", r.Seq)
	case r.Seq > v.seq+1:
		say("%s before this one", missing(v.seq+1, r.Seq-1))
	default:
		say("record %d stands behind record %d: it was moved, or stands there twice", r.Seq, v.seq)
	}
}

func missing(from, to uint64) string {
	if from == to {
		return fmt.Sprintf("record %d is missing", from)
	}
	return fmt.Sprintf("records %d to %d are missing", from, to)
}

// tell notes what records say of the log itself.
func (v *verifier) tell(at Finding, r *Record) {
	switch {
	case r.Kind == LostRecord:
		at.What = fmt.Sprintf("%d events were not recorded before this record, since the log could not be written",
			r.Count)
	case r.Missing > 0:
		at.What = fmt.Sprintf("the server found at its start that the log ended %d records before the end that had "+
			"been noted: they are missing", r.Missing)
		if r.Seq == v.report.First { // no gap before it tells of them
			v.find(at)
			return
		}
	default:
		return
	}
	v.note(at)
}

// end compares the chain's end with what was noted of it.
func (v *verifier) end() {
	if !v.any {
		v.find(Finding{What: "there is no record in the files"})
	}
	for _, h := range v.cfg.Heads {
		switch {
		case h.Seq > v.seq:
			v.find(Finding{What: fmt.Sprintf("%s at the end: the log had record %d at %s", missing(v.seq+1, h.Seq),
				h.Seq, h.Time)})
		case v.any && h.Node != v.report.Node:
			v.find(Finding{What: fmt.Sprintf("the end that was noted is of node %q, the files are of %q", h.Node,
				v.report.Node)})
		case h.Seq < v.report.First:
			v.note(Finding{What: fmt.Sprintf("record %d, which was noted as the end at %s, lies before the files "+
				"that were given", h.Seq, h.Time)})
		}
	}
}
