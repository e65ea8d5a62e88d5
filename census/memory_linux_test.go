package census_test

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"claviger/census"
	"claviger/fsimage"
	"claviger/internal/imagetest"
)

// writeLarge writes an image into a file.
func writeLarge(t testing.TB, large imagetest.Large) *os.File {
	t.Helper()
	f, err := os.Create(filepath.Join(t.TempDir(), "image"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = f.Close() }) // it was only read since
	w := bufio.NewWriterSize(f, 1<<20)
	if _, err := large.Write(w); err != nil {
		t.Fatal(err)
	}
	if err := w.Flush(); err != nil {
		t.Fatal(err)
	}
	return f
}

// countFile counts an image in a file.
func countFile(t testing.TB, f *os.File, workers int) *census.Report {
	t.Helper()
	info, err := f.Stat()
	if err != nil {
		t.Fatal(err)
	}
	m, err := fsimage.Open(f, info.Size())
	if err != nil {
		t.Fatal(err)
	}
	s, err := census.Count(context.Background(), m, census.Config{Workers: workers, Paths: 3})
	if err != nil {
		t.Fatal(err)
	}
	return s.Report()
}

// peak returns the greatest resident memory of this process since resetPeak, in bytes. It does not count the pages of
// files, which are those of the program.
func peak(t testing.TB) int {
	t.Helper()
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		t.Fatal(err)
	}
	kb := func(name string) int {
		_, line, _ := strings.Cut(string(status), name)
		n, err := strconv.Atoi(strings.Fields(line)[0])
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	return (kb("VmHWM:") - kb("RssFile:")) << 10
}

func resetPeak(t testing.TB) {
	t.Helper()
	debug.FreeOSMemory() // what the writing of the image took
	if err := os.WriteFile("/proc/self/clear_refs", []byte("5"), 0); err != nil {
		t.Skipf("the peak of memory cannot be measured: %v", err)
	}
}

// cpu returns the processor time of this process.
func cpu(t testing.TB) time.Duration {
	t.Helper()
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		t.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// TestMemory: a process that counts takes at most 32 MB and 12 bytes an inode. The limits are lower here, because the
// 32 MB have room for more goroutines. Of all compressions, zstd takes the most: its window of 8 MB for two sections.
func TestMemory(t *testing.T) {
	if raceDetector {
		t.Skip("the race detector takes memory of its own")
	}
	const inodes = 1_000_000
	for codec, limit := range map[string]int{imagetest.None: 24<<20 + 12*inodes, imagetest.Zstd: 30<<20 + 12*inodes} {
		f := writeLarge(t, imagetest.Large{INodes: inodes, Codec: codec})
		for _, workers := range []int{1, 2} {
			resetPeak(t)
			if r := countFile(t, f, workers); !r.Complete {
				t.Fatal(r.Problems)
			}
			got := peak(t)
			t.Logf("codec %q, %d workers: %d bytes of %d", codec, workers, got, limit)
			if got > limit {
				t.Errorf("codec %q, %d workers: the process took %d bytes, over %d", codec, workers, got, limit)
			}
		}
	}
}

// BenchmarkCensus counts an image of CLAVIGER_CENSUS_INODES inodes, a million if unset, with one and with two
// processors. The figures are medians, and the highest memory.
func BenchmarkCensus(b *testing.B) {
	inodes := 1_000_000
	if n, err := strconv.Atoi(os.Getenv("CLAVIGER_CENSUS_INODES")); err == nil {
		inodes = n
	}
	for name, large := range map[string]imagetest.Large{
		"none": {}, "sub-sections": {SubSections: 12}, "gzip": {Codec: imagetest.Gzip},
		"snappy": {Codec: imagetest.Snappy}, "lz4": {Codec: imagetest.LZ4}, "zstd": {Codec: imagetest.Zstd},
		"sparse": {IDStep: 40},
	} {
		b.Run(name, func(b *testing.B) {
			large.INodes = inodes
			f := writeLarge(b, large)
			for _, cores := range []int{1, 2} {
				b.Run(fmt.Sprintf("cores=%d", cores), func(b *testing.B) {
					defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(cores))
					highest := 0
					var cpus, walls []float64
					for b.Loop() {
						resetPeak(b) // each round begins with the memory of a new process
						cpuBegun, begun := cpu(b), time.Now()
						countFile(b, f, cores)
						cpus = append(cpus, (cpu(b) - cpuBegun).Seconds())
						walls = append(walls, time.Since(begun).Seconds())
						highest = max(highest, peak(b))
					}
					slices.Sort(cpus)
					slices.Sort(walls)
					millions := float64(inodes) / 1e6
					b.ReportMetric(millions/cpus[len(cpus)/2], "Minodes/cpu-s")
					b.ReportMetric(millions/walls[len(walls)/2], "Minodes/s")
					b.ReportMetric(float64(highest)/1e6, "MB")
					b.ReportMetric(float64(highest-32<<20)/float64(inodes), "B/inode+32MB")
				})
			}
		})
	}
}
