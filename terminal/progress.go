package terminal

import (
	"io"
	"os"
	"sync/atomic"
	"time"

	"github.com/vbauerster/mpb/v8"
	"github.com/vbauerster/mpb/v8/decor"
	"golang.org/x/term"
)

// logInterval is the time between two lines of progress in a log.
const logInterval = 10 * time.Second

// Progress shows the progress of a command's work: as a bar on a terminal, or as a line every logInterval in a log. It
// is not for concurrent use.
type Progress struct {
	out   io.Writer // nil: the progress is not shown
	unit  string    // "keys"
	bar   *mpb.Bar  // nil for a log, and before the first step
	group *mpb.Progress
	step  atomic.Pointer[string] // text after the bar

	terminal    bool
	now         func() time.Time
	began, last time.Time // when the work began; when the last line was written
}

// NewProgress returns the progress of work that is counted in units, for instance "keys". If quiet is true, it shows
// nothing.
func NewProgress(out io.Writer, unit string, quiet bool) *Progress {
	p := &Progress{out: out, unit: unit, terminal: IsTerminal(out), now: time.Now}
	if quiet {
		p.out = nil
	}
	return p
}

// IsTerminal reports whether a stream is a terminal.
func IsTerminal(stream any) bool {
	f, ok := stream.(*os.File)
	return ok && term.IsTerminal(int(f.Fd()))
}

// Show shows that done of total units are done, and the current step. It shows nothing while total is 0, which means
// that the total is not known yet.
func (p *Progress) Show(done, total int, step string) {
	if p.out == nil || total == 0 {
		return
	}
	if !p.terminal {
		p.line(done, total, step)
		return
	}
	step = Safe(step)
	p.step.Store(&step)
	if p.bar == nil {
		p.group = mpb.New(mpb.WithOutput(p.out), mpb.WithAutoRefresh())
		p.bar = p.group.AddBar(int64(total),
			mpb.PrependDecorators(decor.CountersNoUnit("%d of %d "+p.unit+" ")),
			mpb.AppendDecorators(decor.Elapsed(decor.ET_STYLE_GO),
				decor.Any(func(decor.Statistics) string { return "  " + *p.step.Load() })))
	}
	p.bar.SetTotal(int64(total), false)
	p.bar.SetCurrent(int64(done))
}

// line writes a line to a log, if logInterval has passed since the last line. Short work writes no line.
func (p *Progress) line(done, total int, step string) {
	now := p.now()
	if p.began.IsZero() {
		p.began, p.last = now, now
	}
	if now.Sub(p.last) < logInterval {
		return
	}
	p.last = now
	// A log that cannot be written must not end the work.
	_ = Fprintf(p.out, "%d of %d %s, after %v: %s\n", done, total, p.unit, now.Sub(p.began).Round(time.Second), step)
}

// End stops the bar. Call it before you write anything else to the terminal.
func (p *Progress) End() {
	if p.bar == nil {
		return
	}
	if !p.bar.Completed() {
		p.bar.Abort(false)
	}
	p.group.Wait()
	p.bar = nil
}
