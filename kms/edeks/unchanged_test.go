package edeks

import (
	"context"
	"io"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"claviger/filestamp"
	"claviger/terminal"
)

// meddling is a context whose first use changes a file.
type meddling struct {
	context.Context
	once   sync.Once
	meddle func()
}

func (m *meddling) Err() error {
	m.once.Do(m.meddle)
	return m.Context.Err()
}

func (m *meddling) Done() <-chan struct{} {
	m.once.Do(m.meddle)
	return m.Context.Done()
}

// TestUnchanged: an image that is changed while it is read is an error, also if its content, its length and its time
// are the same afterwards.
func TestUnchanged(t *testing.T) {
	file := write(t, zoneTree())
	rewrite := func() {
		image, err := os.ReadFile(file)
		if err != nil {
			t.Error(err)
		}
		before, err := filestamp.Of(file)
		for after := before; err == nil && after == before; { // the kernel's clock for file times advances in ticks
			if err = os.WriteFile(file, image, 0o600); err == nil {
				err = os.Chtimes(file, time.Time{}, before.ModTime)
			}
			if err == nil {
				after, err = filestamp.Of(file)
			}
		}
		if err != nil {
			t.Error(err)
		}
	}
	verdict := func(ctx context.Context) error {
		_, err := (&Options{Workers: 1}).readImage(ctx, file, io.Discard)
		return err
	}
	census := func(ctx context.Context, o Options) error {
		o.Workers, o.Out = 1, *terminal.To(io.Discard)
		return Census(ctx, &o, []string{file}, io.Discard)
	}
	for what, read := range map[string]func(context.Context) error{"verdict": verdict,
		"census": func(ctx context.Context) error { return census(ctx, Options{}) },
		"list":   func(ctx context.Context) error { return census(ctx, Options{List: "k@2"}) },
	} {
		err := read(&meddling{Context: t.Context(), meddle: rewrite})
		if err == nil || !strings.Contains(err.Error(), "was changed or renamed while it was read") {
			t.Errorf("%s: %v", what, err)
		}
		if err := read(t.Context()); err != nil {
			t.Errorf("%s of a file that nobody changes: %v", what, err)
		}
	}
}
