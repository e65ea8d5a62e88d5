package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"time"
)

// rooms are the packages in which a mistake costs keys, or shows them. A room
// with /... means all packages under it that have tests.
var rooms = []string{"authn", "authz", "keyring", "eek", "pkcs11", "pkcs11/cryptoki", "pkcs11/worker", "audit",
	"metastore/...", "trustee/..."}

// alsoTestedBy holds the packages whose tests cover a room too. They run if the room's
// own tests pass, or if the room has none.
var alsoTestedBy = map[string][]string{
	"metastore":           {"metastore/sqlite"},
	"trustee/server":      {"trustee/server/sqlite", "trustee/replica"},
	"metastore/storetest": {"metastore/sqlite"},
	"pkcs11/cryptoki":     {"pkcs11"},
	"pkcs11/worker":       {"pkcs11"},
}

const usage = `usage: scripts/mutate [flags] [ROOM ...]

Breaks the code of each room (default: %s)
by rule, and runs the room's tests. Lists the changes that no test notices.

  --sample N   try N changes of each room (default 20)
  --seed TEXT  choose another sample
  --workers N  try N changes at once (default: one for each processor)
  --all        try every change
  --only RE    of these, try only the changes whose line in --list matches this regular expression
  --tests RE   run only the tests whose names match; survivors are printed, and not kept for later runs
  --named      try the named changes of scripts/mutations.txt instead
  --list       print the changes, and try none
  --fresh      forget the results of earlier runs

Exit status: 0 each survivor has a reason in scripts/mutate-survivors.txt;
1 one has none; 2 the run failed.
`

type options struct {
	sample              int
	seed                string
	workers             int
	all, named          bool
	list, fresh         bool
	only                *regexp.Regexp // nil stands for all changes
	tests               *regexp.Regexp // nil stands for all tests
	rooms               []string
	root                string
	reasons, namedFile  string
	results             string
	progress, survivors io.Writer
}

func main() {
	o := options{progress: os.Stderr, survivors: os.Stdout}
	flags := flag.NewFlagSet("mutate", flag.ExitOnError)
	flags.Usage = func() { fmt.Fprintf(os.Stderr, usage, strings.Join(rooms, " ")) }
	flags.IntVar(&o.sample, "sample", 20, "")
	flags.IntVar(&o.workers, "workers", runtime.GOMAXPROCS(0), "")
	flags.StringVar(&o.seed, "seed", "1", "")
	flags.BoolVar(&o.all, "all", false, "")
	for name, to := range map[string]**regexp.Regexp{"only": &o.only, "tests": &o.tests} {
		flags.Func(name, "", func(text string) (err error) {
			*to, err = regexp.Compile(text)
			return err
		})
	}
	flags.BoolVar(&o.named, "named", false, "")
	flags.BoolVar(&o.list, "list", false, "")
	flags.BoolVar(&o.fresh, "fresh", false, "")
	_ = flags.Parse(os.Args[1:]) // ends the process on an error
	o.rooms = flags.Args()

	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	unexplained, err := o.run(ctx)
	switch {
	case err != nil:
		fmt.Fprintln(os.Stderr, "mutate:", err)
		os.Exit(2)
	case unexplained > 0:
		os.Exit(1)
	}
}

// run tries the changes and returns how many need a test or a reason.
func (o *options) run(ctx context.Context) (unexplained int, err error) {
	if o.root == "" {
		if o.root, err = os.Getwd(); err != nil {
			return 0, err
		}
	}
	if _, err := os.Stat(filepath.Join(o.root, "go.mod")); err != nil {
		return 0, fmt.Errorf("call it in the project's folder: %w", err)
	}
	o.reasons = filepath.Join(o.root, "scripts", "mutate-survivors.txt")
	o.namedFile = filepath.Join(o.root, "scripts", "mutations.txt")
	if o.results == "" {
		cache, err := os.UserCacheDir()
		if err != nil {
			return 0, err
		}
		o.results = filepath.Join(cache, "claviger", "mutate", "results")
	}
	work, err := os.MkdirTemp("", "mutate")
	if err != nil {
		return 0, err
	}
	defer os.RemoveAll(work)
	r := &runner{root: o.root, work: work}
	if o.named {
		return o.runNamed(ctx, r)
	}
	return o.runRules(ctx, r)
}

