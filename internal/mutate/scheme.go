package main

import (
	"cmp"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// A scheme is the code of a package with all its mutants in it, each behind a
// condition that is true only in the process that tries this mutant. So the
// compiler runs once for a package, instead of once for each mutant.
type scheme struct {
	files map[string]string // relative to the module -> content
	// spans are the positions of each mutant in its file, in bytes.
	spans map[int][]span
}

type span struct {
	file       string
	start, end int
}

// An insertion is one half of an edit: the text before or after the edited code.
type insertion struct {
	at     int  // where the text is inserted, in bytes of the original
	other  int  // where the other half is inserted
	closes bool // this is the half after the code
	order  int  // the number of earlier insertions in the file
	text   string
	mutant int
}

// newScheme puts the mutants into the files. A mutant's number is its place in
// the list all, from 1. The mutants whose numbers are in excluded are left out.
func newScheme(all []Mutant, sources map[string]string, excluded map[int]bool) scheme {
	byFile := map[string][]insertion{}
	for i, m := range all {
		if excluded[i+1] {
			continue
		}
		number := strings.NewReplacer("§", strconv.Itoa(i+1))
		for _, e := range m.edits {
			of := byFile[m.File]
			byFile[m.File] = append(of,
				insertion{at: e.start, other: e.end, order: len(of), mutant: i + 1,
					text: number.Replace(e.before)},
				insertion{at: e.end, other: e.start, order: len(of), mutant: i + 1, closes: true,
					text: number.Replace(e.after)})
		}
	}
	s := scheme{files: map[string]string{}, spans: map[int][]span{}}
	for file, all := range byFile {
		s.files[file] = s.insert(file, sources[file], all)
	}
	return s
}

// insert returns the source with the insertions. If several belong to one place,
// the inner part ends first, and the outer part begins first.
func (s *scheme) insert(file, source string, all []insertion) string {
	slices.SortStableFunc(all, func(a, b insertion) int {
		switch {
		case a.at != b.at:
			return cmp.Compare(a.at, b.at)
		case a.closes != b.closes:
			if a.closes {
				return -1
			}
			return 1
		case a.other != b.other:
			return cmp.Compare(b.other, a.other)
		case a.closes:
			return cmp.Compare(b.order, a.order)
		}
		return cmp.Compare(a.order, b.order)
	})
	var text strings.Builder
	open := map[int][]int{} // the places where a mutant's parts begin
	last := 0
	for _, n := range all {
		text.WriteString(source[last:n.at])
		last = n.at
		if !n.closes {
			open[n.mutant] = append(open[n.mutant], text.Len())
		}
		text.WriteString(n.text)
		if n.closes {
			of := open[n.mutant]
			s.spans[n.mutant] = append(s.spans[n.mutant], span{file, of[len(of)-1], text.Len()})
			open[n.mutant] = of[:len(of)-1]
		}
	}
	text.WriteString(source[last:])
	return text.String()
}

// support is the file that each package of a scheme gets. For each mutant that a
// process reaches, it sets a byte of the file CLAVIGER_MUTANTS_REACHED. The process
// maps that file when it starts, so a test may limit the size of files, or go on as
// another user.
func support(pkg string, count int) string {
	return fmt.Sprintf(`package %s

import (
	mutantOS "os"
	mutantConv "strconv"
	mutantSys "syscall"
)

var (
	mutantTried, _ = mutantConv.Atoi(mutantOS.Getenv("CLAVIGER_MUTANT"))
	mutantsReached = mutantMap(%d)
)

func mutantMap(size int) []byte {
	f, err := mutantOS.OpenFile(mutantOS.Getenv("CLAVIGER_MUTANTS_REACHED"), mutantOS.O_RDWR, 0)
	if err != nil {
		return make([]byte, size)
	}
	defer f.Close()
	b, err := mutantSys.Mmap(int(f.Fd()), 0, size, mutantSys.PROT_READ|mutantSys.PROT_WRITE, mutantSys.MAP_SHARED)
	if err != nil {
		panic(err)
	}
	return b
}

func mutant(n int) bool {
	mutantsReached[n] = 1
	return n == mutantTried
}

func mutantError(n int, err error) error {
	if mutant(n) {
		return nil
	}
	return err
}

func mutantCall(n int, call func() error) error {
	if mutant(n) {
		return nil
	}
	return call()
}
`, pkg, count+1)
}

var compilerError = regexp.MustCompile(`(?m)^(?:\./)?([^\s:]+\.go):(\d+):(\d+): `)

// refused returns the mutants that cause the compiler's errors: the smallest mutant
// around each error, or else all mutants of the line.
func (s *scheme) refused(errors string) map[int]bool {
	found := map[int]bool{}
	for _, m := range compilerError.FindAllStringSubmatch(errors, -1) {
		line, _ := strconv.Atoi(m[2])
		column, _ := strconv.Atoi(m[3])
		for file, text := range s.files {
			if file != m[1] && !strings.HasSuffix(m[1], "/"+file) && !strings.HasSuffix(file, "/"+m[1]) {
				continue
			}
			start := lineStart(text, line)
			s.around(file, start+column-1, start, start+strings.IndexByte(text[start:]+"\n", '\n'), found)
		}
	}
	return found
}

// around adds the smallest mutant around a place, or else the mutants that touch the
// line from start to end.
func (s *scheme) around(file string, at, start, end int, found map[int]bool) {
	best, size := 0, 0
	for n, spans := range s.spans {
		for _, p := range spans {
			if p.file == file && p.start <= at && at < p.end && (best == 0 || p.end-p.start < size) {
				best, size = n, p.end-p.start
			}
		}
	}
	if best != 0 {
		found[best] = true
		return
	}
	for n, spans := range s.spans {
		for _, p := range spans {
			if p.file == file && p.start < end && p.end > start {
				found[n] = true
			}
		}
	}
}

func lineStart(text string, line int) int {
	at := 0
	for range line - 1 {
		next := strings.IndexByte(text[at:], '\n')
		if next < 0 {
			return at
		}
		at += next + 1
	}
	return at
}
