package secret

import (
	"context"
	"fmt"
	"log/slog"
)

// LogHandler returns a handler that masks credentials (see Mask) in messages and in all attributes, and passes the
// records to next. Attributes may have credentials because errors quote URLs and texts of clients.
func LogHandler(next slog.Handler) slog.Handler { return handler{next} }

type handler struct{ next slog.Handler }

func (h handler) Enabled(ctx context.Context, l slog.Level) bool { return h.next.Enabled(ctx, l) }

func (h handler) Handle(ctx context.Context, r slog.Record) error {
	clean := slog.NewRecord(r.Time, r.Level, Mask(r.Message), r.PC)
	r.Attrs(func(a slog.Attr) bool {
		clean.AddAttrs(maskAttr(a))
		return true
	})
	return h.next.Handle(ctx, clean)
}

func (h handler) WithAttrs(attrs []slog.Attr) slog.Handler {
	clean := make([]slog.Attr, len(attrs))
	for i, a := range attrs {
		clean[i] = maskAttr(a)
	}
	return handler{h.next.WithAttrs(clean)}
}

func (h handler) WithGroup(name string) slog.Handler { return handler{h.next.WithGroup(name)} }

func maskAttr(a slog.Attr) slog.Attr {
	a.Key = Mask(a.Key)
	a.Value = a.Value.Resolve()
	switch a.Value.Kind() {
	case slog.KindString:
		a.Value = slog.StringValue(Mask(a.Value.String()))
	case slog.KindGroup:
		group := a.Value.Group()
		clean := make([]slog.Attr, len(group))
		for i, g := range group {
			clean[i] = maskAttr(g)
		}
		a.Value = slog.GroupValue(clean...)
	case slog.KindAny:
		// Replace only a value with a credential: a handler may encode other values in its own way.
		text := fmt.Sprint(a.Value.Any())
		if b, ok := a.Value.Any().([]byte); ok {
			text = string(b)
		}
		if clean := Mask(text); clean != text {
			a.Value = slog.StringValue(clean)
		}
	}
	return a
}
