package claviger

import (
	"context"
	"log/slog"
)

// LogHandler passes records to next. If an attribute is an error with operations (Ops), LogHandler adds them as the
// attribute "op". They are for developers; the texts of errors have no names of functions.
func LogHandler(next slog.Handler) slog.Handler { return opHandler{next} }

type opHandler struct{ next slog.Handler }

func (h opHandler) Enabled(ctx context.Context, l slog.Level) bool { return h.next.Enabled(ctx, l) }

func (h opHandler) Handle(ctx context.Context, r slog.Record) error {
	ops := ""
	r.Attrs(func(a slog.Attr) bool {
		ops = opsOf(a)
		return ops == ""
	})
	if ops != "" {
		r = r.Clone()
		r.AddAttrs(slog.String("op", ops))
	}
	return h.next.Handle(ctx, r)
}

func (h opHandler) WithAttrs(attrs []slog.Attr) slog.Handler {
	return opHandler{h.next.WithAttrs(attrs)}
}

func (h opHandler) WithGroup(name string) slog.Handler { return opHandler{h.next.WithGroup(name)} }

func opsOf(a slog.Attr) string {
	if err, ok := a.Value.Any().(error); ok && err != nil {
		return Ops(err)
	}
	return ""
}
