package audit

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strconv"
	"strings"
	"time"

	"claviger/durable"
)

// UnwrittenFileOf returns the file, beside a log, that keeps the number of events that could not be written. A process
// that ends with a full disk cannot append this number to the log. So the file is made while there is room, and later
// its bytes are overwritten, which needs no room. The next process writes a LostRecord with the number.
func UnwrittenFileOf(log string) string { return log + ".lost" }

// IsBeside reports whether a path names a file beside a log, by the end of its name: a head, or a file of
// UnwrittenFileOf.
func IsBeside(path string) bool {
	return strings.HasSuffix(path, ".head") || strings.HasSuffix(path, ".lost")
}

// unwrittenFormat has always the same length: 20 digits hold each uint64.
const unwrittenFormat = "%020d\n"

// readUnwritten returns the number in the file of a log. Without a file it is 0.
func readUnwritten(log string) (uint64, error) {
	path := UnwrittenFileOf(log)
	text, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return 0, nil
	}
	if err != nil {
		return 0, err
	}
	n, err := strconv.ParseUint(strings.TrimSpace(string(text)), 10, 64)
	if err != nil {
		return 0, fmt.Errorf("%s has the number of events that an audit log could not take, and is not a number: %w; "+
			"find out why before you remove it", path, err)
	}
	return n, nil
}

// openUnwritten reads the number of events that the last process could not write, and makes the file if there is none.
func (c *Chain) openUnwritten() error {
	if c.cfg.File == nil {
		return nil
	}
	n, err := readUnwritten(c.cfg.File.Path())
	if err != nil {
		return err
	}
	if c.lost, c.marked = n, n; n > 0 {
		c.cfg.Log.Warn("the last process could not write some events to the audit log; a record says how many", "file",
			c.cfg.File.Path(), "events", n)
	}
	path := UnwrittenFileOf(c.cfg.File.Path())
	if _, err := os.Stat(path); err == nil {
		return nil
	}
	if err := durable.Create(path, fmt.Appendf(nil, unwrittenFormat, 0), 0o640); err != nil {
		c.cfg.Log.Warn("if this process ends with a full disk, the next one will not know how many events could not "+
			"be written", "file", path, "err", err)
	}
	return nil
}

// markUnwritten stores that n events wait for room on the disk or are lost: at most once in HeadEvery, and at the end
// of the process.
func (c *Chain) markUnwritten(now time.Time, n uint64, ended bool) {
	if c.cfg.File == nil || n == c.marked || n > 0 && !ended && now.Sub(c.markTried) < c.cfg.HeadEvery {
		return
	}
	if n == 0 && c.synced != c.seq && c.syncFile() != nil {
		return // a LostRecord may not be on the disk yet
	}
	c.markTried = now
	path := UnwrittenFileOf(c.cfg.File.Path())
	if err := durable.Overwrite(path, fmt.Appendf(nil, unwrittenFormat, n)); err != nil {
		if c.markErr == nil || c.markErr.Error() != err.Error() {
			c.cfg.Log.Error("the number of events that wait for room on the disk cannot be stored", "file", path,
				"events", n, "err", err)
		}
		c.markErr = err
		return
	}
	c.marked, c.markErr = n, nil
}

// markNote says, behind the message that n records could not be written, whether the next process knows that.
func (c *Chain) markNote(n uint64) string {
	if c.cfg.File == nil || c.marked != n {
		return ""
	}
	return "; the next process that opens the log makes a record of their number, which is kept in " +
		UnwrittenFileOf(c.cfg.File.Path())
}
