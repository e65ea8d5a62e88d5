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

// sumShare bounds what summing costs: at most one part in sumShare of the time.
const sumShare = 20

// content is what the file held when it stood so. It tells a file whose time alone was
// changed (touch, a copy put back with the same bytes) from one that was written over.
type content struct {
	of   mark // the zero mark: nothing was summed
	sum  uint64
	at   time.Time     // when it was summed
	took time.Duration // and how long that took
}

// sumUp notes what the file holds as this process left it, unless it was summed a
// moment ago: then a later look does it. mu is held.
func (p *place) sumUp() {
	is := *p.file.Load()
	if !p.kept.Load() || is == p.content.of || time.Since(p.content.at) < sumShare*p.content.took {
		return
	}
	began := time.Now()
	sum, err := p.sumOf(is)
	if err != nil {
		is = mark{} // then a file whose time was changed counts as written over
	}
	p.content = content{of: is, sum: sum, at: time.Now(), took: time.Since(began)}
}

// holdsTheSame tells whether the file, which stands otherwise now than this process left
// it, holds what it held then. mu is held.
func (p *place) holdsTheSame(now mark) bool {
	was := *p.file.Load()
	if !now.sameFile(was) || now.size != was.size || p.content.of != was {
		return false
	}
	sum, err := p.sumOf(now)
	return err == nil && sum == p.content.sum
}

// seed is this process's: sums are never kept.
var seed = maphash.MakeSeed()

// sumOf sums the file's bytes, which must stand as is before and after.
//
// It reads by a descriptor that SQLite has open, and opens none: POSIX ends all locks
// that a process has on a file when the process closes any descriptor of the file
// (https://www.sqlite.org/howtocorrupt.html#_posix_advisory_locks_canceled_by_a_separate_thread_doing_close_).
func (p *place) sumOf(is mark) (uint64, error) {
	fd, err := descriptorOf(is)
	if err != nil {
		return 0, err
	}
	var h maphash.Hash
	h.SetSeed(seed)
	buffer := make([]byte, 1<<20)
	for at := int64(0); at < is.size; {
		n, err := unix.Pread(fd, buffer, at)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil || n == 0 {
			return 0, fmt.Errorf("reading %s at %d: %w", p.path, at, errors.Join(err, errChanged))
		}
		_, _ = h.Write(buffer[:n]) // never fails
		at += int64(n)
	}
	// The descriptor could have become another file's meanwhile, and the file another.
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil || markOfStat(&st) != is {
		return 0, errors.Join(err, errChanged)
	}
	return h.Sum64(), nil
}

var errChanged = errors.New("the file changed while it was read")

// descriptorOf finds a descriptor of this process that is open on the file.
func descriptorOf(is mark) (int, error) {
	open, err := os.ReadDir("/dev/fd")
	if err != nil {
		return 0, err
	}
	for _, entry := range open {
		fd, err := strconv.Atoi(entry.Name())
		var st unix.Stat_t
		if err == nil && unix.Fstat(fd, &st) == nil && markOfStat(&st).sameFile(is) {
			return fd, nil
		}
	}
	return 0, errors.New("no descriptor of this process is open on the file")
}
