package main

import (
	"io"
	"sync/atomic"

	"github.com/vbauerster/mpb/v8"
	"github.com/vbauerster/mpb/v8/decor"

	"claviger"
	"claviger/migrate"
)

// progressBar shows a migration's progress on a terminal. Off a terminal it is
// quiet: a log has no use for it.
type progressBar struct {
	out      io.Writer // nil shows nothing
	progress *mpb.Progress
	bar      *mpb.Bar
	now      atomic.Pointer[string] // the key and its step
}

func newProgressBar(w io.Writer, terminal bool) *progressBar {
	if !terminal {
		w = nil
	}
	return &progressBar{out: w}
}

// show is migrate.Config.Progress. The bar appears with the first key that there
// is something to do for.
func (b *progressBar) show(p migrate.Progress) {
	if b.out == nil || p.KeysTotal == 0 {
		return
	}
	now := p.Step
	if p.Key != "" {
		now = claviger.Printable(p.Key) + ": " + p.Step
	}
	b.now.Store(&now)
	if b.bar == nil {
		b.progress = mpb.New(mpb.WithOutput(b.out), mpb.WithAutoRefresh())
		b.bar = b.progress.AddBar(int64(p.KeysTotal),
			mpb.PrependDecorators(decor.CountersNoUnit("%d of %d keys ")),
			mpb.AppendDecorators(decor.Elapsed(decor.ET_STYLE_GO), decor.Any(func(decor.Statistics) string { return "  " + *b.now.Load() })))
	}
	b.bar.SetTotal(int64(p.KeysTotal), false)
	b.bar.SetCurrent(int64(p.Keys))
}

// end takes the bar to its end, also where the run broke off, before anything
// else is written.
func (b *progressBar) end() {
	if b.bar == nil {
		return
	}
	if !b.bar.Completed() {
		b.bar.Abort(false)
	}
	b.progress.Wait()
}
