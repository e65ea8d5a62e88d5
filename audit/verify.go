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

// Finding is a problem or a remark of Verify.
type Finding struct {
	File string `json:"file,omitempty"`
	Line int    `json:"line,omitempty"` // from 1; 0: the whole file, or the end of the log
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

// Report is the result of Verify.
type Report struct {
	Files   []string `json:"files"` // in the order of their records
	Records uint64   `json:"records"`
	First   uint64   `json:"first"` // seq of the first record
	Last    uint64   `json:"last"`  // seq of the last record
	Node    string   `json:"node"`
	Keyed   bool     `json:"keyed"`          // the hashes were made, and checked, with a key
	Lost    uint64   `json:"lost,omitempty"` // events that the log could not take
	// Findings are problems: records that were removed, changed or reordered.
	Findings []Finding `json:"findings"`
	// Notes are remarks: for example, where a chain begins, or the rest of a record after a crash.
	Notes []Finding `json:"notes"`
	// More is the number of findings after the first 1,000.
	More int `json:"more,omitempty"`
}

const maxFindings = 1000

// VerifyConfig has the key and the heads for Verify.
type VerifyConfig struct {
	// Key is the key of the chain's hashes; nil if they were made without a key. If Key is set, a chain without a key
	// is a finding.
	Key secret.Bytes
	// Heads are ends of the chain that were stored outside of it. If the chain ends before a head, or has another
	// record at its number, records were cut off or replaced.
	Heads []Head
}

// Verify reads the files of one node's chain, in any order, also files that gzip has compressed. It finds records that
// were removed, changed or reordered, and reports them. The error is only for files that cannot be read.
func Verify(paths []string, cfg VerifyConfig) (*Report, error) {
	files, err := inOrder(paths)
	if err != nil {
		return nil, err
	}
	v := &verifier{cfg: cfg, seal: newSealer(cfg.Key), heads: map[uint64][]int{}}
	v.report.Keyed = len(cfg.Key) > 0
	v.report.Files, v.report.Findings, v.report.Notes = []string{}, []Finding{}, []Finding{}
	for i, h := range cfg.Heads {
		v.heads[h.Seq] = append(v.heads[h.Seq], i)
	}
	for _, f := range files {
		v.report.Files = append(v.report.Files, f)
		if err := v.file(f); err != nil {
			return nil, err
		}
	}
	if err := v.noteUnwritten(); err != nil {
		return nil, err
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

// lines reads lines of at most maxRecord bytes.
type lines struct{ r *bufio.Reader }

func newLines(r io.Reader) *lines { return &lines{bufio.NewReaderSize(r, maxRecord+1)} }

// next returns a line without its newline. whole is false for a last line without a newline, and for a line that is
// too long; of such a line, next returns the beginning.
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

// verifier is the state of Verify.
type verifier struct {
	cfg    VerifyConfig
	seal   sealer
	report Report
	heads  map[uint64][]int // indexes of cfg.Heads by seq

	seq     uint64 // of the last record
	last    digest
	started bool
	// broken is the finding for the previous line if that was not a record. settle reports it when the next record is
	// known.
	broken *Finding
	length int // of that line in bytes
}

func (v *verifier) addFinding(f Finding) {
	if len(v.report.Findings) == maxFindings {
		v.report.More++
		return
	}
	v.report.Findings = append(v.report.Findings, f)
}

func (v *verifier) addNote(f Finding) {
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

// settle reports a broken line before the record next. If next is a begin record that counts the bytes of the line,
// a crash left the line unfinished, so it is only a note.
func (v *verifier) settle(next *Record) {
	if v.broken == nil {
		return
	}
	if next != nil && next.Kind == BeginRecord && next.Torn == v.length {
		v.broken.What = fmt.Sprintf("%d bytes of an unfinished record, which the next start of the server recorded",
			v.length)
		v.addNote(*v.broken)
	} else {
		v.addFinding(*v.broken)
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
		v.addFinding(f)
	}
	prev, _ := parseDigest(r.Prev) // ParseRecord has checked it
	hashed, sum, _ := split(line)
	v.links(at, &r, prev, say)
	if large := r.Kind == LargeRecord; large || v.seal.sum(prev, hashed) != sum {
		switch {
		case large:
			say("record %d, of %d bytes, was replaced by a short one, as in a stream of datagrams; the file of the "+
				"log must have the whole record", r.Seq, r.Bytes)
		case r.Kind == BeginRecord && r.MAC == "hmac-sha256" && len(v.cfg.Key) == 0:
			say("the hashes were made with a key, and no key was given; this chain cannot be verified without its key")
		case r.Kind == BeginRecord && r.MAC == "sha256" && len(v.cfg.Key) > 0:
			say("the hashes were made without a key, but a key was given")
		case v.report.Keyed:
			say("record %d was changed (or the key is wrong): its hash does not match its content with this key",
				r.Seq)
		default:
			say("record %d was changed: its hash does not match its content", r.Seq)
		}
	}
	for _, i := range v.heads[r.Seq] {
		if v.cfg.Heads[i].Hash != sum.String() {
			say("record %d is not the record that the head of %s names", r.Seq, v.cfg.Heads[i].Time)
		}
	}
	v.addLogRecord(at, &r)
	v.seq, v.last, v.started = r.Seq, sum, true
	v.report.Records++
	v.report.Last, v.report.Node = r.Seq, r.Node
}

// links compares a record with the previous record.
func (v *verifier) links(at Finding, r *Record, prev digest, say func(string, ...any)) {
	switch {
	case !v.started:
		v.report.First = r.Seq
		if r.Seq == 1 && prev == (digest{}) {
			return
		}
		if r.Seq == 1 || prev == (digest{}) {
			say("record %d has the previous hash %s: a chain begins with record 1, whose previous hash is 0", r.Seq,
				r.Prev)
			return
		}
		at.What = fmt.Sprintf("the chain continues here after record %d, which is in an earlier file that was not "+
			"given", r.Seq-1)
		v.addNote(at)
	case r.Seq == v.seq+1 && prev == v.last:
		if r.Node != v.report.Node {
			say("record %d is of node %q, the earlier records are of %q; verify the files of each node separately",
				r.Seq, r.Node, v.report.Node)
		}
	case r.Seq == 1 && prev == (digest{}):
		say("another chain begins here; records between record %d and this record may be missing", v.seq)
	case r.Seq == v.seq+1:
		say("record %d does not follow the previous record, which was changed or replaced", r.Seq)
	case r.Seq > v.seq+1:
		say("%s before this record", missing(v.seq+1, r.Seq-1))
	default:
		say("record %d comes after record %d: it was moved or repeated", r.Seq, v.seq)
	}
}

func missing(from, to uint64) string {
	if from == to {
		return fmt.Sprintf("record %d is missing", from)
	}
	return fmt.Sprintf("records %d to %d are missing", from, to)
}

// addLogRecord adds a note or a finding for a record about the log itself.
func (v *verifier) addLogRecord(at Finding, r *Record) {
	switch {
	case r.Kind == LostRecord:
		v.report.Lost += r.Count
		at.What = fmt.Sprintf("%d events before this record were not recorded because the log could not be written",
			r.Count)
	case r.Missing > 0:
		at.What = fmt.Sprintf("at its start, the server found that %d records at the end of the log were missing, "+
			"by the stored head", r.Missing)
		if r.Seq == v.report.First { // there is no gap in the numbers that shows them
			v.addFinding(at)
			return
		}
	default:
		return
	}
	v.addNote(at)
}

// noteUnwritten adds a note for events that a process could not write, and of which the chain has no record yet.
func (v *verifier) noteUnwritten() error {
	for _, path := range v.report.Files {
		n, err := readUnwritten(path)
		if err != nil {
			return err
		}
		if n > 0 {
			v.report.Lost += n
			v.addNote(Finding{File: path, What: fmt.Sprintf("%d events at the end could not be written, or wait to be "+
				"written; no record says so yet", n)})
		}
	}
	return nil
}

// end compares the chain's end with the heads.
func (v *verifier) end() {
	if !v.started {
		v.addFinding(Finding{What: "there is no record in the files"})
	}
	for _, h := range v.cfg.Heads {
		switch {
		case h.Seq > v.seq:
			v.addFinding(Finding{What: fmt.Sprintf("%s at the end: the log had record %d at %s",
				missing(v.seq+1, h.Seq), h.Seq, h.Time)})
		case v.started && h.Node != v.report.Node:
			v.addFinding(Finding{What: fmt.Sprintf("the stored head is of node %q, the files are of %q", h.Node,
				v.report.Node)})
		case h.Seq < v.report.First:
			v.addNote(Finding{What: fmt.Sprintf("record %d, which the head of %s names, is before the files that were "+
				"given", h.Seq, h.Time)})
		}
	}
}
