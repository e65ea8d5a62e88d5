package main

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"
)

// A room is a package with all its mutants, ready to be tried.
type room struct {
	*runner
	name     string
	all      []Mutant
	refused  map[int]bool   // mutants that the compiler refuses, by number
	packages []string       // whose tests cover the room, without ./
	chosen   *regexp.Regexp // names of the tests to use; nil stands for all
	binaries map[string]string
	tests    []roomTest
}

// A roomTest is one test of a room.
type roomTest struct {
	pkg, name string
	took      time.Duration
	reaches   map[int]bool // the mutants that it reaches, by number
}

// maxBuilds bounds the builds of a scheme. Each build leaves out the mutants that the
// build before could not compile.
const maxBuilds = 12

// open builds the room's tests and runs each once, to know which mutants it
// reaches and how long it takes.
func (r *room) open(ctx context.Context, progress func(done, of int)) error {
	if err := r.compile(ctx); err != nil {
		return err
	}
	names := map[string][]string{}
	count := 0
	for _, pkg := range r.packages {
		of, err := r.list(ctx, pkg)
		if err != nil {
			return err
		}
		names[pkg], count = of, count+len(of)
	}
	for _, pkg := range r.packages {
		for _, name := range names[pkg] {
			t, err := r.trace(ctx, pkg, name)
			if err != nil {
				return err
			}
			r.tests = append(r.tests, t)
			progress(len(r.tests), count)
		}
	}
	return nil
}

// compile builds the tests with all mutants that the compiler takes.
func (r *room) compile(ctx context.Context) error {
	sources, pkg := map[string]string{}, ""
	for _, m := range r.all {
		if sources[m.File] == "" {
			src, err := os.ReadFile(filepath.Join(r.root, m.File))
			if err != nil {
				return err
			}
			sources[m.File] = string(src)
			pkg = packageName(sources[m.File])
		}
	}
	r.refused, r.binaries = map[int]bool{}, map[string]string{}
	for range maxBuilds {
		s := newScheme(r.all, sources, r.refused)
		files := maps.Clone(s.files)
		files[filepath.Join(r.name, "zz_mutants.go")] = support(pkg, len(r.all))
		err := r.buildAll(ctx, files)
		if err == nil || ctx.Err() != nil {
			return err
		}
		more := s.refused(err.Error())
		if len(more) == 0 {
			return err
		}
		maps.Copy(r.refused, more)
	}
	return fmt.Errorf("%s: the mutants do not compile together", r.name)
}

func (r *room) buildAll(ctx context.Context, files map[string]string) (err error) {
	for i, pkg := range r.packages {
		if r.binaries[pkg], err = r.build(ctx, pkg, fmt.Sprintf("room%d", i), files); err != nil {
			return err
		}
	}
	return nil
}

var packageClause = regexp.MustCompile(`(?m)^package (\w+)`)

func packageName(src string) string { return packageClause.FindStringSubmatch(src)[1] }

// list returns the names of the tests of a package.
func (r *room) list(ctx context.Context, pkg string) (names []string, err error) {
	passed, out := r.command(ctx, r.binaries[pkg], pkg, []string{"-test.list", "."}, time.Minute)
	if !passed {
		return nil, fmt.Errorf("%s: its tests cannot be listed:\n%s", pkg, out)
	}
	for name := range strings.FieldsSeq(string(out)) {
		isTest := strings.HasPrefix(name, "Test") || strings.HasPrefix(name, "Fuzz") ||
			strings.HasPrefix(name, "Example")
		if isTest && (r.chosen == nil || r.chosen.MatchString(name)) {
			names = append(names, name)
		}
	}
	return names, nil
}

// trace runs one test without a mutant.
func (r *room) trace(ctx context.Context, pkg, name string) (t roomTest, err error) {
	reached := filepath.Join(r.work, "reached")
	if err := os.WriteFile(reached, make([]byte, len(r.all)+1), 0o600); err != nil {
		return t, err
	}
	began := time.Now()
	passed, out := r.test(ctx, r.binaries[pkg], pkg, "^"+name+"$", 10*time.Minute, "CLAVIGER_MUTANTS_REACHED="+reached)
	switch {
	case ctx.Err() != nil:
		return t, ctx.Err()
	case !passed:
		return t, fmt.Errorf("%s of %s fails without a change:\n%s", name, pkg, out)
	}
	t = roomTest{pkg: pkg, name: name, took: time.Since(began), reaches: map[int]bool{}}
	all, err := os.ReadFile(reached)
	if err != nil {
		return t, err
	}
	for n, b := range all {
		if b != 0 {
			t.reaches[n] = true
		}
	}
	return t, nil
}

// batch bounds how long the tests of one process take together. A mutant that
// many tests reach is usually noticed by the first test.
const batch = 4 * time.Second

// try runs the tests that reach a mutant, the fastest first, until one fails.
func (r *room) try(ctx context.Context, n int) (outcome, error) {
	if r.refused[n] {
		return unbuilt, nil
	}
	var reach []roomTest
	for _, t := range r.tests {
		if t.reaches[n] {
			reach = append(reach, t)
		}
	}
	slices.SortStableFunc(reach, func(a, b roomTest) int { return int(a.took - b.took) })
	for len(reach) > 0 {
		count, took := 0, time.Duration(0)
		for count < len(reach) && reach[count].pkg == reach[0].pkg && (count == 0 || took+reach[count].took <= batch) {
			took += reach[count].took
			count++
		}
		var names []string
		for _, t := range reach[:count] {
			names = append(names, t.name)
		}
		pkg, began, limit := reach[0].pkg, time.Now(), limitOf(took)
		passed, _ := r.test(ctx, r.binaries[pkg], pkg, "^("+strings.Join(names, "|")+")$", limit,
			fmt.Sprint("CLAVIGER_MUTANT=", n))
		if ctx.Err() != nil {
			return "", ctx.Err()
		}
		switch {
		case !passed && time.Since(began) >= limit:
			return stopped, nil
		case !passed:
			return killed, nil
		}
		reach = reach[count:]
	}
	return survived, nil
}

// tryAll tries mutants by number, some at once, and hands each outcome to got.
func (r *room) tryAll(ctx context.Context, numbers []int, workers int, got func(n int, o outcome) error) error {
	type result struct {
		n   int
		o   outcome
		err error
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	todo, results := make(chan int), make(chan result)
	go func() {
		defer close(todo)
		for _, n := range numbers {
			select {
			case todo <- n:
			case <-ctx.Done():
				return
			}
		}
	}()
	for range workers {
		go func() {
			for n := range todo {
				o, err := r.try(ctx, n)
				results <- result{n, o, err}
			}
			results <- result{}
		}()
	}
	var errs error
	for done := 0; done < workers; {
		res := <-results
		switch {
		case res.n == 0:
			done++
		case res.err != nil:
			errs = errors.Join(errs, res.err)
			cancel()
		case errs == nil:
			if err := got(res.n, res.o); err != nil {
				errs = err
				cancel()
			}
		}
	}
	return errs
}
