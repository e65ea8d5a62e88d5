package sqlite

import (
	"errors"
	"fmt"
	"hash/maphash"
	"os"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
)

// sumShare limits the cost of checksums: they take at most one part in sumShare of the time.
const sumShare = 20

// content is a checksum of the file. It distinguishes a file of which only the time was changed (by touch, or by a copy
// of the same bytes) from a file that was overwritten.
type content struct {
	of   fileState // when sum was computed; the zero state means that there is no sum
	sum  uint64
	at   time.Time     // when sum was computed
	took time.Duration // by the computation
}

// updateSum computes the checksum of the file as this process left it. It does nothing if the last computation was too
// recent, see sumShare; then a later check does it. mu is held.
func (g *guard) updateSum() {
	is := *g.file.Load()
	if !g.claimed.Load() || is == g.content.of || time.Since(g.content.at) < sumShare*g.content.took {
		return
	}
	began := time.Now()
	sum, err := g.sumOf(is)
	if err != nil {
		is = fileState{} // without a sum, a file of another time counts as overwritten
	}
	g.content = content{of: is, sum: sum, at: time.Now(), took: time.Since(began)}
}

// sameContent reports whether the file, whose state has changed to now, still has the content that this process left.
// now must be a state of the same file. mu is held.
func (g *guard) sameContent(now fileState) bool {
	if g.content.of != *g.file.Load() {
		return false
	}
	sum, err := g.sumOf(now)
	return err == nil && sum == g.content.sum
}

// seed is different in each process: sums are never stored.
var seed = maphash.MakeSeed()

// sumOf computes the checksum of the file, which must be in that state before and after.
//
// It reads through a descriptor that SQLite has open, and opens none itself. POSIX ends all locks that a process has on
// a file when the process closes any descriptor of the file
// (https://www.sqlite.org/howtocorrupt.html#_posix_advisory_locks_canceled_by_a_separate_thread_doing_close_).
func (g *guard) sumOf(state fileState) (uint64, error) {
	fd, err := descriptorOf(state)
	if err != nil {
		return 0, err
	}
	var h maphash.Hash
	h.SetSeed(seed)
	buffer := make([]byte, 1<<20)
	for at := int64(0); at < state.size; {
		n, err := unix.Pread(fd, buffer, at)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil || n == 0 {
			return 0, fmt.Errorf("reading %s at %d: %w", g.path, at, errors.Join(err, errChanged))
		}
		_, _ = h.Write(buffer[:n]) // never fails
		at += int64(n)
	}
	// Meanwhile the file may have changed, and SQLite may have closed the descriptor, which is then another file's.
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil || stateOfStat(&st) != state {
		return 0, errors.Join(err, errChanged)
	}
	return h.Sum64(), nil
}

var errChanged = errors.New("the file changed while it was read")

// descriptorOf returns a descriptor with which this process has the file open.
func descriptorOf(state fileState) (int, error) {
	open, err := os.ReadDir("/dev/fd")
	if err != nil {
		return 0, err
	}
	for _, entry := range open {
		fd, err := strconv.Atoi(entry.Name())
		var st unix.Stat_t
		if err == nil && unix.Fstat(fd, &st) == nil && stateOfStat(&st).sameFile(state) {
			return fd, nil
		}
	}
	return 0, errors.New("no descriptor of this process is open on the file")
}