// runNamed tries each named change whose name is among the arguments, or all.
func (o *options) runNamed(ctx context.Context, r *runner) (failed int, err error) {
	all, err := readNamed(o.namedFile)
	if err != nil {
		return 0, err
	}
	limits := map[string]time.Duration{}
	for _, n := range all {
		if len(o.rooms) > 0 && !slices.Contains(o.rooms, n.Name) {
			continue
		}
		if o.list {
			fmt.Fprintf(o.survivors, "%s: %s, %s %s\n", n.Name, n.File, n.Package, n.Test)
			continue
		}
		if err := o.tryNamed(ctx, r, n, limits); err != nil {
			if ctx.Err() != nil {
				return failed, ctx.Err()
			}
			failed++
			fmt.Fprintf(o.survivors, "%s: %v\n", n.Name, err)
			continue
		}
		fmt.Fprintf(o.progress, "%s: %s fails, as it should\n", n.Name, n.Test)
	}
	return failed, nil
}

func (o *options) tryNamed(ctx context.Context, r *runner, n Named, limits map[string]time.Duration) error {
	content, err := n.change(o.root)
	if err != nil {
		return err
	}
	if id := n.Package + " " + n.Test; limits[id] == 0 {
		took, err := r.baseline(ctx, n.Package, n.Test)
		if err != nil {
			return err
		}
		limits[id] = limitOf(took)
	}
	got, err := r.try(ctx, n.Package, n.Test, n.File, content, limits[n.Package+" "+n.Test])
	switch {
	case err != nil:
		return err
	case got == survived:
		return errNotNoticed
	case got == unbuilt:
		return errors.New("the change does not build")
	}
	return nil
}

// runRules tries the changes by rule, and compares the survivors with the reasons.
func (o *options) runRules(ctx context.Context, r *runner) (unexplained int, err error) {
	reasons, err := readReasons(o.reasons)
	if err != nil {
		return 0, err
	}
	known, err := openResults(o.results, o.fresh)
	if err != nil {
		return 0, err
	}
	chosen := o.rooms
	if len(chosen) == 0 {
		chosen = rooms
	}
	chosen, err = o.expand(ctx, chosen)
	if err != nil {
		return 0, err
	}
	for _, room := range chosen {
		n, err := o.runRoom(ctx, r, room, reasons, known)
		unexplained += n
		if err != nil {
			return unexplained, err
		}
	}
	return unexplained, nil
}

// expand replaces each room that ends in /... by the packages with tests under
// it.
func (o *options) expand(ctx context.Context, names []string) ([]string, error) {
	var all []string
	for _, name := range names {
		name = strings.Trim(strings.TrimPrefix(name, "./"), "/")
		if !strings.HasSuffix(name, "/...") {
			all = append(all, name)
			continue
		}
		cmd := exec.CommandContext(ctx, "go", "list", "-f",
			`{{if or .TestGoFiles .XTestGoFiles}}{{.Dir}}{{end}}`, "./"+name)
		cmd.Dir = o.root
		out, err := cmd.Output()
		if err != nil {
			return nil, fmt.Errorf("go list ./%s: %w", name, err)
		}
		for dir := range strings.FieldsSeq(string(out)) {
			room, err := filepath.Rel(o.root, dir)
			if err != nil {
				return nil, err
			}
			all = append(all, filepath.ToSlash(room))
		}
	}
	return all, nil
}

