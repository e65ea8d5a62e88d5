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

// between is the time between two lines of progress in a log.
const between = 10 * time.Second

// Progress shows how far a command's work has come: as a bar on a terminal, as a line now and then where the
// output goes to a log. It is not for concurrent use.
type Progress struct {
	out   io.Writer // nil: the progress is not shown
	unit  string    // "keys"
	bar   *mpb.Bar  // nil: a log, or no step yet
	group *mpb.Progress
	step  atomic.Pointer[string] // what the bar shows at its end

	terminal   bool
	now        func() time.Time
	began, was time.Time // when the work began; when the last line was written
}

// NewProgress returns the progress of work that is counted in units, as "keys". With quiet it shows nothing.
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

// Show shows that done of total units are done, and the step that is under way. Until total is known, which
// is until it is above 0, nothing is shown.
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

// line writes a line of a log, where the last one is long enough ago. Short work writes none.
func (p *Progress) line(done, total int, step string) {
	now := p.now()
	if p.began.IsZero() {
		p.began, p.was = now, now
	}
	if now.Sub(p.was) < between {
		return
	}
	p.was = now
	// A log that cannot be written must not end the work.
	_ = Fprintf(p.out, "%d of %d %s, after %v: %s\n", done, total, p.unit, now.Sub(p.began).Round(time.Second), step)
}

// End ends the bar where it is. It must be called before anything else is written to the terminal.
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
