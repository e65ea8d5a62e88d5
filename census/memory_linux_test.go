package census_test

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"runtime/debug"
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

// peak returns the greatest resident memory of this process since resetPeak, in bytes.
func peak(t testing.TB) int {
	t.Helper()
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		t.Fatal(err)
	}
	_, line, _ := strings.Cut(string(status), "VmHWM:")
	kb, err := strconv.Atoi(strings.Fields(line)[0])
	if err != nil {
		t.Fatal(err)
	}
	return kb << 10
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

// TestMemory: a process that counts takes at most 32 MB and 12 bytes an inode. The limit is lower here, because the
// 32 MB have room for more goroutines.
func TestMemory(t *testing.T) {
	if raceDetector {
		t.Skip("the race detector takes memory of its own")
	}
	const inodes = 1_000_000
	f := writeLarge(t, imagetest.Large{INodes: inodes})
	for _, workers := range []int{1, 2} {
		resetPeak(t)
		if r := countFile(t, f, workers); !r.Complete {
			t.Fatal(r.Problems)
		}
		got, limit := peak(t), 24<<20+12*inodes
		t.Logf("%d workers: %d bytes of %d", workers, got, limit)
		if got > limit {
			t.Errorf("%d workers: the process took %d bytes, over %d", workers, got, limit)
		}
	}
}

// BenchmarkCensus counts an image of CLAVIGER_CENSUS_INODES inodes, a million if unset.
func BenchmarkCensus(b *testing.B) {
	inodes := 1_000_000
	if n, err := strconv.Atoi(os.Getenv("CLAVIGER_CENSUS_INODES")); err == nil {
		inodes = n
	}
	for name, large := range map[string]imagetest.Large{
		"none": {}, "sub-sections": {SubSections: 12}, "gzip": {Codec: imagetest.Gzip},
		"snappy": {Codec: imagetest.Snappy}, "lz4": {Codec: imagetest.LZ4}, "zstd": {Codec: imagetest.Zstd},
	} {
		large.INodes = inodes
		f := writeLarge(b, large)
		for _, workers := range []int{1, 2} {
			b.Run(fmt.Sprintf("%s/workers=%d", name, workers), func(b *testing.B) {
				resetPeak(b)
				begun := cpu(b)
				for b.Loop() {
					countFile(b, f, workers)
				}
				millions := float64(inodes) * float64(b.N) / 1e6
				b.ReportMetric(millions/(cpu(b)-begun).Seconds(), "Minodes/cpu-s")
				b.ReportMetric(millions/b.Elapsed().Seconds(), "Minodes/s")
				b.ReportMetric(float64(peak(b)-32<<20)/float64(inodes), "B/inode+32MB")
			})
		}
	}
}
