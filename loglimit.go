package claviger

import (
	"context"
	"log/slog"
	"sync"
	"time"
)

// Limits of LimitLog, for one message.
const (
	limitWindow = time.Minute
	limitBurst  = 5
	// limitQuiet is the time without a line of a message after which the next line is written: the line may be news.
	limitQuiet = 10 * time.Second
	// limitReasons is how many other errors of one message are written in limitWindow, beside limitBurst.
	limitReasons = 10
	// limitMessages bounds the messages that are remembered. A program has fewer.
	limitMessages = 1000
)

// LimitLog returns a log for faults of a part that each request may use, such as an HSM. It writes a message, whatever
// its attributes are, at most limitBurst times in limitWindow. It also writes the first line after limitQuiet, and the
// first line with each text of the attribute err, up to limitReasons. The next line with the message says in the
// attribute notShown how many lines were left out. Lines of level debug are not limited.
func LimitLog(log *slog.Logger) *slog.Logger {
	if _, limited := log.Handler().(limitHandler); limited {
		return log
	}
	return slog.New(limitHandler{log.Handler(), &logLimits{of: map[string]*logLimit{}}})
}

// limitHandler is the handler of LimitLog.
type limitHandler struct {
	next   slog.Handler
	limits *logLimits
}

// logLimits counts the lines of each message.
type logLimits struct {
	mu sync.Mutex
	of map[string]*logLimit
}

// logLimit counts the lines of one message.
type logLimit struct {
	began, last     time.Time // of the window; of the last line, shown or not
	shown, notShown int
	reasons         map[string]struct{} // texts of the attribute err in this window
}

// due reports whether to write the message now, with that text of the attribute err, and how many lines were left out
// before.
func (l *logLimits) due(message, reason string, now time.Time) (notShown int, ok bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	m := l.of[message]
	if m == nil {
		if len(l.of) >= limitMessages {
			clear(l.of)
		}
		m = &logLimit{}
		l.of[message] = m
	}
	if now.Sub(m.began) >= limitWindow {
		m.began, m.shown, m.reasons = now, 0, map[string]struct{}{}
	}
	quiet := now.Sub(m.last) >= limitQuiet
	m.last = now
	_, known := m.reasons[reason]
	if known = known || len(m.reasons) >= limitReasons; !known {
		m.reasons[reason] = struct{}{}
	}
	if m.shown >= limitBurst && known && !quiet {
		m.notShown++
		return 0, false
	}
	m.shown++
	notShown, m.notShown = m.notShown, 0
	return notShown, true
}

func (h limitHandler) Enabled(ctx context.Context, l slog.Level) bool { return h.next.Enabled(ctx, l) }

func (h limitHandler) Handle(ctx context.Context, r slog.Record) error {
	if r.Level < slog.LevelInfo {
		return h.next.Handle(ctx, r)
	}
	notShown, ok := h.limits.due(r.Message, reasonOf(r), time.Now())
	if !ok {
		return nil
	}
	if notShown > 0 {
		r = r.Clone()
		r.AddAttrs(slog.Int("notShown", notShown))
	}
	return h.next.Handle(ctx, r)
}

// reasonOf returns the text of a line's attribute err; "" if it has none.
func reasonOf(r slog.Record) (reason string) {
	r.Attrs(func(a slog.Attr) bool {
		if a.Key == "err" {
			reason = a.Value.String()
		}
		return true
	})
	return reason
}

func (h limitHandler) WithAttrs(attrs []slog.Attr) slog.Handler {
	return limitHandler{h.next.WithAttrs(attrs), h.limits}
}

func (h limitHandler) WithGroup(name string) slog.Handler {
	return limitHandler{h.next.WithGroup(name), h.limits}
}
