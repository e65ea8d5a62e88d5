package claviger_test

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"testing"

	"claviger"
)

// TestErrorText: the text of an error has the key once, and no names of functions, even if the error went through
// several packages.
func TestErrorText(t *testing.T) {
	inner := claviger.E("sqlite.Get", claviger.Unavailable, "k", errors.New("the disk is full"))
	for _, c := range []struct {
		err               error
		text, reason, ops string
	}{
		{errors.New("plain"), "plain", "plain", ""},
		{inner, `"k": the disk is full`, "the disk is full", "sqlite.Get"},
		{claviger.E("hsm.Roll", claviger.Unavailable, "k", inner), `"k": the disk is full`, "the disk is full",
			"hsm.Roll sqlite.Get"},
		{claviger.E("hsm.Roll", claviger.Unavailable, "k@1", inner), `"k@1": "k": the disk is full`, "the disk is full",
			"hsm.Roll sqlite.Get"},
		{claviger.E("hsm.Open", claviger.Unavailable, "", inner), `"k": the disk is full`, "the disk is full",
			"hsm.Open sqlite.Get"},
		{claviger.E("hsm.Get", claviger.KeyNotFound, "k", nil), `"k": key not found`, "key not found", "hsm.Get"},
		{claviger.E("hsm.Get", claviger.Closed, "", nil), "closed", "closed", "hsm.Get"},
		{fmt.Errorf("while rolling: %w", claviger.E("hsm.Roll", claviger.Internal, "", fmt.Errorf("and then %w",
			inner))),
			`while rolling: and then "k": the disk is full`, `while rolling: and then "k": the disk is full`,
			"hsm.Roll sqlite.Get"},
	} {
		if got := c.err.Error(); got != c.text {
			t.Errorf("text %s, want %s", got, c.text)
		}
		if got := claviger.Reason(c.err); got != c.reason {
			t.Errorf("%v: reason %s, want %s", c.err, got, c.reason)
		}
		if got := claviger.Ops(c.err); got != c.ops {
			t.Errorf("%v: ops %q, want %q", c.err, got, c.ops)
		}
	}
}

// TestLogHandler: the log shows the operations of an error in an attribute of their own, and the text without them.
func TestLogHandler(t *testing.T) {
	var b bytes.Buffer
	log := slog.New(claviger.LogHandler(slog.NewTextHandler(&b,
		&slog.HandlerOptions{ReplaceAttr: func(_ []string, a slog.Attr) slog.Attr {
			if a.Key == slog.TimeKey {
				return slog.Attr{}
			}
			return a
		}}))).With("node", 1)
	log.Error("failed", "key", "k", "err", claviger.E("hsm.Roll", claviger.Internal, "k",
		claviger.E("pkcs11.Do", claviger.Unavailable, "", fs.ErrClosed)))
	log.Error("failed", "err", fs.ErrClosed)
	log.Error("failed", "err", error(nil), "n", 1)
	want := `level=ERROR msg=failed node=1 key=k err="\"k\": file already closed" op="hsm.Roll pkcs11.Do"
level=ERROR msg=failed node=1 err="file already closed"
level=ERROR msg=failed node=1 err=<nil> n=1
`
	if b.String() != want {
		t.Errorf("log:\n%s, want\n%s", b.String(), want)
	}
}

// TestIsAllocatesNothing: each decrypt calls Is with a nil error.
func TestIsAllocatesNothing(t *testing.T) {
	wrapped := fmt.Errorf("x: %w", claviger.E("op", claviger.Unavailable, "", nil))
	if n := testing.AllocsPerRun(100, func() {
		if claviger.Is(nil, claviger.VersionNotFound) || !claviger.Is(wrapped, claviger.Unavailable) {
			t.Error("Is returned a wrong value")
		}
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}