// runRoom tries the changes of one package, prints its survivors and returns how
// many have no reason.
func (o *options) runRoom(ctx context.Context, r *runner, name string, reasons map[string]string, known *results) (
	unexplained int, err error) {
	all, err := mutants(o.root, name)
	if err != nil {
		return 0, err
	}
	unexplained = o.stale(name, all, reasons)
	chosen := o.choose(all)
	if o.list {
		for _, n := range chosen {
			fmt.Fprintln(o.survivors, listed(all[n-1]))
		}
		return 0, nil
	}
	of := &room{runner: r, name: name, all: all, chosen: o.tests}
	if of.packages, err = testers(o.root, name); err != nil {
		return 0, err
	}
	state, err := stateOf(o.root, slices.Compact(append([]string{name}, of.packages...)))
	if err != nil {
		return 0, err
	}
	outcomes := map[int]outcome{}
	var todo []int
	for _, n := range chosen {
		got, have := known.known(state, all[n-1])
		if have {
			outcomes[n] = got
		} else {
			todo = append(todo, n)
		}
	}
	if len(todo) > 0 {
		err = o.tryRoom(ctx, of, todo, func(n int, got outcome) error {
			outcomes[n] = got
			if got == survived && o.tests != nil { // another test may notice the change
				return nil
			}
			return known.keep(state, all[n-1], got)
		})
		if err != nil {
			return unexplained, err
		}
	}
	count := map[outcome]int{}
	for _, n := range chosen {
		m, got := all[n-1], outcomes[n]
		count[got]++
		if got == survived && reasonFor(reasons, m.ID) == "" {
			unexplained++
			fmt.Fprintf(o.survivors, "%s:%d: no test notices this change\n%s\n", m.File, m.Line, m.ID)
		}
	}
	fmt.Fprintf(o.progress, "%s: %d changes: %d killed, %d stopped at the time limit, %d survived, %d did not build\n",
		name, len(chosen), count[killed], count[stopped], count[survived], count[unbuilt])
	return unexplained, nil
}

// choose returns the numbers of the changes that this run tries.
func (o *options) choose(all []Mutant) []int {
	size := o.sample
	if o.all {
		size = len(all)
	}
	chosen := sample(all, size, o.seed)
	if o.only == nil {
		return chosen
	}
	return slices.DeleteFunc(chosen, func(n int) bool { return !o.only.MatchString(listed(all[n-1])) })
}

// listed returns the line of a change in --list.
func listed(m Mutant) string { return fmt.Sprintf("%s:%d: %s", m.File, m.Line, m.ID) }

// tryRoom tries the changes by number, and calls keep with each outcome.
func (o *options) tryRoom(ctx context.Context, r *room, todo []int, keep func(int, outcome) error) error {
	err := r.open(ctx, func(done, of int) {
		if done%20 == 0 || done == of {
			fmt.Fprintf(o.progress, "%s: %d of %d tests run without a change\n", r.name, done, of)
		}
	})
	if err != nil {
		return err
	}
	done := 0
	return r.tryAll(ctx, todo, o.workers, func(n int, got outcome) error {
		done++
		fmt.Fprintf(o.progress, "%s %d of %d: %s: %s\n", r.name, done, len(todo), got, r.all[n-1].ID)
		return keep(n, got)
	})
}

// stale prints the reasons of a room that belong to no change any more, and
// counts them.
func (o *options) stale(room string, all []Mutant, reasons map[string]string) (n int) {
	exists := map[string]bool{}
	for _, m := range all {
		exists[m.ID] = true
	}
	for id := range reasons {
		if strings.HasPrefix(id, room+" ") && !exists[id] {
			n++
			fmt.Fprintf(o.survivors, "the code has no such line; remove the reason:\n%s\n", id)
		}
	}
	return n
}

// testers returns the packages whose tests cover a room. The go command makes no test
// binary for a room without test files.
func testers(root, name string) (packages []string, err error) {
	files, err := filepath.Glob(filepath.Join(root, name, "*_test.go"))
	if err != nil {
		return nil, err
	}
	if len(files) > 0 {
		packages = append(packages, name)
	}
	packages = append(packages, alsoTestedBy[name]...)
	if len(packages) == 0 {
		return nil, fmt.Errorf("%s has no tests, and alsoTestedBy names no package that tests it", name)
	}
	return packages, nil
}

// stateOf returns the name of a state of the code on which survivors depend: the room, and
// the packages whose tests run, with the tests.
func stateOf(root string, packages []string) (string, error) {
	var all []string
	for _, p := range packages {
		d, err := digest(root, p)
		if err != nil {
			return "", err
		}
		all = append(all, d)
	}
	return strings.Join(all, " "), nil
}
