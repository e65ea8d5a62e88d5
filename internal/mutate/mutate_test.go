package main

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
)

const source = `package room

import "os"

type Box struct{ f *os.File }

func (b *Box) Close(n int) (err error) {
	defer b.f.Close()
	if n < 3 && b.f != nil {
		clear([]byte{1})
	}
	if err := b.f.Sync(); err != nil {
		return err
	}
	for n > 0 {
		n--
	}
	_ = b.f.Close()
	return b.f.Close()
}

func ok(n int) bool {
	if n == 1 {
		return true
	}
	return false
}
`

// TestRules: each rule finds the places that it applies to, and makes the change that it describes.
func TestRules(t *testing.T) {
	all, err := mutantsOf("room", "room/box.go", []byte(source))
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for i, m := range all {
		without := map[int]bool{}
		for other := range all {
			without[other+1] = other != i
		}
		after := newScheme(all, map[string]string{"room/box.go": source}, without).files["room/box.go"]
		line := strings.Split(after, "\n")[m.Line-1]
		got = append(got, m.ID+" => "+strings.ReplaceAll(strings.TrimSpace(line), fmt.Sprint("(", i+1), "(#"))
	}
	want := []string{
		"room Box.Close drop-call: defer b.f.Close() => if !mutant(#) { defer b.f.Close() }",
		"room Box.Close negate: if n < 3 && b.f != nil { => if mutant(#) != (n < 3 && b.f != nil) {",
		"room Box.Close and-or: if n < 3 && b.f != nil { => " +
			"if (mutant(#) != ((mutant(#) != (n < 3)) && (mutant(#) != (b.f != nil)))) {",
		"room Box.Close drop-call: clear([]byte{1}) => if !mutant(#) { clear([]byte{1}) }",
		"room Box.Close drop-check: if err := b.f.Sync(); err != nil { => " +
			"if err := b.f.Sync(); !mutant(#) && (err != nil) {",
		"room Box.Close drop-sync: if err := b.f.Sync(); err != nil { => " +
			"if err := mutantCall(#, func() error { return b.f.Sync() }); err != nil {",
		"room Box.Close negate: for n > 0 { => for mutant(#) != (n > 0) {",
		"room Box.Close drop-call: _ = b.f.Close() => if !mutant(#) { _ = b.f.Close() }",
		"room Box.Close nil-error: return b.f.Close() => return mutantError(#, b.f.Close())",
		"room Box.Close drop-sync: return b.f.Close() => return mutantCall(#, func() error { return b.f.Close() })",
		"room ok negate: if n == 1 { => if mutant(#) != (n == 1) {",
		"room ok truth: return true => return mutant(#) != true",
		"room ok truth: return false => return mutant(#) != false",
	}
	if !slices.Equal(got, want) {
		t.Errorf("got:\n%s\nwant:\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

// TestNamesOutliveEdits: new lines before a mutant do not change its name, and two equal lines of a function have two
// names.
func TestNamesOutliveEdits(t *testing.T) {
	root := t.TempDir()
	write(t, root, "room/a.go", "package room\n\nfunc f() {\n\tg()\n\tg()\n}\n\nfunc g() {}\n")
	before, err := mutants(root, "room")
	if err != nil {
		t.Fatal(err)
	}
	write(t, root, "room/a.go", "package room\n\n// A comment.\n\nfunc f() {\n\tg()\n\tg()\n}\n\nfunc g() {}\n")
	after, err := mutants(root, "room")
	if err != nil {
		t.Fatal(err)
	}
	want := []string{"room f drop-call: g()", "room f drop-call: g() #2"}
	if !slices.Equal(ids(before), want) || !slices.Equal(ids(after), want) {
		t.Errorf("%q, then %q, want %q", ids(before), ids(after), want)
	}
}

// TestScheme: all mutants of a file are compiled together. Only the mutant that is tried has an effect, and it has the
// effect of its rule, also beside and inside other mutants.
func TestScheme(t *testing.T) {
	if testing.Short() {
		t.Skip("builds test binaries")
	}
	r := decisions(t)
	show := func(env string) string {
		_, out := r.test(t.Context(), r.binaries["room"], "room", "", time.Minute, env)
		first, _, _ := strings.Cut(string(out), "\n")
		return first
	}
	plain := "ffffftftftftfttt f"
	if got := show("CLAVIGER_MUTANT=0"); got != plain {
		t.Errorf("no mutant: %s, want %s", got, plain)
	}
	want := map[string]string{
		"room and and-or: func and(a, b, c bool) bool { return a && b && c }":    "fftfftttfttttttt f",
		"room and and-or: func and(a, b, c bool) bool { return a && b && c } #2": "ffffftttftttfttt f",
		"room or negate: if a || b {":                                            "ftftfffffffffftf f",
		"room or and-or: if a || b {":                                            "fffffffffffffttt f",
		"room or truth: return true":                                             "fffffffffffffftf f",
		"room or truth: return false":                                            "ftftftftftftfttt f",
		"room named and-or: func named(a, b yes) yes { return a && b }":          "does not compile",
	}
	for i, m := range r.all {
		got := "does not compile"
		if !r.refused[i+1] {
			got = show(fmt.Sprint("CLAVIGER_MUTANT=", i+1))
		}
		if got != want[m.ID] {
			t.Errorf("%s:\n%s, want\n%s", m.ID, got, want[m.ID])
		}
	}
	if len(r.all) != len(want) {
		t.Errorf("%d mutants: %q", len(r.all), ids(r.all))
	}
}

// decisions is a room whose test prints what its functions decide for each input.
func decisions(t *testing.T) *room {
	t.Helper()
	root := t.TempDir()
	write(t, root, "go.mod", "module small\n\ngo 1.26\n")
	write(t, root, "room/room.go", `package room

type yes bool

func and(a, b, c bool) bool { return a && b && c }

func or(a, b bool) bool {
	if a || b {
		return true
	}
	return false
}

func named(a, b yes) yes { return a && b }
`)
	write(t, root, "room/room_test.go", `package room

import (
	"fmt"
	"testing"
)

func TestShow(t *testing.T) {
	show := func(all ...bool) {
		for _, b := range all {
			fmt.Print(fmt.Sprint(b)[:1])
		}
	}
	for i := range 8 {
		a, b, c := i&4 > 0, i&2 > 0, i&1 > 0
		show(and(a, b, c), or(a, b))
	}
	fmt.Print(" ")
	show(bool(named(true, false)))
	fmt.Println()
}
`)
	all, err := mutants(root, "room")
	if err != nil {
		t.Fatal(err)
	}
	r := &room{runner: &runner{root: root, work: t.TempDir()}, name: "room", all: all, packages: []string{"room"}}
	if err := r.open(t.Context(), func(int, int) {}); err != nil {
		t.Fatal(err)
	}
	return r
}

// TestReachedWithoutFiles: a test that can open and write no file, as on a full disk or as another user, still records
// the mutants that it reaches.
func TestReachedWithoutFiles(t *testing.T) {
	if testing.Short() {
		t.Skip("builds test binaries")
	}
	root := t.TempDir()
	write(t, root, "go.mod", "module small\n\ngo 1.26\n")
	write(t, root, "room/room.go", "package room\n\nfunc and(a, b bool) bool { return a && b }\n")
	write(t, root, "room/room_test.go", `package room

import (
	"syscall"
	"testing"
)

func TestAnd(t *testing.T) {
	for _, limit := range []int{syscall.RLIMIT_FSIZE, syscall.RLIMIT_NOFILE} {
		if err := syscall.Setrlimit(limit, &syscall.Rlimit{}); err != nil {
			t.Fatal(err)
		}
	}
	and(true, false)
}
`)
	all, err := mutants(root, "room")
	if err != nil {
		t.Fatal(err)
	}
	r := &room{runner: &runner{root: root, work: t.TempDir()}, name: "room", all: all, packages: []string{"room"}}
	if err := r.open(t.Context(), func(int, int) {}); err != nil {
		t.Fatal(err)
	}
	if len(all) != 1 || len(r.tests) != 1 || !r.tests[0].reaches[1] {
		t.Errorf("mutants %q, tests %+v", ids(all), r.tests)
	}
}

// TestSample: the same seed and number choose the same mutants, in the order of the code. A smaller sample is part of a
// larger one.
func TestSample(t *testing.T) {
	var all []Mutant
	for i := range 100 {
		all = append(all, Mutant{ID: fmt.Sprint("m", i)})
	}
	ten, again, twenty := sample(all, 10, "1"), sample(all, 10, "1"), sample(all, 20, "1")
	if !slices.Equal(ten, again) || slices.Equal(ten, sample(all, 10, "2")) {
		t.Error("a sample does not depend only on its seed")
	}
	if !slices.IsSorted(twenty) {
		t.Error("the sample is not in the order of the code")
	}
	for _, n := range ten {
		if !slices.Contains(twenty, n) {
			t.Errorf("%d is in the small sample, but not in the larger one", n)
		}
	}
	if len(sample(all, 1000, "1")) != 100 {
		t.Error("a sample of more mutants than there are does not have all of them")
	}
}

// TestReasons: a name without a reason, a reason without a name, and the same
// name twice are errors.
func TestReasons(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "reasons")
	for text, want := range map[string]int{
		"# a comment\n\na f negate: x\n\tthe reason\nb g negate: y\n\tanother\n": 2,
		"":                          0,
		"a f negate: x\n":           -1,
		"\ta reason\n":              -1,
		"a\nb\n\tthe reason\n":      -1,
		"a\n\tone\na\n\ttwo\n":      -1,
		"a\n\t \n":                  -1,
		"a\n\tone\n\ttwo\nb\n\tc\n": -1,
	} {
		write(t, dir, "reasons", text)
		got, err := readReasons(path)
		if want < 0 && err == nil || want >= 0 && (err != nil || len(got) != want) {
			t.Errorf("%q: %v, %v", text, got, err)
		}
	}
}

// TestReasonFor: a reason applies to one line, or, with "*", to every line with the same text.
func TestReasonFor(t *testing.T) {
	reasons := map[string]string{"a F drop-call: defer t.Stop()": "one", "* drop-call: defer t.Stop()": "all"}
	for id, want := range map[string]string{
		"a F drop-call: defer t.Stop()":    "one",
		"a F drop-call: defer t.Stop() #2": "all",
		"b G drop-call: defer t.Stop()":    "all",
		"b G drop-call: defer u.Stop()":    "",
		"b G negate: defer t.Stop()":       "",
	} {
		if got := reasonFor(reasons, id); got != want {
			t.Errorf("%s: %q, want %q", id, got, want)
		}
	}
}

// module makes a small Go module whose test notices one of two changes. It returns its folder.
func module(t *testing.T) string {
	t.Helper()
	root := t.TempDir()
	write(t, root, "go.mod", "module small\n\ngo 1.26\n")
	write(t, root, "room/room.go", "package room\n\nvar N int\n\nfunc Add() {\n\tone()\n\tquiet()\n}\n\n"+
		"func one() { N = N + 1 }\n\nfunc quiet() {}\n")
	write(t, root, "room/room_test.go", "package room\n\nimport \"testing\"\n\nfunc TestAdd(t *testing.T) {\n"+
		"\tif Add(); N != 1 {\n\t\tt.Error(N)\n\t}\n}\n")
	write(t, root, "scripts/mutate-survivors.txt", "")
	return root
}

// TestRun: a survivor without a reason is counted, and a survivor with a reason is not. The second run uses the
// outcomes of the first. A reason for a line that does not exist is counted. The source tree does not change.
func TestRun(t *testing.T) {
	if testing.Short() {
		t.Skip("builds test binaries")
	}
	root := module(t)
	var survivors, progress bytes.Buffer
	run := func(want int) {
		t.Helper()
		survivors.Reset()
		progress.Reset()
		o := options{root: root, all: true, workers: 2, rooms: []string{"./room"},
			results: filepath.Join(root, "results"), progress: &progress, survivors: &survivors}
		if n, err := o.run(t.Context()); n != want || err != nil {
			t.Fatalf("%d survivors, %v, want %d\n%s%s", n, err, want, survivors.Bytes(), progress.Bytes())
		}
	}
	run(1)
	if got := survivors.String(); got != "room/room.go:7: no test notices this change\nroom Add drop-call: quiet()\n" {
		t.Errorf("survivors: %s", got)
	}
	if !strings.Contains(progress.String(), "2 changes: 1 killed, 0 stopped at the time limit, 1 survived") {
		t.Errorf("progress: %s", progress.Bytes())
	}
	write(t, root, "scripts/mutate-survivors.txt", "room Add drop-call: quiet()\n\tit does nothing\n")
	run(0)
	if got := progress.String(); strings.Count(got, "\n") != 1 {
		t.Errorf("changes were tried again: %s", got)
	}
	// After a new test, only the survivors are tried again.
	write(t, root, "room/more_test.go", "package room\n\nimport \"testing\"\n\nfunc TestMore(t *testing.T) {}\n")
	run(0)
	if got := progress.String(); strings.Count(got, "\n") != 3 || !strings.Contains(got, "survived: room Add") {
		t.Errorf("after a test was added: %s", got)
	}
	if err := os.Remove(filepath.Join(root, "room", "more_test.go")); err != nil {
		t.Fatal(err)
	}
	write(t, root, "scripts/mutate-survivors.txt",
		"room Add drop-call: quiet()\n\tit does nothing\nroom Add drop-call: gone()\n\tit was there\n")
	run(1)
	src, err := os.ReadFile(filepath.Join(root, "room", "room.go"))
	if err != nil || !strings.Contains(string(src), "\tone()\n\tquiet()\n") {
		t.Errorf("the tree was changed: %s, %v", src, err)
	}
	entries, err := os.ReadDir(filepath.Join(root, "room"))
	if err != nil || len(entries) != 2 {
		t.Errorf("files were left in the tree: %v, %v", entries, err)
	}
}

// TestOnly: --only chooses changes by file, function, rule or text.
func TestOnly(t *testing.T) {
	root := module(t)
	var list bytes.Buffer
	for only, want := range map[string]int{`^room/room\.go:`: 2, `^room/r\.go:`: 0, `room Add drop-call: quiet`: 1} {
		list.Reset()
		o := options{root: root, all: true, list: true, only: regexp.MustCompile(only), rooms: []string{"room"},
			results: filepath.Join(root, "results"), progress: io.Discard, survivors: &list}
		if _, err := o.run(t.Context()); err != nil || strings.Count(list.String(), "\n") != want {
			t.Errorf("--only %s: %v, want %d changes:\n%s", only, err, want, list.Bytes())
		}
	}
}

// TestChosenTests: with --tests, a change that the other tests would notice survives, and the next run tries it again.
func TestChosenTests(t *testing.T) {
	if testing.Short() {
		t.Skip("builds test binaries")
	}
	root := module(t)
	write(t, root, "room/more_test.go",
		"package room\n\nimport \"testing\"\n\nfunc TestMore(*testing.T) { Add(); N = 0 }\n")
	run := func(tests string, want int) {
		var survivors bytes.Buffer
		o := options{root: root, all: true, workers: 1, tests: regexp.MustCompile(tests), rooms: []string{"room"},
			results: filepath.Join(root, "results"), progress: io.Discard, survivors: &survivors}
		if n, err := o.run(t.Context()); n != want || err != nil {
			t.Errorf("--tests %s: %d survivors, %v, want %d:\n%s", tests, n, err, want, survivors.Bytes())
		}
	}
	run("More$", 2)
	run(".", 1)
	known, err := os.ReadFile(filepath.Join(root, "results"))
	if err != nil || strings.Count(string(known), "\n") != 1 || !strings.Contains(string(known), " killed\n") {
		t.Errorf("kept: %s, %v; want the killed change alone", known, err)
	}
}

// TestStopped: a change for which a test does not end is not counted as killed, because a busy machine looks the same.
func TestStopped(t *testing.T) {
	if testing.Short() {
		t.Skip("builds test binaries")
	}
	root := module(t)
	write(t, root, "room/room.go", "package room\n\nimport \"time\"\n\nvar N int\n\nfunc Add() {\n\tone()\n"+
		"\tfor N < 1 {\n\t\ttime.Sleep(1)\n\t}\n}\n\nfunc one() { N = N + 1 }\n")
	defer func(before time.Duration) { slack = before }(slack)
	slack = time.Second
	var progress bytes.Buffer
	o := options{root: root, all: true, workers: 1, only: regexp.MustCompile(`drop-call: one`), rooms: []string{"room"},
		results: filepath.Join(root, "results"), progress: &progress, survivors: io.Discard}
	_, err := o.run(t.Context())
	if err != nil || !strings.Contains(progress.String(), "1 changes: 0 killed, 1 stopped at the time limit") {
		t.Errorf("%v: %s", err, progress.Bytes())
	}
}

// TestNoProcessIsLeft: a process that tests have left does not outlive them.
func TestNoProcessIsLeft(t *testing.T) {
	r := runner{root: t.TempDir()}
	passed, out := r.command(t.Context(), "/bin/sh", ".", []string{"-c", "sleep 600 >/dev/null 2>&1 & echo $!"},
		time.Minute)
	pid, err := strconv.Atoi(strings.TrimSpace(string(out)))
	if err != nil || !passed {
		t.Fatalf("passed: %t, %v: %s", passed, err, out)
	}
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		state, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		if err != nil || strings.Contains(string(state), ") Z ") {
			return // gone, or a zombie that nobody has awaited yet
		}
		if time.Now().After(end) {
			t.Fatalf("process %d still runs: %s", pid, state)
		}
	}
}

// TestNoMountIsLeft: the temporary files of tests do not outlive them, nor do mounts among these files.
func TestNoMountIsLeft(t *testing.T) {
	r := runner{root: t.TempDir()}
	_, out := r.command(t.Context(), "/bin/sh", ".", []string{"-c",
		`mkdir $TMPDIR/a && touch $TMPDIR/b && echo $TMPDIR && mount -t tmpfs -o size=64k none $TMPDIR/a`}, time.Minute)
	dir, failed, _ := strings.Cut(string(out), "\n")
	if _, err := os.Stat(dir); !os.IsNotExist(err) || dir == "" {
		t.Errorf("%q: %v", dir, err)
	}
	mounts, err := os.ReadFile("/proc/self/mounts")
	if err != nil || strings.Contains(string(mounts), dir+"/a ") {
		t.Errorf("a mount is left: %v", err)
	}
	if failed != "" {
		t.Skipf("no file system can be mounted here: %s", failed)
	}
}

// TestTempOfOtherUsers: a program that tests start as another user can reach its files among the temporary files.
func TestTempOfOtherUsers(t *testing.T) {
	r := runner{root: t.TempDir()}
	passed, out := r.command(t.Context(), "/bin/sh", ".", []string{"-c", "stat -c %a $TMPDIR"}, time.Minute)
	if !passed || string(out) != "711\n" {
		t.Errorf("the mode of the folder is %s, want 711", out)
	}
}

// TestFailingTests: tests that fail without a change end the run with an error, because they show nothing about a
// mutant.
func TestFailingTests(t *testing.T) {
	if testing.Short() {
		t.Skip("builds test binaries")
	}
	root := module(t)
	write(t, root, "room/bad_test.go",
		"package room\n\nimport \"testing\"\n\nfunc TestBad(t *testing.T) { t.Fail() }\n")
	o := options{root: root, all: true, workers: 2, rooms: []string{"room"}, results: filepath.Join(root, "results"),
		progress: io.Discard, survivors: io.Discard}
	if _, err := o.run(t.Context()); err == nil || !strings.Contains(err.Error(), "fails without a change") {
		t.Errorf("run: %v", err)
	}
}

// TestTestedByAnother: a room without tests of its own is tested by the tests of another package. Without such a
// package, the run ends with an error.
func TestTestedByAnother(t *testing.T) {
	if testing.Short() {
		t.Skip("builds test binaries")
	}
	root := module(t)
	write(t, root, "sub/sub.go", "package sub\n\nvar N int\n\nfunc Add() {\n\tone()\n\tquiet()\n}\n\n"+
		"func one() { N = N + 1 }\n\nfunc quiet() {}\n")
	write(t, root, "room/sub_test.go", "package room\n\nimport (\n\t\"small/sub\"\n\t\"testing\"\n)\n\n"+
		"func TestSub(t *testing.T) {\n\tif sub.Add(); sub.N != 1 {\n\t\tt.Error(sub.N)\n\t}\n}\n")
	var survivors bytes.Buffer
	o := options{root: root, all: true, workers: 2, rooms: []string{"sub"}, results: filepath.Join(root, "results"),
		progress: io.Discard, survivors: &survivors}
	if _, err := o.run(t.Context()); err == nil || !strings.Contains(err.Error(), "sub has no tests") {
		t.Errorf("without a package that tests it: %v", err)
	}
	alsoTestedBy["sub"] = []string{"room"}
	defer delete(alsoTestedBy, "sub")
	n, err := o.run(t.Context())
	if n != 1 || err != nil || !strings.Contains(survivors.String(), "sub Add drop-call: quiet()") {
		t.Errorf("%d survivors, %v: %s", n, err, survivors.Bytes())
	}
}

// TestNamed: a named change is a failure if its test passes, or if its text is not in the file.
func TestNamed(t *testing.T) {
	if testing.Short() {
		t.Skip("builds test binaries")
	}
	root := module(t)
	entry := func(name, before, after string) string {
		return "name: " + name + "\nfile: room/room.go\npackage: ./room\ntest: TestAdd\nbefore:\n\t" + before +
			"\nafter:\n\t" + after + "\n"
	}
	write(t, root, "scripts/mutations.txt", entry("noticed", "\tone()", "\t// nothing")+
		"\n"+entry("not noticed", "\tquiet()", "\t// nothing")+entry("not there", "\ttwo()", "")+
		entry("does not build", "\tone()", "\tthree()")+
		strings.Replace(entry("no test", "\tone()", "\t// nothing"), "TestAdd", "TestNone", 1))
	var failures bytes.Buffer
	o := options{root: root, named: true, progress: io.Discard, survivors: &failures}
	n, err := o.run(t.Context())
	if n != 4 || err != nil || strings.Contains(failures.String(), "noticed: ./") {
		t.Errorf("%d, %v: %s", n, err, failures.Bytes())
	}
	for _, want := range []string{"not noticed: the test passes", "not there: the text before is 0 times",
		"does not build: the change does not build", "no test: ./room has no test TestNone"} {
		if !strings.Contains(failures.String(), want) {
			t.Errorf("%s does not contain %q", failures.Bytes(), want)
		}
	}
}

// TestParseNamed: an entry with a missing field is refused.
func TestParseNamed(t *testing.T) {
	for _, text := range []string{
		"file: a.go\n",
		"name: x\nfile: a.go\npackage: ./a\ntest: T\n",
		"name: x\nfile: a.go\npackage: ./a\ntest: T\nbefore:\n\ta\nafter:\n\ta\n",
		"name: x\ncolour: red\n",
	} {
		if _, err := parseNamed([]byte(text)); err == nil {
			t.Errorf("accepted: %q", text)
		}
	}
}

// TestNamedChangesFit: the text of each named change in scripts/mutations.txt is in its file, and the reasons in
// scripts/mutate-survivors.txt can be read.
func TestNamedChangesFit(t *testing.T) {
	root := filepath.Join("..", "..")
	all, err := readNamed(filepath.Join(root, "scripts", "mutations.txt"))
	if err != nil || len(all) == 0 {
		t.Fatalf("%d named changes, %v", len(all), err)
	}
	for _, n := range all {
		if _, err := n.change(root); err != nil {
			t.Error(err)
		}
	}
	if _, err := readReasons(filepath.Join(root, "scripts", "mutate-survivors.txt")); err != nil {
		t.Error(err)
	}
}

func ids(all []Mutant) (names []string) {
	for _, m := range all {
		names = append(names, m.ID)
	}
	return names
}

func write(t *testing.T, root, name, text string) {
	t.Helper()
	path := filepath.Join(root, name)
	if err := os.MkdirAll(filepath.Dir(path), 0o750); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}
